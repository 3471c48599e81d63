"""DPM-Solver++: solvers in data prediction (Lu et al. 2022 [2211.01095]).

With lam = log(alpha / sigma) and h = lam_t - lam_s the probability-flow ODE has the exact solution

    x_t = sigma_t / sigma_s x_s + sigma_t int_{lam_s}^{lam_t} e^lam x0(lam) dlam,

and the solvers take x0 as a polynomial in lam. The multistep ones fit it to earlier evaluations, in a loop
shared with UniPC.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from students.options import Range
from students.solvers.dpm_solver import check_order, first_order_steps, has_infinite_end, time_between
from students.solvers.euler import euler_step

History = list[tuple[Tensor, Tensor]]  # (lam, x0) of the latest evaluations, the newest first


def multistep(
    denoise,
    x: Tensor,
    times: Tensor,
    predict: Callable[..., Tensor],
    order: int,
    lower_order_final: bool,
    correct: Callable[..., Tensor] | None = None,
    callback=None,
) -> Tensor:
    """The loop of a multistep solver; one evaluation a step, NFE n.

    predict(schedule, x, history, s, t) takes a step whose order is the length of `history`: 1, 2, ... up to
    `order` as evaluations come in, no more than the steps that remain with `lower_order_final`, and 1 for a
    step to sigma = 0. An evaluation at lam = -inf (alpha = 0) tells nothing of the slope in lam: the step
    that starts there is of order 1, and later steps do not look back to it.

    correct(schedule, x, history, s, t, x0_t) takes the same step again once x0 at its end is known; the callback
    sees the step then.
    """
    schedule = denoise.schedule
    history: History = []
    step = None
    n_steps = len(times) - 1
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0 = denoise(x, s)
        if correct and step:
            if not has_infinite_end(schedule, *step[-2:]):
                x = correct(schedule, *step, x0)
            if callback:
                callback(i - 1, s, x, x0)
        history = [(schedule.lam(s), x0)] + [(lam, x0) for lam, x0 in history if lam.isfinite()]
        history = history[:order]
        step_order = 1 if schedule.sigma(t) == 0 else n_steps - i if lower_order_final else order
        step = x, history[:step_order], s, t
        x = predict(schedule, *step)
        if callback and (not correct or i == n_steps - 1):
            callback(i, t, x, x0)
    return x


def extrapolated(history: History, lam_t: Tensor) -> Tensor:
    """x0 at the middle of a step in lam, by the line through the last two evaluations (constant if there is one)."""
    (lam_0, x0), *older = history
    if not older:
        return x0
    lam_1, x0_1 = older[0]
    return x0 + (lam_t - lam_0) / (lam_0 - lam_1) / 2 * (x0 - x0_1)


def multistep_update(schedule, x: Tensor, history: History, s, t) -> Tensor:
    """A multistep DPM-Solver++ step of order len(history), at most 3."""
    lam_t = schedule.lam(t)
    if len(history) < 3:
        return euler_step(schedule, x, extrapolated(history, lam_t), s, t)
    (lam_0, x0), (lam_1, x0_1), (lam_2, x0_2) = history
    h, h_0, h_1 = lam_t - lam_0, lam_0 - lam_1, lam_1 - lam_2
    # The parabola through the last three: x0 + d_1 (lam - lam_0) + d_2 (lam - lam_0)^2
    slope_0, slope_1 = (x0 - x0_1) / h_0, (x0_1 - x0_2) / h_1
    d_2 = (slope_0 - slope_1) / (h_0 + h_1)
    d_1 = slope_0 + h_0 * d_2
    weight_1 = torch.expm1(-h) + h
    weight_2 = h**2 - 2 * weight_1
    return euler_step(schedule, x, x0, s, t) + schedule.alpha(t) * (weight_1 * d_1 + weight_2 * d_2)


def dpm_solver_pp(
    denoise,
    x: Tensor,
    times: Tensor,
    *,
    noise=None,
    callback=None,
    order: Annotated[int, Range(1, 3)] = 2,
    lower_order_final: bool = True,
) -> Tensor:
    """Multistep DPM-Solver++: 2M ([2211.01095], Alg. 2) and 3M, its extension to order 3. NFE n.

    2M: x_t = sigma_t / sigma_s x_s - alpha_t (e^-h - 1) (x0_s + (x0_s - x0_r) / (2 r)),  r = (lam_s - lam_r) / h
    3M: x_t = sigma_t / sigma_s x_s - alpha_t ((e^-h - 1) x0_s - (e^-h - 1 + h) d_1 - (h^2 - 2 (e^-h - 1 + h)) d_2)

    where x0_s + d_1 (lam - lam_s) + d_2 (lam - lam_s)^2 goes through the last three evaluations. The authors'
    code, and diffusers after it, weigh d_2 by half of this, which converges at order 2 only.

    The order climbs from 1 over the first steps. With `lower_order_final` it goes down again to 1 at the
    last step, at any number of steps (the authors' code lowers it only for few steps). A step to
    sigma = 0 is always of order 1. Order 1 is DDIM. Raises FewstepError for an order other than 1, 2, 3.
    """
    check_order(order)
    return multistep(denoise, x, times, multistep_update, order, lower_order_final, callback=callback)


def dpm_solver_pp_2s(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None) -> Tensor:
    """Singlestep DPM-Solver++(2S) ([2211.01095], Alg. 1) with r = 1/2: x0 at the middle in lam. NFE 2n.

    An interval where lam is infinite at an end is crossed in two DDIM steps (see dpm_solver.py).
    """
    schedule = denoise.schedule
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        if has_infinite_end(schedule, s, t):
            x, x0 = first_order_steps(denoise, x, s, t, 2)
        else:
            middle = time_between(schedule, s, t, 1 / 2)
            x_middle = euler_step(schedule, x, denoise(x, s), s, middle)
            x0 = denoise(x_middle, middle)
            x = euler_step(schedule, x, x0, s, t)
        if callback:
            callback(i, t, x, x0)
    return x


def dpm_solver_pp_sde(
    denoise, x: Tensor, times: Tensor, *, noise, callback=None, lower_order_final: bool = True
) -> Tensor:
    """SDE-DPM-Solver++(2M): the second-order multistep solver of the reverse SDE [2211.01095]. Stochastic, NFE n.

    x_t = sigma_t / sigma_s e^-h x_s + alpha_t (1 - e^-2h) (x0_s + (x0_s - x0_r) / (2 r)) + sigma_t sqrt(1 - e^-2h) n

    Orders at both ends as in `dpm_solver_pp`; the first-order step is DDIM with eta = 1.
    """

    def update(schedule, x, history, s, t):
        h = schedule.lam(t) - schedule.lam(s)
        fresh = -torch.expm1(-2 * h)
        x0 = extrapolated(history, schedule.lam(t))
        kept = schedule.sigma(t) / schedule.sigma(s) * torch.exp(-h) * x
        return kept + schedule.alpha(t) * fresh * x0 + schedule.sigma(t) * fresh.sqrt() * noise()

    return multistep(denoise, x, times, update, 2, lower_order_final, callback=callback)
