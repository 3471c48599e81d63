"""Score distillation: a generator follows the difference of two scores, its own and that of the data.

An image x = G(z) with noise, x_t = x + sigma eps, is evaluated by the teacher and by a fake score, a denoiser that is
trained on the generator's images while the generator learns. In VE coordinates a score is (D(x_t) - x_t) / sigma^2, so

    s_fake - s_real = (D_fake(x_t, sigma) - D_real(x_t, sigma)) / sigma^2

is the gradient, with respect to x, of the KL divergence between the generator's distribution and the data's at level
sigma. Methods differ in levels, in the weight of that gradient, and in what they add to it.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.diffusion.schedules import VE
from students.distillation.functions import matching_levels, normal
from students.distillation.method import Distillation, trainable
from students.samplers import Sampler
from students.training.batches import NOISE, Batch
from students.training.players import Player


def surrogate(x: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to x (N, ...) is `gradient`, divided by the number of elements of x."""
    return 0.5 * (x - (x - gradient).detach()).square().mean()


def score_difference(fake: Tensor, real: Tensor, sigma: Tensor) -> Tensor:
    """s_fake - s_real of two denoisers' estimates (N, ...) at levels sigma (N,)."""
    return (fake - real) / expand(sigma**2, fake)


def denoising(denoise, x: Tensor, noise: Tensor, sigma: Tensor, condition: Tensor | None, weight: Tensor) -> Tensor:
    """The mean of weight |D(x + sigma eps, sigma) - x|^2 over images x (N, ...) and their elements; weight is (N,)."""
    error = denoise(x + expand(sigma, x) * noise, sigma, condition) - x
    return (weight * error.square().flatten(1).mean(1)).mean()


def mean_absolute(x: Tensor, real: Tensor) -> Tensor:
    """(N,) |x - D_real|_1 / (C S), the error of the teacher's estimate of an image of C channels and S pixels."""
    return (x - real).abs().flatten(1).mean(1).clamp(min=1e-6)


# w(sigma, x, D_real), (N,), of a score difference; DMD's Table 2 has the first three, alpha = 1 in VE coordinates
WEIGHTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "eq8": lambda sigma, x, real: sigma**2 / mean_absolute(x, real),
    "sigma/alpha": lambda sigma, x, real: sigma,
    "sigma^3/alpha": lambda sigma, x, real: sigma**3,
    "sigma^2": lambda sigma, x, real: sigma**2,
    # sigma_t^2 of a noise estimate under a VP schedule, where x_t = (x + sigma eps) / sqrt(1 + sigma^2)
    "vp": lambda sigma, x, real: sigma**3 / (1 + sigma**2),
}


class ScoreDistillation(Distillation):
    """A one-step generator G(z) = D(sigma_1 z, sigma_1), sigma_1 = `noisiest`, and a fake score; both start as the
    teacher.

    The fake score, a player of its own, learns to denoise the generator's images,

        loss = lambda(sigma) |D_fake(x + sigma eps, sigma) - x|^2,    x = G(z) held fixed,

    with EDM's weight. The generator's update follows w(sigma) (s_fake - s_real).

    weight: of the score difference, a name of WEIGHTS.
    fake_lr, vector_fake_lr: of the fake score, for images and for tasks of vectors. It has to follow a generator that
        moves, so it is larger than the generator's, and has no momentum: with equal rates, which the authors of SiD,
        Diff-Instruct and DMD2 have, the two circle about each other here.
    """

    fake: Any
    needs = {NOISE}
    evaluations = 3
    opponent_evaluations = 2
    budget = 1.0
    vector_budget = 3.0
    weight: str = "sigma^2"
    settings = {"lr": 3e-4, "batch_size": 64}
    vector_settings = {"lr": 2e-3, "batch_size": 256}
    fake_lr: ClassVar[float] = 1e-3
    vector_fake_lr: ClassVar[float] = 4e-3

    def build(self, stage, trained):
        self.fake = trainable(self.start, VE)
        return trainable(self.start, VE)

    def opponents(self):
        lr = self.vector_fake_lr if len(self.start.shape) == 1 else self.fake_lr
        return {"fake": Player(self.fake, self.fake_loss, lr=lr, betas=(0.0, 0.99), warmup=100)}

    def generate(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Images (N, ...) of noise (N, ...)."""
        level = torch.tensor(self.noisiest, dtype=torch.float64)
        return self.model(noise * level.to(noise), level, condition)

    def levels(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) noise levels at which the two scores are compared, and the fake one is trained."""
        return matching_levels(n, self.start.sigma_data, self.teacher.schedule, generator)

    def fake_loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor | dict[str, Tensor]:
        with torch.no_grad():
            x = self.generate(batch.noise, batch.condition)
        sigma = self.levels(len(x), generator)
        return denoising(self.fake, x, normal(x, generator), sigma, batch.condition, self.edm_weight(sigma))

    def noised(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images with noise, (N, ...), and its levels (N,)."""
        sigma = self.levels(len(x), generator)
        return x + expand(sigma, x) * normal(x, generator), sigma

    def matching(self, x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        """The loss whose gradient moves images x along w(sigma) (s_fake - s_real)."""
        with torch.no_grad():
            x_t, sigma = self.noised(x, generator)
            real, fake = self.teacher(x_t, sigma, condition), self.fake_estimate(x, x_t, sigma, condition)
            weight = expand(WEIGHTS[self.weight](sigma, x, real), x)
        return surrogate(x, weight * score_difference(fake, real, sigma))

    def fake_estimate(self, x: Tensor, x_t: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
        """The generator's mean image (N, ...) at x_t, which was made of x."""
        return self.fake(x_t, sigma, condition)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor | dict[str, Tensor]:
        return self.matching(self.generate(batch.noise, batch.condition), batch.condition, generator)

    def sampler(self, model):
        return Sampler("levels", {"levels": {"1": self.visits(1).tolist()}})
