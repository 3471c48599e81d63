"""TRACT, transitive closure time-distillation (Berthelot et al. 2023 [2303.04248]): whole intervals in few stages."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.distillation.functions import randint
from students.distillation.trajectory.progressive import Progressive
from students.errors import FewstepError
from students.options import Range
from students.training.batches import Batch


class Tract(Progressive):
    """Of the teacher's T steps, groups are cut, as many as the student shall have steps, and from anywhere in a group

        x_t = one DDIM step of the teacher,    x_e = the jump of the student's average from t to the end e,
        target = (x_e - e/s x_s) / (1 - e/s),    loss = w(SNR(s)) |D_student(x_s, s) - target|^2    (Sec. 3)

    so that the student jumps from every level of a group to its end. The first stage has the teacher, with `first`
    steps, as its teacher, the next one the student before, with a step for each of its groups. Progressive
    distillation, whose groups are two steps, needs a stage for every halving.
    """

    @dataclass(frozen=True)
    class Options(Progressive.Options):
        first: Annotated[int, Range(8, 4096)] = 32

    stages = ("4", "1")
    shares = (0.5, 0.5)
    budget = 1.9
    evaluations = 3
    settings = {"batch_size": 128}
    target_decay = 0.95  # the self-teacher's

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        if (first := self.options.first) % int(self.stages[0]):
            raise FewstepError(f"option first must be a multiple of {self.stages[0]}, the steps after it, got {first}")

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        groups, x0 = int(self.stage), batch.data.x0
        first = self.teacher is self.own_teacher
        steps = self.options.first if first else int(self.stages[self.stages.index(self.stage) - 1])
        levels = self.sigmas(steps).to(x0.device)
        i = randint(steps, len(x0), generator)
        size = steps // groups
        end = (i // size + 1) * size
        s, t, e = levels[i], levels[i + 1], levels[end]
        x_s = x0 + expand(s, x0) * batch.noise
        with torch.no_grad():
            x_t = self.step(self.teacher, x_s, s, t, batch)
            x_e = self.step(self.target, x_t, t, e, batch)  # x_t itself where t is the end
        return self.matched(x_s, s, x_e, e, batch)
