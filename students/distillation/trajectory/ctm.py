"""Consistency trajectory models (Kim et al. 2023 [2310.02279]): from any time to any earlier one."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.diffusion.schedules import VE
from students.distillation.adversarial.core import HINGE, judged, opponent
from students.distillation.functions import heun_jump, log_normal, moved, normal, randint, squared
from students.distillation.method import Distillation, trainable
from students.distillation.trajectory.consistency import noise_levels
from students.networks.discriminator import Discriminator
from students.options import Range
from students.samplers import Sampler
from students.samplers.leaps import g, leap
from students.training.batches import Batch
from students.training.players import Player

REACH = 3  # levels that the teacher goes at most
WHOLE = 0.5  # of the leaps end at the data end, as one step of sampling asks for
HEAVIEST, HEAVIEST_GAME = 1e4, 10.0  # weights of the denoising and of the adversarial term
ALONE = 0.5  # of the updates come before the adversarial term
R1 = 0.1


class ConsistencyTrajectory(Distillation):
    """With G(x, t, s) = s/t x + (1 - s/t) g(x, t, s) (Eq. 5), and levels t > u >= s of EDM's grid,

        soft consistency: lambda(t) |G(G(x, t, s), s, 0) - G_ema(G_ema(Solver(x, t, u), u, s), s, 0)|^2    (Eq. 8)
        denoising:        |g(x, t, t) - x_0|^2                                                 (Eq. 11)

    the sum of both, the second weighted so that its gradient in the last layer is as large as the first's (Sec. 3.3),
    up to the authors' bound. g(x, t, t) is a denoiser, so the score is recovered at s = t; g starts as the teacher.
    Solver takes Heun steps over 1, 2, ... REACH levels in turn (a single one over several would be far off where noise
    is high), lambda is EDM's weight (the paper measures by LPIPS). A leap or step from a level to itself is none and is
    not evaluated.

    adversarial: add a GAN on the first term's estimate G(G(x, t, s), s, 0) (Sec. 3.3), with hinge losses and a weight
    as of the second term, in the second half of the training. The paper's discriminator reads the features of frozen
    encoders, this one images, whose slope R1 bounds.
    """

    @dataclass(frozen=True)
    class Options:
        levels: Annotated[int, Range(3, 10_000)] = 18
        adversarial: bool = False

    budget = 1.9
    settings = {"batch_size": 64}
    target_decay = 0.5  # of a few updates, as a longer average holds back so short a training

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        self.levels = self.karras(self.options.levels)
        self.evaluations, estimate = mean_evaluations(self.options.levels)
        if self.options.adversarial:
            self.evaluations += 1 - ALONE
            self.opponent_evaluations = estimate + 2

    def build(self, stage, trained):
        return trainable(self.start, VE, extra=1)

    def opponents(self) -> dict[str, Player]:
        if not self.options.adversarial:
            return {}
        device = next(self.model.parameters()).device
        self.critic = Discriminator(self.start.shape, classes=self.start.classes).to(device)
        return opponent(self.critic, self.discriminator_loss)

    def draw(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (N, ...), and which levels t and s are, (N,) each."""
        x0 = batch.data.x0
        n, last = len(x0), len(self.levels) - 1
        i = randint(last, n, generator)
        share = torch.rand(n, generator=generator, device=x0.device)
        j = i + 1 + (share * (last - i)).long()  # s, from the level below t to the last
        j = torch.where(torch.rand(n, generator=generator, device=x0.device) < WHOLE, last, j)
        return x0 + expand(self.levels.to(x0.device)[i], x0) * batch.noise, i, j

    def estimate(self, x: Tensor, i: Tensor, j: Tensor, condition: Tensor | None) -> Tensor:
        """G_ema(G(x, t, s), s, 0), the image that x_t (N, ...) leads to."""
        t, s, end = (self.levels.to(x.device)[k] for k in (i, j, torch.full_like(i, -1)))
        return moved(leap, self.target, leap(self.model, x, t, s, condition), s, end, condition)

    def discriminator_loss(self, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        x0, condition = batch.data.x0, batch.data.condition
        with torch.no_grad():
            made = self.estimate(*self.draw(batch, generator), condition)
        real, fake = (self.critic(x, x.new_zeros(len(x)), condition) for x in (x0.requires_grad_(), made))
        return judged(HINGE, real, fake, x0, R1)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        x0, condition = batch.data.x0, batch.data.condition
        n = len(x0)
        levels = self.levels.to(x0.device)
        x, i, j = self.draw(batch, generator)
        t, s, end = levels[i], levels[j], levels[-1:].expand(n)
        with torch.no_grad():
            there, way = x, [levels[j.minimum(i + k)] for k in range(2 + step % REACH)]
            for here, u in pairwise(way):
                there = moved(heun_jump, self.teacher, there, here, u, condition)
            target = moved(leap, self.target, moved(leap, self.target, there, u, s, condition), s, end, condition)
        ours = self.estimate(x, i, j, condition)
        soft = (self.edm_weight(t) * squared(ours, target)).mean()

        sigma = log_normal(n, -1.2, 1.2, self.teacher.schedule, generator)
        noisy = x0 + expand(sigma, x0) * normal(x0, generator)
        denoising = (self.edm_weight(sigma) * squared(g(self.model, noisy, sigma, sigma, condition), x0)).mean()
        terms = {"soft": soft, "denoising": self.balance(soft, denoising, HEAVIEST) * denoising}
        if self.options.adversarial and step >= ALONE * self.steps:
            game = HINGE.generator(self.critic(ours, ours.new_zeros(n), condition))
            terms["adversarial"] = self.balance(soft, game, HEAVIEST_GAME) * game
        return terms

    def balance(self, soft: Tensor, part: Tensor, most: float) -> Tensor:
        """The weight, at most `most`, that gives a term a gradient in the last layer as large as that of `soft`."""
        final = self.model.network.last_layer.weight
        norms = [torch.autograd.grad(term, final, retain_graph=True)[0].norm() for term in (soft, part)]
        return (norms[0] / norms[1].clamp(min=1e-8)).clamp(max=most).detach()

    def sampler(self, model):
        return Sampler("leaps", {"levels": noise_levels(model.schedule, model.sigma_data), "gamma": 0.0})


def mean_evaluations(levels: int) -> tuple[float, float]:
    """Evaluations for an image, on average over the levels drawn: of an update without a GAN, and of an estimate."""
    total, estimate, last = 0.0, 0.0, levels - 1
    for most in range(1, last + 1):  # levels from t to the end
        for far in range(1, most + 1):  # from t to s
            share = ((1 - WHOLE) / most + (WHOLE if far == most else 0)) / last
            solver = sum(2 * min(k, far) + (k < far) for k in range(1, REACH + 1)) / REACH
            total += share * (2 + solver + 2 * (far < most))
            estimate += share * (1 + (far < most))
    return total, estimate
