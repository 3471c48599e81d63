"""DPM-Solver: singlestep solvers in noise prediction (Lu et al. 2022 [2206.00927]).

With lam = log(alpha / sigma) the probability-flow ODE has the exact solution

    x_t = alpha_t / alpha_s x_s - alpha_t int_{lam_s}^{lam_t} e^-lam eps(lam) dlam,

and a solver of order k takes eps as a polynomial of degree k - 1 in lam, fitted inside the interval.

Where lam is infinite at an end of an interval (alpha = 0 at the start of flow matching, sigma = 0 at the
data end) there is no polynomial in lam: that interval is crossed in as many first-order steps, at equal
distances in the straight coordinate u, as it would have had evaluations.
"""

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from students.errors import FewstepError
from students.solvers.euler import ddim, euler_step


def check_order(order: int) -> None:
    if order not in (1, 2, 3):
        raise FewstepError(f"order {order!r} is not one this solver has: choose 1, 2 or 3")


def time_between(schedule, s, t, fraction: float) -> Tensor:
    """The time at `fraction` of the way from lam_s to lam_t."""
    return schedule.time(torch.lerp(schedule.lam(s), schedule.lam(t), fraction))


def has_infinite_end(schedule, s, t) -> bool:
    """Whether lam is infinite at s or t."""
    return not (schedule.lam(s).isfinite() and schedule.lam(t).isfinite())


def first_order_steps(denoise, x: Tensor, s, t, n: int) -> Tensor:
    """n DDIM steps from s to t at equal distances in u."""
    schedule = denoise.schedule
    inside = torch.lerp(schedule.u(s), schedule.u(t), torch.arange(1, n, dtype=torch.float64) / n)
    return ddim(denoise, x, torch.cat([s[None], schedule.time_of_u(inside), t[None]]))


def singlestep(denoise, x: Tensor, s, t, order: int) -> Tensor:
    """One step of DPM-Solver-`order` from s to t; `order` evaluations."""
    schedule = denoise.schedule
    if order == 1 or has_infinite_end(schedule, s, t):
        return first_order_steps(denoise, x, s, t, order)

    def evaluate(x, t):
        x0 = denoise(x, t)
        return x0, (x - schedule.alpha(t) * x0) / schedule.sigma(t)

    h = schedule.lam(t) - schedule.lam(s)
    x0, eps = evaluate(x, s)
    if order == 2:
        middle = time_between(schedule, s, t, 1 / 2)
        _, eps_middle = evaluate(euler_step(schedule, x, x0, s, middle), middle)
        return euler_step(schedule, x, x0, s, t) - schedule.sigma(t) * torch.expm1(h) * (eps_middle - eps)

    def quadratic_term(r):
        """sigma (r h) phi_2(r h): the weight of h deps/dlam after a fraction r of the step."""
        return schedule.sigma(time_between(schedule, s, t, r)) * (torch.expm1(r * h) / (r * h) - 1)

    r1, r2 = 1 / 3, 2 / 3
    s1, s2 = time_between(schedule, s, t, r1), time_between(schedule, s, t, r2)
    _, eps_1 = evaluate(euler_step(schedule, x, x0, s, s1), s1)
    x_2 = euler_step(schedule, x, x0, s, s2) - quadratic_term(r2) * r2 / r1 * (eps_1 - eps)
    _, eps_2 = evaluate(x_2, s2)
    return euler_step(schedule, x, x0, s, t) - quadratic_term(1) / r2 * (eps_2 - eps)


def dpm_solver(denoise, x: Tensor, times: Tensor, *, noise=None, order: int = 3) -> Tensor:
    """DPM-Solver-1, -2 and -3 ([2206.00927], Eq. 3.7, Alg. 1 and Alg. 2), every interval one step.

    Order 2 evaluates at r1 = 1/2, order 3 at r1 = 1/3 and r2 = 2/3 of each interval in lam. NFE `order` n.
    Raises FewstepError for another order.
    """
    check_order(order)
    for s, t in times.unfold(0, 2, 1):
        x = singlestep(denoise, x, s, t, order)
    return x


def fast_orders(nfe: int) -> list[int]:
    """3, ..., 3 and then what is left of the budget, 1 or 2, or 2, 1 in place of the last 3."""
    threes, rest = divmod(nfe, 3)
    return [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1]


def dpm_solver_fast(denoise, x: Tensor, times: Tensor, *, noise=None) -> Tensor:
    """DPM-Solver-fast: steps of order 3 as long as the budget lasts, lower orders at the end [2206.00927].

    The n intervals of `times` are the budget, NFE n: a step of order k spans k of them, as in the authors'
    code, except that on a grid uniform in lam theirs makes all the steps equally long instead.
    """
    outer = times[list(accumulate(fast_orders(len(times) - 1), initial=0))]
    for (s, t), order in zip(pairwise(outer), fast_orders(len(times) - 1), strict=True):
        x = singlestep(denoise, x, s, t, order)
    return x
