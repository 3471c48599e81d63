"""Inductive moment matching (Zhou et al. 2025 [2503.07565]): maps from two times to one agree in distribution."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.diffusion.schedules import Flow
from students.distillation.functions import as_target
from students.distillation.trajectory.meanflow import MeanVelocity
from students.errors import FewstepError
from students.options import Range
from students.samplers.mean_velocity import mean_velocity
from students.training.batches import Batch

LAST = 0.994  # the largest t, where samples start: eta is infinite at 1
NARROWEST = 64  # D for vectors of fewer numbers: a kernel as narrow as the spread of velocities seeks their mode


class InductiveMomentMatching(MeanVelocity):
    """With f(z, s, t) = z - (t - s) u(z, s, t), and groups of M `particles` that share the times s <= r < t,

        loss = w(t) sum over i, j of k(y_i, y_j) + k(y'_i, y'_j) - 2 k(y_i, y'_j),    / M^2
        y = f(z_t, s, t),    y' = sg f(z_r, s, r), of the same noise and image,
        k(a, b) = exp(-|a - b| / (D d (t - s))),    d = sigma_data (Laplace, scaled by the output's own factor),
        r = max(s, eta^-1(eta(t) - gap max(1, eta(t)))),    eta = sigma / alpha = t / (1 - t),
        w = 1/2 sigmoid(b - lambda) (-d lambda/dt) alpha / (alpha^2 + sigma^2),    lambda = log SNR, b = 5

    so that the distributions at s, reached from t and from a little nearer, are the same; t and s are uniform. Where
    there are classes, images of one are in a group as far as possible, and k is zero between classes: the joint
    distribution of image and class is matched. The paper goes down by the same gap everywhere, 160 / 2^15, in which
    33,000 of them lead from noise to data for 400,000 updates; here, by a share of eta where it is above 1, some sixty.
    """

    @dataclass(frozen=True)
    class Options:
        particles: Annotated[int, Range(2, 1024)] = 4
        gap: Annotated[float, Range(0, 1, open=True)] = 0.1

    budget = 0.6
    settings = {"lr": 2e-3}

    def build(self, stage, trained):
        fresh = super().build(stage, trained)
        fresh.schedule = Flow(t_max=LAST)
        return fresh

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        x0, condition, noise = batch.data.x0, batch.data.condition, batch.noise
        groups, rest = divmod(len(x0), self.options.particles)
        if rest:
            raise FewstepError(f"a batch of {len(x0)} is not whole groups of {self.options.particles} particles")
        if condition is not None:
            condition, order = condition.sort(stable=True)
            x0 = x0[order]
        t_group = LAST * torch.rand(groups, generator=generator, device=x0.device)
        s_group = t_group * torch.rand(groups, generator=generator, device=x0.device)
        eta = t_group / (1 - t_group)
        eta = eta - self.options.gap * eta.clamp(min=1)
        r_group = torch.maximum(s_group, eta / (1 + eta))
        s, r, t = (times.repeat_interleave(self.options.particles) for times in (s_group, r_group, t_group))

        def reached(start: Tensor) -> Tensor:
            z = expand(1 - start, x0) * x0 + expand(start, x0) * noise
            return z - expand(start - s, x0) * mean_velocity(self.model, z, s, start, condition)

        ours = reached(t)
        with as_target(self.model):
            target = reached(r)
        width = max(x0[0].numel(), NARROWEST) * self.model.sigma_data * (t_group - s_group)
        return (weight(t_group) * self.discrepancy(ours, target, condition, width)).mean()

    def discrepancy(self, a: Tensor, b: Tensor, condition: Tensor | None, width: Tensor) -> Tensor:
        """(groups,) squared maximum mean discrepancies of a and b, (N, ...); width: of the kernels, (groups,)."""
        shape = (len(width), self.options.particles, -1)
        a, b = a.reshape(shape), b.reshape(shape)
        same = 1.0 if condition is None else (condition.reshape(shape) == condition.reshape(shape).mT)
        rate = width.clamp(min=1e-6)[:, None, None]
        inner, outer, between = (torch.exp(-torch.cdist(x, y) / rate) for x, y in ((a, a), (b, b), (a, b)))
        return ((inner + outer - 2 * between) * same).mean((1, 2))


def weight(t: Tensor, b: float = 5.0) -> Tensor:
    """(N,) w(t) of the flow, whose lambda is 2 log((1 - t) / t), so that -d lambda/dt = 2 / (t (1 - t))."""
    t = t.clamp(min=1e-3)
    alpha, lam = 1 - t, 2 * ((1 - t) / t).log()
    return torch.sigmoid(b - lam) / t / (alpha**2 + t**2)
