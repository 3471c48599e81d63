"""Adversarial score matching (Jolicoeur-Martineau et al. 2020 [2009.05475]): denoised images that pass for real."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.distillation.adversarial.core import LEAST_SQUARES, Adversarial, noised
from students.distillation.functions import squared
from students.networks.discriminator import Discriminator
from students.options import Range
from students.samplers import Sampler
from students.training.batches import Batch


class AdversarialScore(Adversarial):
    """With H = D(x_s, s), the denoised image of x_s = x_0 + s eps, and a discriminator of clean images,

        H: 1/2 |H - x_0|^2 / s^2 + adversarial (D(H) - 1)^2    D: (D(x_0) - 1)^2 + (D(H) + 1)^2

    (a sum over elements, and least squares, as in the authors' code; R1 is ours). The first term is noise prediction:
    at low levels it decides; from pure noise, where it asks for next to nothing, it is left out. Sampling is
    consistent annealed sampling on geometric levels, as the authors', who have 232 on CIFAR-10; here there are 8, those
    that the student is trained at. H starts as the teacher, which is what the first term alone leads to.

    beta: share of the noise that a step draws anew (students/samplers/annealed.py). In 8 steps the digits have 0.25 at
    1, 0.33 at 0 and 0.09 at 0.7, on tuning seeds.
    """

    @dataclass(frozen=True)
    class Options(Adversarial.Options):
        adversarial: Annotated[float, Range(0, 1e6)] = 1.0
        beta: Annotated[float, Range(0, 1)] = 0.7

    game = LEAST_SQUARES
    settings = Adversarial.settings | {"lr": 1.5e-4}
    vector_r1 = 3.0
    visited = 8
    vector_settings = Adversarial.vector_settings | {"lr": 1e-3}

    def visits(self, n):
        """(n + 1,) levels from `noisiest` to the data end, each the same multiple of the next, float64."""
        ends = math.log(self.noisiest), math.log(self.teacher.schedule.t_min)
        return torch.linspace(*ends, n + 1, dtype=torch.float64).exp()

    def discriminator(self):
        return Discriminator(self.start.shape, classes=self.start.classes)

    def denoised(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """H (N, *shape), and the weight of its denoising (N,)."""
        x0, levels = batch.data.x0, self.path.to(batch.noise.device)
        i = self.starts(len(x0), generator)
        made = self.model(noised(x0, levels, i, batch.noise), levels[i], batch.data.condition)
        return made, (i > 0) / levels[i].to(x0) ** 2

    def discriminator_loss(self, batch, step, generator):
        x0, condition = batch.data.x0, batch.data.condition
        with torch.no_grad():
            made, _ = self.denoised(batch, generator)
        x0.requires_grad_()
        t = x0.new_zeros(len(x0))
        return self.judged(self.critic(x0, t, condition), self.critic(made, t, condition), x0)

    def loss(self, batch, step, generator):
        x0 = batch.data.x0
        made, weight = self.denoised(batch, generator)
        denoising = x0[0].numel() * (weight * squared(made, x0)).mean() / 2
        fake = self.critic(made, x0.new_zeros(len(x0)), batch.data.condition)
        return {"denoising": denoising, "adversarial": self.options.adversarial * self.game.generator(fake)}

    def sampler(self, model):
        return Sampler("annealed", {"levels": self.levels_of(1, 2, 4, 8), "beta": self.options.beta})
