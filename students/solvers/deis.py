"""DEIS: Adams-Bashforth in time with exactly integrated coefficients (Zhang & Chen 2022 [2204.13902]).

The probability-flow ODE in straight coordinates is dz/dt = d(t) u'(t), with the slope d = (z - D) / u.
DEIS extrapolates d by the Lagrange polynomial through its last values, and integrates that exactly:

    z_t = z_s + sum_j C_j d_j,    C_j = int_s^t L_j(tau) u'(tau) dtau,    L_j(t_m) = delta_jm.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Annotated

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from students.errors import FewstepError
from students.options import Range
from students.solvers.euler import corrected_step, slope

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def lagrange_basis(past: Sequence[float], end: float) -> list[Polynomial]:
    """The polynomials L_j with L_j = 1 at past[j] and 0 at the others.

    Their variable runs from 0 at past[0], where the step starts, to 1 at `end`.
    """
    nodes = [(time - past[0]) / (end - past[0]) for time in past]
    return [
        prod((Polynomial([-other, 1.0]) / (node - other) for other in nodes if other != node), start=Polynomial([1.0]))
        for node in nodes
    ]


def multistep(
    denoise,
    x: Tensor,
    times: Tensor,
    order: int,
    weights: Callable[..., Sequence[float]],
    history=(),
    callback=None,
    first: int = 0,
) -> Tensor:
    """Adams-Bashforth in straight coordinates: z_t = z_s + (u_t - u_s) sum_j w_j d_j; one evaluation a step.

    `weights(schedule, past, t)`, which sum to 1, are for the slopes at the times `past`, newest first: `order`
    of them, or as many as there are. history: (time, slope) of evaluations before this call, newest first.
    first: the index that the callback is given for the first step.
    """
    schedule = denoise.schedule
    for i, (s, t) in enumerate(times.unfold(0, 2, 1), start=first):
        x0 = denoise(x, s)
        d = slope(schedule, x, x0, s)
        history = [(s, d), *history][:order]
        w = weights(schedule, torch.stack([time for time, _ in history]), t)
        correction = sum(w_j * (d_j - d) for w_j, (_, d_j) in zip(w[1:], history[1:], strict=True))
        x = corrected_step(schedule, x, x0, correction, s, t)
        if callback:
            callback(i, t, x, x0)
    return x


def deis_weights(schedule, past: Tensor, t: Tensor) -> list[float]:
    """w_j = C_j / (u_t - u_s), from C_j = delta_j0 (u_t - u_s) + int_s^t (u_t - u(tau)) L_j'(tau) dtau.

    That is int_s^t L_j u' dtau by parts. The integral is taken by Gauss-Legendre in sqrt(tau), in which the u of
    a VP schedule is smooth at tau = 0; for VE and flow, where u = tau, the rule is exact.
    """
    s = past[0]
    root_s, root_t = s.sqrt().item(), t.sqrt().item()
    roots = (root_s + root_t) / 2 + (root_t - root_s) / 2 * _NODES
    tau = torch.from_numpy(roots**2)
    rest = (schedule.u(t) - schedule.u(tau)) / (schedule.u(t) - schedule.u(s))
    # from tau to the variable of lagrange_basis, y = (tau - s) / (t - s)
    y, dy = ((tau - s) / (t - s)).numpy(), (root_t - root_s) / (t - s).item() * roots * _WEIGHTS
    integrals = [np.sum(rest.numpy() * basis.deriv()(y) * dy) for basis in lagrange_basis(past.tolist(), t.item())]
    return [1 + integrals[0], *integrals[1:]]


def deis(
    denoise, x: Tensor, times: Tensor, *, noise=None, callback=None, order: Annotated[int, Range(0, 3)] = 3
) -> Tensor:
    """tAB-DEIS ([2204.13902]) with a polynomial of degree `order`, 0 to 3, in time. NFE n.

    Order 0 is DDIM; order r converges as 1 / n^(r + 1). The first steps have the orders 0, 1, ... that their
    history allows, which stays unseen as long as the grid is fine where u is large. In few steps, orders 2 and 3
    belong on grids uniform or quadratic in t: where steps grow many times over from one to the next, as those
    uniform in log-SNR do from alpha near 0, extrapolation in t amplifies without bound.
    Raises FewstepError for another order.
    """
    if order not in (0, 1, 2, 3):
        raise FewstepError(f"order {order!r} is not one DEIS has: choose 0, 1, 2 or 3")
    return multistep(denoise, x, times, order + 1, deis_weights, callback=callback)
