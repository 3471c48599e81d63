"""DPM-Solver: singlestep solvers in noise prediction (Lu et al. 2022 [2206.00927]).

With lam = log(alpha / sigma) the probability-flow ODE has the exact solution

    x_t = alpha_t / alpha_s x_s - alpha_t int_{lam_s}^{lam_t} e^-lam eps(lam) dlam,

and a solver of order k takes eps as a polynomial of degree k - 1 in lam, fitted inside the interval.

Where lam is infinite at an end of an interval (alpha = 0 at the start of flow matching, sigma = 0 at the
data end) there is no polynomial in lam: that interval is crossed in as many first-order steps, at equal
distances in the straight coordinate u, as it would have had evaluations.
"""

from itertools import accumulate, pairwise
from typing import Annotated

import torch
from torch import Tensor

from students.errors import FewstepError
from students.options import Range
from students.solvers.euler import euler_step


def check_order(order: int) -> None:
    if order not in (1, 2, 3):
        raise FewstepError(f"order {order!r} is not one this solver has: choose 1, 2 or 3")


def time_between(schedule, s, t, fraction: float) -> Tensor:
    """The time at `fraction` of the way from lam_s to lam_t."""
    return schedule.time(torch.lerp(schedule.lam(s), schedule.lam(t), fraction))


def has_infinite_end(schedule, s, t) -> bool:
    """Whether lam is infinite at s or t."""
    return not (schedule.lam(s).isfinite() and schedule.lam(t).isfinite())


def first_order_steps(denoise, x: Tensor, s, t, n: int) -> tuple[Tensor, Tensor]:
    """n DDIM steps from s to t at equal distances in u: the state after them, and the latest estimate."""
    schedule = denoise.schedule
    inside = torch.lerp(schedule.u(s), schedule.u(t), torch.arange(1, n, dtype=torch.float64) / n)
    for start, end in pairwise([s, *schedule.time_of_u(inside), t]):
        x0 = denoise(x, start)
        x = euler_step(schedule, x, x0, start, end)
    return x, x0


def singlestep(denoise, x: Tensor, s, t, order: int) -> tuple[Tensor, Tensor]:
    """One step of DPM-Solver-`order` from s to t, and the latest of its `order` estimates."""
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
        x0_middle, eps_middle = evaluate(euler_step(schedule, x, x0, s, middle), middle)
        x_t = euler_step(schedule, x, x0, s, t) - schedule.sigma(t) * torch.expm1(h) * (eps_middle - eps)
        return x_t, x0_middle

    def quadratic_term(r):
        """sigma (r h) phi_2(r h): the weight of h deps/dlam after a fraction r of the step."""
        return schedule.sigma(time_between(schedule, s, t, r)) * (torch.expm1(r * h) / (r * h) - 1)

    r1, r2 = 1 / 3, 2 / 3
    s1, s2 = time_between(schedule, s, t, r1), time_between(schedule, s, t, r2)
    _, eps_1 = evaluate(euler_step(schedule, x, x0, s, s1), s1)
    x_2 = euler_step(schedule, x, x0, s, s2) - quadratic_term(r2) * r2 / r1 * (eps_1 - eps)
    x0_2, eps_2 = evaluate(x_2, s2)
    return euler_step(schedule, x, x0, s, t) - quadratic_term(1) / r2 * (eps_2 - eps), x0_2


def dpm_solver(
    denoise, x: Tensor, times: Tensor, *, noise=None, callback=None, order: Annotated[int, Range(1, 3)] = 3
) -> Tensor:
    """DPM-Solver-1, -2 and -3 ([2206.00927], Eq. 3.7, Alg. 1 and Alg. 2), every interval one step.

    Order 2 evaluates at r1 = 1/2, order 3 at r1 = 1/3 and r2 = 2/3 of each interval in lam. NFE `order` n.
    Raises FewstepError for another order.
    """
    check_order(order)
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x, x0 = singlestep(denoise, x, s, t, order)
        if callback:
            callback(i, t, x, x0)
    return x


def fast_orders(nfe: int) -> list[int]:
    """3, ..., 3 and then what is left of the budget, 1 or 2, or 2, 1 in place of the last 3."""
    threes, rest = divmod(nfe, 3)
    return [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1]


def dpm_solver_fast(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None) -> Tensor:
    """DPM-Solver-fast: steps of order 3 as long as the budget lasts, lower orders at the end [2206.00927].

    The n intervals of `times` are the budget, NFE n: a step of order k spans k of them, as in the authors'
    code, except that on a grid uniform in lam theirs makes all the steps equally long instead.
    """
    orders = fast_orders(len(times) - 1)
    outer = times[list(accumulate(orders, initial=0))]
    for i, (s, t) in enumerate(pairwise(outer)):
        x, x0 = singlestep(denoise, x, s, t, orders[i])
        if callback:
            callback(i, t, x, x0)
    return x
