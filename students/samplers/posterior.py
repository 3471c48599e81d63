"""Denoising diffusion GANs (Xiao et al. 2021 [2112.07804]): each step draws an image, and from it a state."""

from collections.abc import Callable

import torch
from torch import Tensor

from students.diffusion.denoiser import Denoiser, expand
from students.samplers.levels import LevelsStudent


def posterior(x0: Tensor, x: Tensor, s: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """A draw of q(x_t | x_s, x_0), t < s, each 0-d or (N,); the image itself at t = 0. In VE coordinates

    mean = x_0 + (t / s)^2 (x_s - x_0),    variance = t^2 (1 - (t / s)^2)    (DDPM [2006.11239], Eq. 6-7).
    """
    ratio = (t / s) ** 2
    return x0 + expand(ratio, x) * (x - x0) + expand(t * (1 - ratio).sqrt(), x) * eps


def latent(model: Denoiser, noise: Tensor) -> Tensor:
    """(N, n) as many numbers as the network takes, the first of a draw (N, *shape)."""
    return noise.flatten(1)[:, : model.network.extra]


def posterior_sampling(
    model: Denoiser, x: Tensor, times: Tensor, *, noise: Callable[[], Tensor], callback=None, condition=None
) -> Tensor:
    """x_0 = G(x_s, z, s), then x_t ~ q(x_t | x_s, x_0), the image itself in the last step (Sec. 3.2). NFE n.

    The first x_s is pure noise, of which nothing is left in x_t.
    """
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0 = model(x, s, condition, latent(model, noise()))
        known = s if i else torch.tensor(torch.inf)
        x = posterior(x0, x, known, t, noise()) if t > times[-1] else x0
        if callback:
            callback(i, t, x, x0)
    return x


class PosteriorStudent(LevelsStudent):
    """A generator that takes a latent as extra inputs, and conditions itself."""

    def __init__(self, model: Denoiser, levels: dict, prior: Tensor | None = None):
        super().__init__(model, levels, posterior_sampling, prior)  # type: ignore[arg-type]

    def generate(self, n_steps, noise, conditions, guidance):
        times = self.times(n_steps)
        x = noise() * self.denoiser.schedule.sigma(times[0])
        return self.solver(self.denoiser, x, times, noise=noise, condition=conditions)
