"""Improved distribution matching distillation, DMD2 (Yin et al. 2024 [2405.14867])."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from students.distillation.adversarial.core import NON_SATURATING
from students.distillation.functions import normal, randint, squared
from students.distillation.matching.core import ScoreDistillation
from students.distillation.method import trainable
from students.errors import FewstepError
from students.networks.discriminator import JudgingDenoiser
from students.options import Range
from students.samplers import Sampler
from students.training.batches import DATA, NOISE, Batch

COUNTS = (1, 2, 4)
SHARES = (1 / 2, 1 / 4, 1 / 4)
# evaluations, on average, before the step that learns
PASSES = sum(share * (n - 1) / 2 for n, share in zip(COUNTS, SHARES, strict=True))


class ImprovedDistributionMatching(ScoreDistillation):
    """DMD without its regression (Sec. 4.1), and

        two time-scales     the fake score moves in every step, the generator in one of five (Sec. 4.2)
        a GAN               D reads the fake score's features of noised images: G - gan log D(x_t'),
                            fake score: denoising - classify (log D(x_t) + log(1 - D(x_t')))  (Sec. 4.3)
        several steps       x' = G(x_s, s) at one of n levels s, where x_s is what sampling in n steps comes to there,
                            simulated from noise (Sec. 4.4-4.5)

    A stage for each n in 1, 2, 4, from the network of the one before and with a fake score that starts as the teacher.
    Both players have one rate, as in the authors' code: five updates of one keep it ahead.
    gan, classify: weights, by default those of the authors' ImageNet run; gan=0 is no GAN. The paper's Table 3 takes
    the parts away one after the other (`python -m bench study dmd2-table3`).
    """

    @dataclass(frozen=True)
    class Options:
        gan: Annotated[float, Range(0, 1e6)] = 3e-3
        classify: Annotated[float, Range(0, 1e6)] = 1e-2

    stages = tuple(str(n) for n in COUNTS)
    shares = SHARES
    weight = "eq8"
    settings = ScoreDistillation.settings | {"every": 5, "lr": 1e-3}
    vector_settings = ScoreDistillation.vector_settings | {"every": 5, "lr": 4e-3}

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        judged = self.options.gan > 0
        if not judged and self.options.classify != self.Options().classify:
            raise FewstepError("dmd2: classify says nothing without gan: leave it out")
        self.needs = {NOISE, DATA} if judged else {NOISE}
        self.evaluations = 3 + PASSES + judged
        self.opponent_evaluations = 2 + PASSES + judged

    def build(self, stage, trained):
        generator, before = super().build(stage, trained), self.before(stage, trained)
        self.fake = JudgingDenoiser(self.fake)
        self.path = self.visits(int(stage))
        return trainable(before) if before else generator

    def simulate(self, noise: Tensor, condition: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_s (N, ...), what sampling comes to before one of its steps, and its level s, 0-d."""
        levels = self.path.to(noise.device)
        last = int(randint(len(levels) - 1, 1, generator))
        x = noise * levels[0].to(noise)
        with torch.no_grad():
            for s, t in pairwise(levels[: last + 1]):
                x = self.model(x, s, condition) + (t**2 - levels[-1] ** 2).sqrt().to(noise) * normal(noise, generator)
        return x, levels[last]

    def generated(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """x' (N, ...)."""
        return self.model(*self.simulate(batch.noise, batch.condition, generator), batch.condition)

    def fake_loss(self, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            x = self.generated(batch, generator)
        x_t, sigma = self.noised(x, generator)
        estimate, fake = self.fake(x_t, sigma, batch.condition, judge=True)
        terms = {"denoising": (self.edm_weight(sigma) * squared(estimate, x)).mean()}
        if self.options.gan:
            real_t, sigma = self.noised(batch.data.x0, generator)
            _, real = self.fake(real_t, sigma, batch.data.condition, judge=True)
            terms["gan"] = self.options.classify * NON_SATURATING.discriminator(real, fake)
        return terms

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        x = self.generated(batch, generator)
        terms = {"matching": self.matching(x, batch.condition, generator)}
        if self.options.gan:
            x_t, sigma = self.noised(x, generator)
            _, fake = self.fake(x_t, sigma, batch.condition, judge=True)
            terms["gan"] = self.options.gan * NON_SATURATING.generator(fake)
        return terms

    def sampler(self, model):
        return Sampler("levels", {"levels": {self.stage: self.path.tolist()}, "solver": "consistency"})
