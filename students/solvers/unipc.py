"""UniPC: a unified predictor-corrector (Zhao et al. 2023 [2302.04867]), in data prediction."""

from math import factorial
from typing import Annotated

import torch
from torch import Tensor

from students.errors import unknown
from students.options import Choices, Range
from students.solvers.dpm_solver import check_order
from students.solvers.dpm_solver_pp import History, multistep, multistep_update
from students.solvers.euler import euler_step

VARIANTS = {"bh1": lambda h: -h, "bh2": lambda h: torch.expm1(-h)}
PREDICTORS = Choices("unip", "dpm_solver_pp")


def _weights(r: list[Tensor], h: Tensor, scale: Tensor) -> Tensor:
    """rho with sum_m rho_m r_m^(k-1) = -h k! phi_(k+1)(-h) / B(-h), k = 1 ... len(r); 1/2 for a single node."""
    if len(r) == 1:
        return torch.full((1,), 0.5, dtype=torch.float64)
    moments, h_phi = [], torch.expm1(-h)
    for k in range(1, len(r) + 1):
        h_phi = h_phi / -h - 1 / factorial(k)  # -h phi_(k+1)(-h)
        moments.append(h_phi * factorial(k) / scale)
    return torch.linalg.solve(torch.linalg.vander(torch.stack(r)).T, torch.stack(moments))


def unified_update(schedule, x: Tensor, latest, nodes: History, s, t, variant: str) -> Tensor:
    """x_t = sigma_t / sigma_s x_s - alpha_t (e^-h - 1) x0_s - alpha_t B(-h) sum_m rho_m (x0_m - x0_s) / r_m.

    latest: (lam, x0) at s. nodes: (lam, x0) of other evaluations, at lam_s + r_m h. Earlier evaluations alone
    make UniP of order len(nodes) + 1; with the one at t (r = 1) among them it is UniC, of order one more
    than the predictor with the same earlier ones.
    """
    step = euler_step(schedule, x, latest[1], s, t)
    if not nodes:
        return step
    h = schedule.lam(t) - latest[0]
    scale = VARIANTS[variant](h)
    r = [(lam - latest[0]) / h for lam, _ in nodes]
    rho = _weights(r, h, scale)
    correction = sum(w / r_m * (x0 - latest[1]) for w, r_m, (_, x0) in zip(rho, r, nodes, strict=True))
    return step - schedule.alpha(t) * scale * correction


def unipc(
    denoise,
    x: Tensor,
    times: Tensor,
    *,
    noise=None,
    callback=None,
    order: Annotated[int, Range(1, 3)] = 3,
    variant: Annotated[str, Choices(*VARIANTS)] = "bh2",
    predictor: Annotated[str, PREDICTORS] = "unip",
    corrector: bool = True,
    lower_order_final: bool = True,
) -> Tensor:
    """UniPC-p: predictor UniP-p and corrector UniC-p ([2302.04867], multistep, data prediction). NFE n.

    UniP-p converges at order p, UniC-p after it at p + 1 (Cor. 3.2 and Th. 3.1).

    variant: B(h) = h ("bh1") or e^h - 1 ("bh2"), taken at -h in data prediction. B cancels
        wherever the weights rho solve their equations; it matters where a single rho is set to 1/2, as the
        paper does for UniP-2 and UniC-1.
    predictor: "unip", or "dpm_solver_pp" for UniC after multistep DPM-Solver++. Order 1 of both is DDIM.
    corrector: UniC at the end of every step but the last. It uses the evaluation the next step needs anyway.

    The order climbs from 1 and, with `lower_order_final`, goes down to 1 at the end, as in `dpm_solver_pp`;
    a step from alpha = 0 is not corrected.
    Raises FewstepError for an order other than 1, 2, 3, or an unknown variant or predictor.
    """
    check_order(order)
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    if predictor not in PREDICTORS:
        raise unknown("predictor", predictor, PREDICTORS)

    def unip(schedule, x, history, s, t):
        latest, *earlier = history
        return unified_update(schedule, x, latest, earlier, s, t, variant)

    def unic(schedule, x, history, s, t, x0_t):
        latest, *earlier = history
        return unified_update(schedule, x, latest, [*earlier, (schedule.lam(t), x0_t)], s, t, variant)

    predict = unip if predictor == "unip" else multistep_update
    return multistep(denoise, x, times, predict, order, lower_order_final, unic if corrector else None, callback)
