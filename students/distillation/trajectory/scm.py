"""Simplified continuous-time consistency models, sCD and sCT (Lu & Song 2024 [2410.11081])."""

import math

import torch
from torch import Tensor, nn

from students.diffusion.denoiser import expand
from students.diffusion.preconditioning import EDM
from students.diffusion.schedules import VE
from students.distillation.functions import as_target, log_normal, slow_time, tangent
from students.distillation.method import trainable
from students.distillation.trajectory.consistency import ConsistencyMethod
from students.networks.network import as_network
from students.training.batches import Batch

C = 0.1  # of the tangent normalisation, Sec. 4.1


class ContinuousConsistency(ConsistencyMethod):
    """sCD, Algorithm 1 with a teacher. In TrigFlow's coordinates, x_t = cos(t) x_0 + sin(t) d eps, tan(t) = sigma / d,

        f(x, t) = cos(t) x - sin(t) d F(x / d, t),    v = dx/dt of the teacher,
        g = -cos(t)^2 (d F - v) - r (cos(t) sin(t) x + d cos(t) sin(t) dF/dt),    g <- g / (|g| + 0.1),
        loss = exp(w(t)) / D |F - sg(F) - g|^2 - w(t),    r = min(1, step / warm-up),

    |g| the root mean square, so that 0.1 means the same for images of all sizes, log sigma ~ N(-0.8, 1.6^2), w(t) a
    learned weight. EDM's preconditioning is TrigFlow's in VE coordinates, with -F for F; so the teacher's weights are
    where f starts, and D(x, 0) = x is the boundary condition. The derivative along the trajectory is one
    Jacobian-vector product, in forward mode, which counts as one evaluation. It passes through the embedding of time:
    where the paper trains a teacher with a slow one (Sec. 4.1), the student's learns the teacher's first (`slow_time`).
    """

    prediction = EDM
    evaluations = 3
    budget = 0.56
    settings = {"lr": 3e-4, "batch_size": 64}  # a normalised tangent hardly grows small, so steps have to
    vector_settings = {"lr": 2e-4, "batch_size": 64}
    warm_up = 0.2  # of the updates; the paper's 10,000 are 2.5 to 10 % of its training

    def build(self, stage, trained):
        model = self.limited(trainable(self.start, VE))
        schedule = model.schedule
        slow_time(as_network(model.network), math.log(schedule.t_min) / 4, math.log(schedule.t_max) / 4)
        return Weighted(model)

    def sampled(self, model):
        return model.denoiser

    def networks(self):
        return [self.model.denoiser]

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        model, d = self.model.denoiser, self.model.denoiser.sigma_data
        x0, condition = batch.data.x0, batch.data.condition
        sigma = log_normal(len(x0), -0.8, 1.6, model.schedule, generator)
        angle = torch.atan(sigma / d)
        cos, sin = expand(angle.cos(), x0), expand(angle.sin(), x0)
        noisy = x0 + expand(sigma, x0) * batch.noise
        x, told = cos * noisy, (sigma.log() / 4).float()

        def f(scaled, told):
            return -model.evaluate(scaled, told, condition)

        with as_target(self.model):
            v = (cos * x - self.end(noisy, sigma, batch)) / sin
            # cos sin d/dt of log(d tan t) / 4 is 1 / 4
            along = (cos * sin * v / d, torch.full_like(told, 0.25))
            value, slope = tangent(f, (x / d, told), along)
            r = min(1.0, step / (self.warm_up * self.steps))
            g = -(cos**2) * (d * value - v) - r * (cos * sin * x + d * slope)
            rms = g.flatten(1).square().mean(1).sqrt()
            g = g / (rms.reshape(-1, *[1] * (g.ndim - 1)) + C)
        error = (f(x / d, told) - value - g).square().flatten(1).mean(1)
        weight = self.model.weight(told)
        return (weight.exp() * error - weight).mean()

    def end(self, noisy: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """The image that the trajectory's tangent at `noisy` points to."""
        return self.teacher(noisy, sigma, batch.data.condition)


class ContinuousConsistencyTraining(ContinuousConsistency):
    """sCT, Algorithm 1 without a teacher: v = cos(t) d eps - sin(t) x_0, whose mean given x_t is the teacher's.

    The student starts from the teacher's weights all the same, as the paper's does.
    """

    evaluations = 2
    budget = 0.3

    def end(self, noisy, sigma, batch):
        return batch.data.x0


class Weighted(nn.Module):
    """A denoiser and its adaptive weight w(t) (Sec. 4.2), linear in a few frequencies and zero at first."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser
        self.linear = nn.Linear(8, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def weight(self, told: Tensor) -> Tensor:
        angles = told[:, None] * math.pi * torch.arange(1, 5, device=told.device) / 2
        return self.linear(torch.cat([angles.sin(), angles.cos()], dim=1))[:, 0]
