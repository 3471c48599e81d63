"""Consistency trajectory models (Kim et al. 2023 [2310.02279]): from any time to any earlier one."""

from itertools import pairwise

import torch
from torch import Tensor

from students.base import FewStepStudent
from students.diffusion.denoiser import Denoiser, expand
from students.diffusion.schedules import VE
from students.distillation.consistency import noise_levels
from students.distillation.method import (
    Batch,
    Distillation,
    heun_jump,
    log_normal,
    randint,
    squared,
    trainable,
    with_numbers,
)

REACH = 3  # levels that the teacher goes at most
WHOLE = 0.5  # of the leaps end at the data end, as one step of sampling asks for


class ConsistencyTrajectory(Distillation):
    """With G(x, t, s) = s/t x + (1 - s/t) g(x, t, s) (Eq. 5), and levels t > u >= s of EDM's grid,

        soft consistency: lambda(t) |G(G(x, t, s), s, 0) - G_ema(G_ema(Solver(x, t, u), u, s), s, 0)|^2    (Eq. 8)
        denoising:        |g(x, t, t) - x_0|^2                                                 (Eq. 11)

    the sum of both, the second weighted so that its gradient in the last layer is as large as the first's (Sec. 3.3).
    g(x, t, t) is a denoiser, so the score is recovered at s = t; g starts as the teacher. Solver takes Heun steps over
    1, 2, ... REACH levels in turn (a single one over several would be far off where noise is high), lambda is EDM's
    weight (the paper measures by LPIPS). Its adversarial term is left out.
    """

    evaluations = 6 + REACH
    budget = 1.9
    settings = {"batch_size": 64}
    target_decay = 0.95
    ranges = {"levels": (3, 10_000)}

    def __init__(self, teacher, start, *, levels: int = 18):
        super().__init__(teacher, start)
        self.levels = self.karras(levels)

    def build(self, stage, trained):
        return with_numbers(trainable(self.start, VE), 1)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        x0, labels, n = batch.x0, batch.labels, len(batch.x0)
        levels = self.levels.to(x0.device)
        last = len(levels) - 1
        i = randint(last, n, generator)
        share = torch.rand(n, generator=generator, device=x0.device)
        j = i + 1 + (share * (last - i)).long()  # s, from the level below t to the last
        j = torch.where(torch.rand(n, generator=generator, device=x0.device) < WHOLE, last, j)
        t, s = levels[i], levels[j]
        end = levels[-1:].expand(n)
        x = x0 + expand(t, x0) * batch.noise
        with torch.no_grad():
            there, way = x, [levels[j.minimum(i + k)] for k in range(2 + step % REACH)]
            for here, u in pairwise(way):
                there = heun_jump(self.teacher, there, here, u, labels)
            target = leap(self.target, leap(self.target, there, u, s, labels), s, end, labels)
        ours = leap(self.target, leap(self.model, x, t, s, labels), s, end, labels)
        soft = (self.edm_weight(t) * squared(ours, target)).mean()

        sigma = log_normal(n, -1.2, 1.2, self.teacher.schedule, generator)
        noisy = x0 + expand(sigma, x0) * torch.randn(x0.shape, generator=generator, device=x0.device)
        denoising = (self.edm_weight(sigma) * squared(g(self.model, noisy, sigma, sigma, labels), x0)).mean()
        final = self.model.network.last_layer.weight
        norms = [torch.autograd.grad(part, final, retain_graph=True)[0].norm() for part in (soft, denoising)]
        return soft + (norms[0] / norms[1].clamp(min=1e-8)).clamp(max=1.0).detach() * denoising

    def student(self, trained):
        model = trained[""]
        return TrajectoryStudent(model, gamma_sampling, noise_levels(model.schedule, model.sigma_data), gamma=0.0)


def g(model: Denoiser, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
    """g(x, t, s): the denoiser, told the time it is to go to."""
    return model(x, t, labels, (s.log() / 4)[:, None])


def leap(model: Denoiser, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
    """G(x, t, s), from levels t to s, (N,) each."""
    ratio = expand(s / t, x)
    return ratio * x + (1 - ratio) * g(model, x, t, s, labels)


def gamma_sampling(model, x: Tensor, times: Tensor, *, noise=None, labels=None, gamma: float = 0.0) -> Tensor:
    """Algorithm 3: leap to sqrt(1 - gamma^2) t, add gamma t of noise; 0 is deterministic, 1 consistency sampling."""
    for s, t in times.unfold(0, 2, 1):
        last = t == times[-1]
        to = t if last else (t * (1 - gamma**2) ** 0.5).clamp(min=times[-1])
        x = leap(model, x, s.expand(len(x)).to(x.device), to.expand(len(x)).to(x.device), labels)
        if gamma and not last:
            x = x + gamma * t * noise()
    return x


class TrajectoryStudent(FewStepStudent):
    """A network of two times, whose solver takes labels itself."""

    def generate(self, n_steps, noise, labels, guidance):
        times = self.times(n_steps)
        x = noise() * self.denoiser.schedule.sigma(times[0])
        return self.solver(self.denoiser, x, times, noise=noise, labels=labels, **self.solver_options)
