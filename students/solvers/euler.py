"""DDIM and the solvers of EDM: Euler, Heun, the midpoint method and Heun with churn.

In straight coordinates (schedules.py) the probability-flow ODE is dz/du = (z - D) / u, so one Euler step
is DDIM for every schedule, and higher-order methods average slopes of it.
"""

from typing import Annotated

import torch
from torch import Tensor

from students.options import Range


def euler_step(schedule, x: Tensor, x0: Tensor, s, t) -> Tensor:
    """The exact solution from time s to t for a constant estimate x0.

    x_t = sigma_t / sigma_s x_s + (alpha_t - alpha_s sigma_t / sigma_s) x0
    """
    ratio = schedule.sigma(t) / schedule.sigma(s)
    return ratio * x + (schedule.alpha(t) - schedule.alpha(s) * ratio) * x0


def slope(schedule, x: Tensor, x0: Tensor, t) -> Tensor:
    """dz/du = (z - x0) / u at time t: eps for VP and VE, the velocity eps - x0 for flow."""
    return (x / schedule.scale(t) - x0) / schedule.u(t)


def corrected_step(schedule, x: Tensor, x0: Tensor, correction, s, t) -> Tensor:
    """The straight step z_t = z_s + (u_t - u_s) (d + correction), where d = (z_s - x0) / u_s.

    A DDIM step and the rest: z_s + (u_t - u_s) d itself would lose digits in float32 where u is large.
    """
    return euler_step(schedule, x, x0, s, t) + schedule.scale(t) * (schedule.u(t) - schedule.u(s)) * correction


def ddim(
    denoise, x: Tensor, times: Tensor, *, noise=None, callback=None, eta: Annotated[float, Range(0, 1)] = 0.0
) -> Tensor:
    """DDIM (Song et al. 2020 [2010.02502], Eq. 12 and 16); eta = 0 is deterministic, eta = 1 is ancestral.

    x_t = alpha_t x0 + sqrt(sigma_t^2 - c^2) eps + c n,
    c = eta sigma_t sqrt(1 - alpha_s^2 sigma_t^2 / (alpha_t^2 sigma_s^2))

    which for a VP schedule is the paper's Eq. 16, eta sigma_t / sigma_s sqrt(1 - alpha_s^2 / alpha_t^2).
    One evaluation a step; stochastic for eta > 0.
    """
    schedule = denoise.schedule
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0 = denoise(x, s)
        alpha_s, sigma_s, alpha_t, sigma_t = schedule.alpha(s), schedule.sigma(s), schedule.alpha(t), schedule.sigma(t)
        c = eta * sigma_t * (1 - (alpha_s * sigma_t / (alpha_t * sigma_s)) ** 2).sqrt()
        ratio = (sigma_t**2 - c**2).sqrt() / sigma_s
        x = ratio * x + (alpha_t - alpha_s * ratio) * x0
        if eta > 0:
            x = x + c * noise()
        if callback:
            callback(i, t, x, x0)
    return x


def euler(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None) -> Tensor:
    """Euler's method in straight coordinates (EDM [2206.00364], Alg. 1 without lines 6-8): DDIM with eta = 0.

    One evaluation a step.
    """
    schedule = denoise.schedule
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0 = denoise(x, s)
        x = euler_step(schedule, x, x0, s, t)
        if callback:
            callback(i, t, x, x0)
    return x


def _heun_step(denoise, x: Tensor, s, t, correct: bool) -> tuple[Tensor, Tensor]:
    """The state after a step, and the latest estimate. An Euler step unless `correct`."""
    schedule = denoise.schedule
    x0 = denoise(x, s)
    predicted = euler_step(schedule, x, x0, s, t)
    if not correct:
        return predicted, x0
    # Heun's correction: the mean of the slopes at both ends
    x0_end = denoise(predicted, t)
    change = slope(schedule, predicted, x0_end, t) - slope(schedule, x, x0, s)
    return corrected_step(schedule, x, x0, change / 2, s, t), x0_end


def heun(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None, lower_order_final: bool = True) -> Tensor:
    """Heun's method (EDM [2206.00364], Alg. 1): two evaluations a step, the last step Euler; NFE 2n - 1."""
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x, x0 = _heun_step(denoise, x, s, t, correct=i < len(times) - 2 or not lower_order_final)
        if callback:
            callback(i, t, x, x0)
    return x


def dpm2(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None, lower_order_final: bool = True) -> Tensor:
    """The midpoint method with the midpoint at the geometric mean of u; NFE 2n - 1, the last step Euler.

    DPM-Solver-2 as EDM's authors and k-diffusion run it, in u rather than in log u (EDM [2206.00364], App. D.2).
    """
    schedule = denoise.schedule
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0 = latest = denoise(x, s)
        change: Tensor | int = 0
        if i < len(times) - 2 or not lower_order_final:
            middle = schedule.time_of_u((schedule.u(s) * schedule.u(t)).sqrt())
            x_middle = euler_step(schedule, x, x0, s, middle)
            latest = denoise(x_middle, middle)
            change = slope(schedule, x_middle, latest, middle) - slope(schedule, x, x0, s)
        x = corrected_step(schedule, x, x0, change, s, t)
        if callback:
            callback(i, t, x, latest)
    return x


def edm_stochastic(
    denoise,
    x: Tensor,
    times: Tensor,
    *,
    noise,
    callback=None,
    s_churn: Annotated[float, Range(0)] = 40.0,
    s_min: Annotated[float, Range(0)] = 0.05,
    s_max: Annotated[float, Range(0)] = 50.0,
    s_noise: Annotated[float, Range(0)] = 1.003,
) -> Tensor:
    """Heun with churn (EDM [2206.00364], Alg. 2): noise is added before each step; NFE 2n - 1.

    gamma = min(s_churn / n, sqrt(2) - 1) while the noise level sigma / alpha lies in [s_min, s_max].
    Defaults: the paper's CIFAR-10 and ImageNet range of settings (Table 5, ImageNet-64).
    """
    schedule = denoise.schedule
    n_steps = len(times) - 1
    gamma = min(s_churn / n_steps, 2**0.5 - 1)
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        level = torch.exp(-schedule.lam(s))
        if gamma > 0 and level.isfinite() and s_min <= level <= s_max:
            churned = schedule.time(-(level * (1 + gamma)).log())
            gain = schedule.alpha(churned) / schedule.alpha(s)
            added = schedule.alpha(churned) * level * ((1 + gamma) ** 2 - 1) ** 0.5
            x, s = gain * x + added * s_noise * noise(), churned
        x, x0 = _heun_step(denoise, x, s, t, correct=i < n_steps - 1)
        if callback:
            callback(i, t, x, x0)
    return x
