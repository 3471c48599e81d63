"""Mean flows (Geng et al. 2025 [2505.13447]): the average velocity between two times, learned from scratch."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.diffusion.schedules import Flow
from students.distillation.functions import SLOW, as_target, tangent
from students.distillation.method import Distillation, untrained
from students.networks.network import as_network
from students.options import Range
from students.samplers import Sampler
from students.samplers.mean_velocity import mean_velocity
from students.training.batches import Batch


class MeanVelocity(Distillation):
    """What methods share that learn u(z, r, t), the mean velocity from r to t on the path z_t = (1 - t) x_0 + t eps.

    From scratch: no teacher is asked for anything. A sample goes from t to r by z_r = z_t - (t - r) u(z_t, r, t).
    """

    def build(self, stage, trained):
        fresh = untrained(self.start, extra=1)
        fresh.schedule, fresh.prediction = Flow(), "flow"
        return fresh

    def sampler(self, model):
        return Sampler("mean_velocity")


class MeanFlow(MeanVelocity):
    """With v = eps - x_0,

        u_target = v - (t - r) (v . d_z u + d_t u)    (Eq. 10, the MeanFlow identity),
        loss = sg(w) |u - sg(u_target)|^2,    w = 1 / (|u - u_target|^2 + c)^p    (Eq. 22)

    the derivative along (v, 0, 1) by one Jacobian-vector product, which counts as one evaluation. t and r are
    logistic-normal (-0.4, 1.6^2), the larger being t; a variance of 1, the paper's for ImageNet, leaves t = 1, where
    sampling starts, to trainings a hundred times as long. In a share of `flow_share` of a batch r = t, where the target
    is v itself. c = 1e-3, and p = 1 for images; for vectors 1/2, as |u - u_target|^2 varies so much between rows of few
    dimensions that the weights move the minimum. The derivative passes through the network's embedding of time, which
    is slow for that reason, and there is no dropout, of which it and the loss would draw different masks.
    """

    @dataclass(frozen=True)
    class Options:
        flow_share: Annotated[float, Range(0, 1)] = 0.75

    budget = 0.53
    settings = {"lr": 2e-3}

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        self.evaluations = 2 - self.options.flow_share
        self.power = 1.0 if len(start.shape) > 1 else 0.5

    def build(self, stage, trained):
        fresh = super().build(stage, trained)
        as_network(fresh.network).slow_time(SLOW)
        return fresh

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        x0, condition, n = batch.data.x0, batch.data.condition, len(batch.noise)
        apart = round((1 - self.options.flow_share) * n)
        times = torch.sigmoid(-0.4 + 1.6 * torch.randn(2, n, generator=generator, device=x0.device))
        t, r = times.max(0).values, times.min(0).values
        r = torch.cat([r[:apart], t[apart:]])
        z = expand(1 - t, x0) * x0 + expand(t, x0) * batch.noise
        target = v = batch.noise - x0
        if apart:
            part = None if condition is None else condition[:apart]
            with as_target(self.model):
                at, along = (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
                _, slope = tangent(
                    lambda z, r, t: mean_velocity(self.model, z, r, t, part),
                    tuple(rows[:apart] for rows in at),
                    tuple(rows[:apart] for rows in along),
                )
            target = torch.cat([v[:apart] - expand(t - r, z)[:apart] * slope, v[apart:]])
        error = (mean_velocity(self.model, z, r, t, condition) - target).square().flatten(1).sum(1)
        return (error / (error.detach() + 1e-3) ** self.power).mean()
