"""PNDM: pseudo numerical methods for diffusion models (Liu et al. 2022 [2202.09778]).

A pseudo numerical method combines slopes as a classical one does and crosses the step with DDIM, here for
every schedule: z_t = z_s + (u_t - u_s) sum_j w_j d_j in straight coordinates. The classical coefficients
belong to equal steps in u; on other grids they are of second order, and `ipndm_v` keeps the fourth.
"""

from typing import Annotated

from torch import Tensor

from students.errors import FewstepError, UnsupportedSteps
from students.options import Range
from students.solvers.deis import lagrange_basis, multistep
from students.solvers.euler import corrected_step, slope

# Adams-Bashforth on equal steps, newest slope first
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def fixed_weights(schedule, past: Tensor, t: Tensor) -> tuple[float, ...]:
    """The classical coefficients, whatever the grid."""
    return ADAMS_BASHFORTH[len(past) - 1]


def variable_weights(schedule, past: Tensor, t: Tensor) -> list[float]:
    """w_j = int_{u_s}^{u_t} L_j(u) du / (u_t - u_s), with L_j = 1 at u(past[j]) and 0 at the others."""
    return [basis.integ()(1.0) for basis in lagrange_basis(schedule.u(past).tolist(), schedule.u(t).item())]


def _runge_kutta(denoise, x: Tensor, s, t) -> tuple[Tensor, Tensor, Tensor]:
    """One pseudo Runge-Kutta step with its midpoint in time, the slope at its start and its latest estimate."""
    schedule = denoise.schedule
    x0 = denoise(x, s)
    d_1 = slope(schedule, x, x0, s)

    def cross(d, end):
        return corrected_step(schedule, x, x0, d - d_1, s, end)

    def slope_after(d, end):
        x_end = cross(d, end)
        x0_end = denoise(x_end, end)
        return slope(schedule, x_end, x0_end, end), x0_end

    middle = (s + t) / 2
    d_2, _ = slope_after(d_1, middle)
    d_3, _ = slope_after(d_2, middle)
    d_4, x0_end = slope_after(d_3, t)
    return cross((d_1 + 2 * d_2 + 2 * d_3 + d_4) / 6, t), d_1, x0_end


def pndm(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None) -> Tensor:
    """F-PNDM ([2202.09778]): three pseudo Runge-Kutta steps, then the pseudo linear multistep method. NFE n + 9.

    Raises UnsupportedSteps for fewer than 4 steps.
    """
    n_steps = len(times) - 1
    if n_steps < 4:
        raise UnsupportedSteps(f"pndm cannot run in {n_steps} steps: its warm-up takes 3, choose 4 or more")
    history: list[tuple[Tensor, Tensor]] = []
    for i, (s, t) in enumerate(times[:4].unfold(0, 2, 1)):
        x, d, x0 = _runge_kutta(denoise, x, s, t)
        history = [(s, d), *history]
        if callback:
            callback(i, t, x, x0)
    return multistep(denoise, x, times[3:], 4, fixed_weights, history, callback, first=3)


def _check(max_order: int) -> None:
    if max_order not in (1, 2, 3, 4):
        raise FewstepError(f"max_order {max_order!r} is not one iPNDM has: choose 1, 2, 3 or 4")


def ipndm(
    denoise, x: Tensor, times: Tensor, *, noise=None, callback=None, max_order: Annotated[int, Range(1, 4)] = 4
) -> Tensor:
    """iPNDM: PNDM's multistep method with a warm-up of lower orders in place of Runge-Kutta. NFE n.

    Order 1 is DDIM. Raises FewstepError for a max_order other than 1, 2, 3, 4.
    """
    _check(max_order)
    return multistep(denoise, x, times, max_order, fixed_weights, callback=callback)


def ipndm_v(
    denoise, x: Tensor, times: Tensor, *, noise=None, callback=None, max_order: Annotated[int, Range(1, 4)] = 4
) -> Tensor:
    """iPNDM with the Adams-Bashforth coefficients of the steps in u that the grid really takes. NFE n.

    On equal steps in u it is `ipndm`. Raises FewstepError for a max_order other than 1, 2, 3, 4.
    """
    _check(max_order)
    return multistep(denoise, x, times, max_order, variable_weights, callback=callback)
