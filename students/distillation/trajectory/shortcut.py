"""Shortcut models (Frans et al. 2024 [2410.12557]): a step of any size, learned as two of half the size."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.distillation.functions import randint, squared
from students.distillation.trajectory.meanflow import MeanVelocity
from students.options import Range
from students.samplers.mean_velocity import mean_velocity
from students.training.batches import Batch


class Shortcut(MeanVelocity):
    """A share of a batch learns the flow, where d = 0; the rest that a step of 2d is two of d (Eq. 4 and 5),

        loss = |u(z_t, t, t) - (eps - x_0)|^2    and    |u(z_t, t - 2d, t) - (u_1 + u_2) / 2|^2,
        u_1 = u_ema(z_t, t - d, t),    u_2 = u_ema(z_t - d u_1, t - 2d, t - d),

    2d = 1, 1/2, 1/4 ... 2/`finest` equally often and t a multiple of 2d (Alg. 1). The finest steps d are those of the
    flow itself, d = 0, as in the paper, whose `finest` is 128. Times run from data, 0, to noise, 1: the paper's do the
    other way.
    """

    @dataclass(frozen=True)
    class Options:
        flow_share: Annotated[float, Range(0, 1)] = 0.75
        finest: Annotated[int, Range(2, 1024)] = 128

    budget = 0.5
    settings = {"lr": 2e-3}
    target_decay = 0.99

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        self.evaluations = 3 - 2 * self.options.flow_share

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        x0, condition, n = batch.data.x0, batch.data.condition, len(batch.noise)
        apart = round((1 - self.options.flow_share) * n)
        t, d = torch.rand(n, generator=generator, device=x0.device), torch.zeros(n, device=x0.device)
        if apart:
            halvings = randint(self.options.finest.bit_length() - 1, apart, generator)
            steps = 2**halvings
            d[:apart] = 0.5 / steps
            t[:apart] = 1 - (torch.rand(apart, generator=generator, device=x0.device) * steps).floor() / steps
        z = expand(1 - t, x0) * x0 + expand(t, x0) * batch.noise
        target = batch.noise - x0
        if apart:
            part = None if condition is None else condition[:apart]
            target = torch.cat([self.two_steps(z[:apart], t[:apart], d[:apart], part), target[apart:]])
        return squared(mean_velocity(self.model, z, t - 2 * d, t, condition), target).mean()

    @torch.no_grad()
    def two_steps(self, z: Tensor, t: Tensor, d: Tensor, condition: Tensor | None) -> Tensor:
        """The mean velocity of two steps of d from t, of the average network; d, t: (N,)."""
        told = torch.where(d > 1 / self.options.finest, d, 0)
        first = mean_velocity(self.target, z, t - told, t, condition)
        second = mean_velocity(self.target, z - expand(d, z) * first, t - d - told, t - d, condition)
        return (first + second) / 2
