"""Knowledge distillation in iterative generative models (Luhman & Luhman 2021 [2101.02388])."""

import torch
from torch import Tensor

from students.base import FewStepStudent
from students.diffusion.schedules import VE
from students.distillation.method import PAIRS, Batch, Distillation, Pairs, distance, trainable
from students.solvers.euler import ddim


class Knowledge(Distillation):
    """One network evaluation at pure noise predicts what deterministic DDIM makes of it,

        loss = d(D(sigma_max eps, sigma_max), DDIM(eps)),

    on noise-image pairs made beforehand. The student starts from the teacher. distance: "l2" as in the paper (Eq. 6),
    "pseudo_huber", or "lpips".
    """

    source = PAIRS
    pairs = Pairs(count=16_000, solver="ddim", steps=32)
    evaluations = 1

    def __init__(self, teacher, start, *, distance: str = "l2"):
        super().__init__(teacher, start)
        self.metric = distance

    def prepare(self):
        self.d = distance(self.metric, self.start.shape, next(self.start.parameters()).device)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        schedule = self.model.schedule
        images = self.model(batch.noise * schedule.sigma(schedule.t_max), schedule.t_max, batch.labels)
        return self.d(images, batch.x0).mean()

    def student(self, trained):
        schedule = trained[""].schedule
        return FewStepStudent(trained[""], ddim, {1: [schedule.t_max, schedule.t_min]})


class ReflowDistilled(Knowledge):
    """InstaFlow's last stage [2309.06380]: the one Euler step of a straightened flow, on the flow's own pairs."""

    after = "reflow"
    pairs = Pairs(count=10_000, solver="euler", steps=16)
    budget = 0.85

    def build(self, stage, trained):
        return trainable(self.start, VE)
