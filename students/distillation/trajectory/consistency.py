"""Consistency distillation (Song et al. 2023 [2303.01469]): every state of a trajectory leads to the same image."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import Denoiser, expand
from students.diffusion.preconditioning import CONSISTENCY
from students.diffusion.schedules import VE
from students.distillation.functions import DISTANCES, LPIPS, distance, heun_jump, randint
from students.distillation.method import Distillation, trainable
from students.options import Choices, Range
from students.samplers import Sampler
from students.training.batches import Batch

SUPPORTED = (1, 2, 4, 8)
CENTRE, SPAN = 1.6, 5.0
NOISIEST = 40.0


class ConsistencyMethod(Distillation):
    """What all consistency functions share: f(x, sigma_min) = x by parameterisation, and how they sample."""

    prediction = CONSISTENCY

    def build(self, stage, trained):
        return trainable(self.start, VE, prediction=self.prediction)

    def limited(self, model: Denoiser) -> Denoiser:
        """The model with this class's prediction and noise up to NOISIEST sigma_data, for log-normal levels.

        A state there holds 1 / 1600 of signal; levels above are hardly ever drawn in a short training, and would be
        the first that a sample meets.
        """
        schedule = model.schedule
        model.schedule = VE(schedule.t_min, min(schedule.t_max, NOISIEST * model.sigma_data))
        model.prediction = self.prediction
        return model

    def sampler(self, model):
        return Sampler("levels", {"solver": "consistency", "levels": noise_levels(model.schedule, model.sigma_data)})


def noise_levels(schedule: VE, sigma_data: float) -> dict[str, list[float]]:
    """Steps -> the levels a consistency function jumps from: the noisiest, then n - 1 where noise and data balance.

    Those lie at fractions i / n of the way, in log sigma, from 8 to 0.32 sigma_data; the second of two at 1.6
    sigma_data, which is iCT's 0.82 at its sigma_data = 0.5 [2310.14189]. The last level is the data end.
    """
    return {
        str(n): [
            schedule.t_max,
            *(CENTRE * SPAN ** (1 - 2 * i / n) * sigma_data for i in range(1, n)),
            schedule.t_min,
        ]
        for n in SUPPORTED
    }


class ConsistencyDistillation(ConsistencyMethod):
    """CD, Algorithm 2. With x at level s, one of EDM's `levels` levels, and t the next one below,

        loss = lambda(s) d(f(x, s), f_ema(x_t, t)),    x_t = Heun's step of the teacher from s to t,

    lambda = (s^2 + d^2) / (s d)^2, EDM's, d = sigma_data (the paper's is 1, which leaves low levels, where differences
    are small, with next to no say). distance: "l2", "l1", "pseudo_huber", or "lpips", the paper's best for images in
    colour.
    """

    @dataclass(frozen=True)
    class Options:
        levels: Annotated[int, Range(2, 10_000)] = 18
        distance: Annotated[str, Choices(*DISTANCES, LPIPS)] = "l2"

    evaluations = 4
    budget = 1.2
    settings = {"batch_size": 64}
    target_decay = 0.95  # the paper's for 18 levels, Table 4

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        self.levels = self.karras(self.options.levels)

    def prepare(self):
        self.d = distance(self.options.distance, self.start.shape, next(self.start.parameters()).device)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        x0, condition = batch.data.x0, batch.data.condition
        levels = self.levels.to(x0.device)
        i = randint(len(levels) - 1, len(x0), generator)
        s, t = levels[i], levels[i + 1]
        x = x0 + expand(s, x0) * batch.noise
        with torch.no_grad():
            target = self.target(heun_jump(self.teacher, x, s, t, condition), t, condition)
        return (self.edm_weight(s) * self.d(self.model(x, s, condition), target)).mean()
