"""Latent consistency distillation (Luo et al. 2023 [2310.04378]): a consistency function of the guided ODE."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand, guided
from students.distillation.functions import draw_scales, jump, randint, squared
from students.distillation.method import needs_guidance
from students.distillation.trajectory.consistency import ConsistencyMethod
from students.options import Range
from students.samplers import Sampler
from students.training.batches import Batch


class LatentConsistency(ConsistencyMethod):
    """Algorithm 1, on the augmented probability-flow ODE, whose state has the guidance scale w as a constant:

        loss = d(f(x, s, w), f_ema(x_t, t, w)),    x_t = x_0^w + t/s (x - x_0^w),

    x_0^w the guided teacher's (Eq. 8), t lying `skip` of the grid's `levels` below s (skipping-step, Sec. 4.3), d as in
    consistency distillation, f the identity at the data end. Sampled by the multistep consistency sampler.
    """

    @dataclass(frozen=True)
    class Options:
        levels: Annotated[int, Range(2, 10_000)] = 100
        skip: Annotated[int, Range(1, 10_000)] = 5

    evaluations = 4
    budget = 1.2
    settings = {"batch_size": 64}
    target_decay = 0.95

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        needs_guidance("lcm", teacher)
        self.levels = self.sigmas(self.options.levels)

    def build(self, stage, trained):
        model = super().build(stage, trained)
        model.network.add_extra(1)
        return model

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        x0, condition = batch.data.x0, batch.data.condition
        levels = self.levels.to(x0.device)
        i = randint(len(levels) - 1, len(x0), generator)
        s, t = levels[i], levels[(i + self.options.skip).clamp(max=len(levels) - 1)]
        scales = draw_scales(len(x0), generator)
        x = x0 + expand(s, x0) * batch.noise
        with torch.no_grad():
            x_t = jump(x, guided(self.teacher, condition, expand(scales[:, 0], x))(x, s), s, t)
            target = self.target(x_t, t, condition, scales)
        return (self.edm_weight(s) * squared(self.model(x, s, condition, scales), target)).mean()

    def sampler(self, model):
        return Sampler("guided_levels", super().sampler(model).options)
