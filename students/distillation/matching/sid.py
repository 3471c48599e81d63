"""Score identity distillation (Zhou et al. 2024 [2404.04057])."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.distillation.matching.core import ScoreDistillation, mean_absolute
from students.options import Range
from students.training.batches import Batch


class ScoreIdentity(ScoreDistillation):
    """The squared difference of the scores, the Fisher divergence, without the bias of a fake score that lags behind:

        loss = w ((1 - a) |D_real - D_fake|^2 + (D_real - D_fake) . (D_fake - x)),    w = n / |x - D_real|_1

    of images of n numbers, w held fixed. Unlike in other methods the gradient passes through both denoisers to x.
    alpha: a; the authors' runs have 1.2, on AFHQ 1.0. At 0 it is the divergence itself, given an exact fake score.
    """

    @dataclass(frozen=True)
    class Options:
        alpha: Annotated[float, Range(0, 2)] = 1.2

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        x = self.generate(batch.noise, batch.condition)
        x_t, sigma = self.noised(x, generator)
        real, fake = self.teacher(x_t, sigma, batch.condition), self.fake(x_t, sigma, batch.condition)
        return identity_loss(x, real, fake, self.options.alpha)


def identity_loss(x: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """The loss of images x (N, ...) and two estimates of them, a mean over batch and elements."""
    difference = real - fake
    with torch.no_grad():
        weight = expand(1 / mean_absolute(x, real), x)
    return (weight * difference * ((1 - alpha) * difference + fake - x)).mean()
