"""Knowledge distillation in iterative generative models (Luhman & Luhman 2021 [2101.02388])."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.distillation.functions import DISTANCES, LPIPS, distance
from students.distillation.method import Distillation, Pairs
from students.options import Choices
from students.samplers import Sampler
from students.training.batches import PAIRS, Batch


class Knowledge(Distillation):
    """One network evaluation at pure noise predicts what deterministic DDIM makes of it,

        loss = d(D(sigma_max eps, sigma_max), DDIM(eps)),

    on noise-image pairs made beforehand. The student starts from the teacher. distance: "l2" as in the paper (Eq. 6),
    "l1", "pseudo_huber", or "lpips".
    """

    @dataclass(frozen=True)
    class Options:
        distance: Annotated[str, Choices(*DISTANCES, LPIPS)] = "l2"

    needs = {PAIRS}
    pairs = Pairs(count=16_000, solver="ddim", steps=32)
    evaluations = 1

    def prepare(self):
        self.d = distance(self.options.distance, self.start.shape, next(self.start.parameters()).device)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        schedule, pairs = self.model.schedule, batch.pairs
        images = self.model(pairs.noise * schedule.sigma(schedule.t_max), schedule.t_max, pairs.condition)
        return self.d(images, pairs.x0).mean()

    def sampler(self, model):
        return Sampler("levels", {"levels": {"1": [model.schedule.t_max, model.schedule.t_min]}})


class ReflowDistilled(Knowledge):
    """InstaFlow's last stage [2309.06380]: the one Euler step of a straightened flow, on the flow's own pairs."""

    after = "reflow"
    pairs = Pairs(count=10_000, solver="euler", steps=16)
    budget = 0.85
