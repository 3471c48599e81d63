"""Ancestral sampling: each step draws from the posterior q(x_t | x_s, x_0) with the estimate D in place of x_0."""

from typing import Annotated

from torch import Tensor

from students.errors import unknown
from students.options import Choices

VARIANCES = Choices("small", "large")


def posterior_mean(schedule, x: Tensor, x0: Tensor, s, t) -> Tensor:
    """The mean of q(x_t | x_s, x_0) for t < s (Ho et al. 2020 [2006.11239], Eq. 7), for any schedule.

    c x_s + (alpha_t - alpha_s c) x_0,    c = alpha_s sigma_t^2 / (alpha_t sigma_s^2)
    """
    alpha_s, sigma_s, alpha_t, sigma_t = schedule.alpha(s), schedule.sigma(s), schedule.alpha(t), schedule.sigma(t)
    c = alpha_s * sigma_t**2 / (alpha_t * sigma_s**2)
    return c * x + (alpha_t - alpha_s * c) * x0


def ddpm(
    denoise, x: Tensor, times: Tensor, *, noise, callback=None, variance: Annotated[str, VARIANCES] = "small"
) -> Tensor:
    """DDPM's sampler (Ho et al. 2020 [2006.11239], Alg. 2) on any grid and schedule. One evaluation a step.

    x_t = E[x_t | x_s, x_0 = D] + std n, without noise in the last step, where

        small: std = sigma_t sqrt(1 - r^2), that of the posterior (the paper's beta tilde),
        large: std = sigma_s sqrt(1 - r^2), that of the forward kernel q(x_s | x_t) (the paper's beta),
        r = alpha_s sigma_t / (alpha_t sigma_s).

    "small" is `ddim` with eta = 1 but for the last step's noise. Raises FewstepError for another variance.
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    schedule = denoise.schedule
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0 = denoise(x, s)
        x = posterior_mean(schedule, x, x0, s, t)
        if i < len(times) - 2:
            r = schedule.alpha(s) * schedule.sigma(t) / (schedule.alpha(t) * schedule.sigma(s))
            x = x + schedule.sigma(t if variance == "small" else s) * (1 - r**2).sqrt() * noise()
        if callback:
            callback(i, t, x, x0)
    return x
