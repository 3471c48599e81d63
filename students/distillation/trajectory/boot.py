"""BOOT (Gu et al. 2023 [2306.05544]): data-free distillation that pulls itself along the signal-ODE."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.distillation.functions import randint, squared
from students.distillation.method import Distillation
from students.options import Range
from students.samplers import Sampler
from students.samplers.signal import signal
from students.training.batches import NOISE, Batch


class Boot(Distillation):
    """The student y(eps, t) predicts, from pure noise and a level, the signal y_t = x_t - t eps of the path from eps:

        y_s = (s/t) y_t + (1 - s/t) D(y_t + t eps, t)    (the signal-ODE's DDIM step, Eq. 9)
        loss = |y(eps, s) - sg(y_s)|^2 / (1 - s/t)^2 + beta |y(eps, t_max) - D(t_max eps, t_max)|^2    (Eqs. 10, 11)

    s the next level of a grid of `levels`, y_t by a moving average of the student. No data: noise alone. The student
    starts from the teacher, whose input at pure noise is eps and whose output is the signal.
    """

    @dataclass(frozen=True)
    class Options:
        levels: Annotated[int, Range(2, 10_000)] = 32
        beta: Annotated[float, Range(0, 1e6)] = 1.0

    needs = {NOISE}
    evaluations = 5
    budget = 1.0
    target_decay = 0.95

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        self.levels = self.sigmas(self.options.levels)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        eps, condition = batch.noise, batch.condition
        levels = self.levels.to(eps.device)
        i = randint(len(levels) - 1, len(eps), generator)
        t, s = levels[i], levels[i + 1]
        first = levels[:1].expand(len(eps))
        with torch.no_grad():
            y = signal(self.target, eps, t, condition)
            ratio = expand(s / t, eps)
            y = ratio * y + (1 - ratio) * self.teacher(y + expand(t, eps) * eps, t, condition)
            boundary = self.teacher(expand(first, eps) * eps, first, condition)
        bootstrap = squared(signal(self.model, eps, s, condition), y) / (1 - s / t).to(eps) ** 2
        edge = squared(signal(self.model, eps, first, condition), boundary)
        return {"bootstrap": bootstrap.mean(), "boundary": self.options.beta * edge.mean()}

    def sampler(self, model):
        return Sampler("signal")
