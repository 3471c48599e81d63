"""DEIS: Adams-Bashforth in time with exactly integrated coefficients (Zhang & Chen 2022 [2204.13902]).

The probability-flow ODE in straight coordinates is dz/dt = d(t) u'(t), with the slope d = (z - D) / u.
d is extrapolated by the Lagrange polynomial through its last values, and only that is an approximation:

    z_t = z_s + sum_j C_j d_j,    C_j = int_s^t L_j(tau) u'(tau) dtau,    L_j(t_m) = delta_jm.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from students.errors import FewstepError
from students.solvers.euler import euler_step, slope

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)


def lagrange_basis(past: Sequence[float], end: float) -> list[Polynomial]:
    """The polynomials L_j with L_j = 1 at past[j] and 0 at the others.

    Their variable runs from 0 at past[0], where the step starts, to 1 at `end`.
    """
    nodes = (np.asarray(past) - past[0]) / (end - past[0])
    others = [np.delete(nodes, j) for j in range(len(nodes))]
    return [Polynomial.fromroots(rest) / np.prod(node - rest) for node, rest in zip(nodes, others, strict=True)]


def multistep(
    denoise, x: Tensor, times: Tensor, n_slopes: int, weights: Callable[..., Sequence[float]]
) -> Tensor:
    """Adams-Bashforth in straight coordinates: z_t = z_s + (u_t - u_s) sum_j w_j d_j; one evaluation a step.

    `weights(schedule, past, t)`, which sum to 1, for slopes at the times `past`, the newest first: as many
    as there are, at most n_slopes.
    """
    schedule = denoise.schedule
    slopes = []
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0 = denoise(x, s)
        slopes = [slope(schedule, x, x0, s), *slopes[: n_slopes - 1]]
        past = times[i + 1 - len(slopes) : i + 1].flip(0)
        newest, *earlier = slopes
        _, *earlier_weights = weights(schedule, past, t)
        # With weights that sum to 1 this is a DDIM step and a correction, which loses no digits where u is large
        x = euler_step(schedule, x, x0, s, t)
        for w, d in zip(earlier_weights, earlier, strict=True):
            x = x + schedule.scale(t) * (schedule.u(t) - schedule.u(s)) * w * (d - newest)
    return x


def deis_weights(schedule, past: Tensor, t: Tensor) -> list[float]:
    """w_j = C_j / (u_t - u_s), from C_j = delta_j0 (u_t - u_s) + int_s^t (u_t - u(tau)) L_j'(tau) dtau.

    That is int_s^t L_j u' dtau by parts. The integral is taken by Gauss-Legendre in sqrt(tau), in which the u of
    a VP schedule is smooth at tau = 0; for VE and flow, where u = tau, the rule is exact.
    """
    s = past[0]
    root_s, root_t = s.sqrt().item(), t.sqrt().item()
    roots = (root_s + root_t) / 2 + (root_t - root_s) / 2 * _NODES
    tau, dtau = roots**2, (root_t - root_s) * roots * _WEIGHTS
    step = (schedule.u(t) - schedule.u(s)).item()
    rest = (schedule.u(t) - schedule.u(torch.from_numpy(tau))).numpy() / step
    s, t = s.item(), t.item()
    integrals = [
        np.sum(rest * basis.deriv()((tau - s) / (t - s)) * dtau) / (t - s)
        for basis in lagrange_basis(past.tolist(), t)
    ]
    return [1 + integrals[0], *integrals[1:]]


def deis(denoise, x: Tensor, times: Tensor, *, noise=None, order: int = 3) -> Tensor:
    """tAB-DEIS of order 0 to 3 ([2204.13902], Sec. 3): a polynomial of degree `order` in time. NFE n.

    Order 0 is DDIM. The first steps have the orders 0, 1, ... that their history allows. With r = `order`, the
    error falls as 1 / n^(r + 1). Raises FewstepError for another order.
    """
    if order not in (0, 1, 2, 3):
        raise FewstepError(f"order {order!r} is not one DEIS has: choose 0, 1, 2 or 3")
    return multistep(denoise, x, times, order + 1, deis_weights)
