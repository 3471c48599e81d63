"""Consistency trajectory models (Kim et al. 2023 [2310.02279]): from any time to any earlier one."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.diffusion.schedules import VE
from students.distillation.functions import heun_jump, log_normal, moved, randint, squared
from students.distillation.method import Distillation, trainable
from students.distillation.trajectory.consistency import noise_levels
from students.options import Range
from students.samplers import Sampler
from students.samplers.leaps import g, leap
from students.training.batches import Batch

REACH = 3  # levels that the teacher goes at most
WHOLE = 0.5  # of the leaps end at the data end, as one step of sampling asks for
HEAVIEST = 1e4  # weight of the denoising term


class ConsistencyTrajectory(Distillation):
    """With G(x, t, s) = s/t x + (1 - s/t) g(x, t, s) (Eq. 5), and levels t > u >= s of EDM's grid,

        soft consistency: lambda(t) |G(G(x, t, s), s, 0) - G_ema(G_ema(Solver(x, t, u), u, s), s, 0)|^2    (Eq. 8)
        denoising:        |g(x, t, t) - x_0|^2                                                 (Eq. 11)

    the sum of both, the second weighted so that its gradient in the last layer is as large as the first's (Sec. 3.3),
    up to the authors' bound. g(x, t, t) is a denoiser, so the score is recovered at s = t; g starts as the teacher.
    Solver takes Heun steps over 1, 2, ... REACH levels in turn (a single one over several would be far off where noise
    is high), lambda is EDM's weight (the paper measures by LPIPS). A leap or step from a level to itself is none and is
    not evaluated. Its adversarial term is left out.
    """

    @dataclass(frozen=True)
    class Options:
        levels: Annotated[int, Range(3, 10_000)] = 18

    budget = 1.9
    settings = {"batch_size": 64}
    target_decay = 0.5  # of a few updates, as a longer average holds back so short a training

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        self.levels = self.karras(self.options.levels)
        self.evaluations = mean_evaluations(self.options.levels)

    def build(self, stage, trained):
        return trainable(self.start, VE, extra=1)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        x0, condition = batch.data.x0, batch.data.condition
        n = len(x0)
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
                there = moved(heun_jump, self.teacher, there, here, u, condition)
            target = moved(leap, self.target, moved(leap, self.target, there, u, s, condition), s, end, condition)
        ours = moved(leap, self.target, leap(self.model, x, t, s, condition), s, end, condition)
        soft = (self.edm_weight(t) * squared(ours, target)).mean()

        sigma = log_normal(n, -1.2, 1.2, self.teacher.schedule, generator)
        noisy = x0 + expand(sigma, x0) * torch.randn(x0.shape, generator=generator, device=x0.device)
        denoising = (self.edm_weight(sigma) * squared(g(self.model, noisy, sigma, sigma, condition), x0)).mean()
        final = self.model.network.last_layer.weight
        norms = [torch.autograd.grad(part, final, retain_graph=True)[0].norm() for part in (soft, denoising)]
        scale = (norms[0] / norms[1].clamp(min=1e-8)).clamp(max=HEAVIEST).detach()
        return {"soft": soft, "denoising": scale * denoising}

    def sampler(self, model):
        return Sampler("leaps", {"levels": noise_levels(model.schedule, model.sigma_data), "gamma": 0.0})


def mean_evaluations(levels: int) -> float:
    """Evaluations that an update costs for an image, on average over the levels it draws."""
    total, last = 0.0, levels - 1
    for most in range(1, last + 1):  # levels from t to the end
        for far in range(1, most + 1):  # from t to s
            share = (1 - WHOLE) / most + (WHOLE if far == most else 0)
            solver = sum(2 * min(k, far) + (k < far) for k in range(1, REACH + 1)) / REACH
            total += share / last * (2 + solver + 2 * (far < most))
    return total
