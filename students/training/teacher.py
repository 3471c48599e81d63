"""Training a teacher: denoising score matching with EDM's preconditioning and label dropout."""

import torch
from torch import Tensor

from students.diffusion.denoiser import Denoiser, expand


def scaled(samples: Tensor) -> Tensor:
    """Images (uint8) as float32 in [-1, 1]; vectors in float32 as they are."""
    return samples / 127.5 - 1 if samples.dtype == torch.uint8 else samples.float()


def draw_batch(
    samples: Tensor, labels: Tensor | None, n: int, generator: torch.Generator, flips: bool = False
) -> tuple[Tensor, Tensor | None]:
    """n random rows of the data: images as float32 in [-1, 1], with `flips` half of them mirrored, or vectors."""
    rows = torch.randint(len(samples), (n,), generator=generator, device=samples.device)
    x0 = scaled(samples[rows])
    if flips:
        flipped = torch.rand(n, generator=generator, device=samples.device) < 0.5
        x0 = torch.where(flipped[:, None, None, None], x0.flip(3), x0)
    return x0, None if labels is None else labels[rows]


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
    p_mean: float,
    p_std: float,
    label_dropout: float,
) -> Tensor:
    """E[w(sigma) |D(x_t) - x_0|^2], w = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (EDM [2206.00364], Eq. 2).

    log sigma ~ N(p_mean, p_std^2), where sigma = sigma_t / alpha_t, clipped to the schedule's range.
    x0: (N, ...), on the generator's device. labels: (N,); each becomes "no class" with probability `label_dropout`
    (guidance [2207.12598]).
    """
    schedule, n = denoiser.schedule, len(x0)
    noisiest, cleanest = (-schedule.lam([schedule.t_max, schedule.t_min])).tolist()
    log_sigma = p_mean + p_std * torch.randn(n, generator=generator, dtype=torch.float64, device=x0.device)
    t = schedule.time(-log_sigma.clamp(cleanest, noisiest))
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    x = expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * eps
    if labels is not None:
        dropped = torch.rand(n, generator=generator, device=x0.device) < label_dropout
        labels = labels.masked_fill(dropped, denoiser.classes)
    sigma = expand(schedule.sigma(t) / schedule.alpha(t), x0)
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return (weight * (denoiser(x, t, labels) - x0) ** 2).mean()
