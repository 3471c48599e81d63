"""Distribution matching distillation (Yin et al. 2023 [2311.18828])."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from students.distillation.functions import DISTANCES, LPIPS, distance
from students.distillation.matching.core import ScoreDistillation
from students.distillation.method import Pairs
from students.errors import FewstepError
from students.options import Choices, Range
from students.training.batches import NOISE, PAIRS, Batch

TABLE_2 = ("eq8", "sigma/alpha", "sigma^3/alpha")


class DistributionMatching(ScoreDistillation):
    """Two terms, Algorithm 1:

        matching      the gradient w alpha (s_fake - s_real), w = sigma^2 / alpha C S / |D_real - x|_1 (Eq. 8)
        regression    r d(G(z), y) on the teacher's own noise-image pairs (z, y), made beforehand

    The second keeps every mode, the first makes images sharp. matching, regression: which terms there are; weight:
    "eq8", "sigma/alpha" or "sigma^3/alpha"; between them they are the rows of the paper's Table 2. distance: d, "lpips"
    in the paper, which is for images in colour, else "l2", "l1" or "pseudo_huber". ratio: r, which weighs a mean square
    against a matching gradient of order one; the paper's 0.25 weighs LPIPS. fake: whether there is a fake score;
    else -eps / sigma, the score of a single image, stands in for it, and all images go to one mode (Figure 3).
    """

    @dataclass(frozen=True)
    class Options:
        matching: bool = True
        regression: bool = True
        weight: Annotated[str, Choices(*TABLE_2)] = "eq8"
        ratio: Annotated[float, Range(0, 1e6, open=True)] = 5.0
        distance: Annotated[str, Choices(*DISTANCES, LPIPS)] = "l2"
        fake: bool = True

    budget = 1.2
    needs = {NOISE, PAIRS}
    pairs: Pairs | None = Pairs(count=8_000, solver="ddim", steps=32)

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        chosen = self.options
        if not (chosen.matching or chosen.regression):
            raise FewstepError("dmd: without matching and without regression there is nothing to learn: leave one on")
        default = self.Options()
        for term, names in (("matching", ("weight", "fake")), ("regression", ("ratio", "distance"))):
            for name in names:
                if not getattr(chosen, term) and getattr(chosen, name) != getattr(default, name):
                    raise FewstepError(f"dmd: {name} says nothing without {term}: leave it out")
        self.weight = chosen.weight
        self.evaluations = (2 + chosen.fake) * chosen.matching + chosen.regression
        self.opponent_evaluations = 2 * (chosen.matching and chosen.fake)
        if not chosen.regression:
            self.needs, self.pairs = {NOISE}, None

    def prepare(self):
        if self.options.regression:
            self.d = distance(self.options.distance, self.start.shape, next(self.start.parameters()).device)

    def opponents(self):
        return super().opponents() if self.opponent_evaluations else {}

    def fake_estimate(self, x, x_t, sigma, condition):
        return super().fake_estimate(x, x_t, sigma, condition) if self.options.fake else x

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        terms = {}
        if self.options.matching:
            x = self.generate(batch.noise, batch.condition)
            terms["matching"] = self.matching(x, batch.condition, generator)
        if self.options.regression:
            images = self.generate(batch.pairs.noise, batch.pairs.condition)
            terms["regression"] = self.options.ratio * self.d(images, batch.pairs.x0).mean()
        return terms
