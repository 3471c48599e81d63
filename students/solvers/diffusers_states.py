"""The states x = a x_0 + s eps of schedulers of `diffusers`, and the network outputs that they expect there."""

import torch
from torch import Tensor


def scales_input(scheduler) -> bool:
    """Whether the state is variance exploding: those schedulers scale the network's input."""
    probe = torch.ones(1, 1, 1, 1)
    return hasattr(scheduler, "scale_model_input") and not probe.equal(
        scheduler.scale_model_input(probe, scheduler.timesteps[0])
    )


def state(student, scheduler, i: int, timestep: Tensor, exploding: bool) -> tuple[Tensor, Tensor]:
    """(a, s) of the scheduler's state x = a x_0 + s eps before evaluation i; `exploding` is scales_input's answer."""
    if student.row.family == "trigflow":
        angle = timestep.double()
        return angle.cos(), angle.sin()
    if student.row.own_betas:
        return scheduler.alphas[i].double(), scheduler.betas[i].double()
    if not hasattr(scheduler, "sigmas"):
        alpha2 = scheduler.alphas_cumprod[timestep].double()
        return alpha2.sqrt(), (1 - alpha2).sqrt()
    sigma = _sigma(scheduler, i).double().cpu()
    if student.kind == "flow":
        return 1 - sigma, sigma
    norm = 1 if exploding else (1 + sigma**2).sqrt()
    return torch.ones_like(sigma) / norm, sigma / norm


def prediction(student, scheduler, i: int, x: Tensor, x0: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """The network output that stands for x0 at the state x = a x0 + s eps."""
    kind = student.predicts
    if kind == "preconditioned":
        c_skip, c_out = _preconditioning(scheduler, scheduler.sigmas[i])
        return (x0 - c_skip * x) / c_out
    eps = (x - a * x0) / s
    if kind == "data_minus_noise":
        return x0 - eps
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if kind == "flow_prediction":  # off a flow schedule they still take x0 = x - sigma output
        return eps - x0 if student.kind == "flow" else (x - x0) / scheduler.sigmas[i]
    if student.kind == "flow":  # they take x0 = a x - s output, the velocity only where a^2 + s^2 = 1
        return (a * x - x0) / s
    return (a * eps - s * x0) / torch.hypot(a, s)


def _sigma(scheduler, i: int) -> Tensor:
    if getattr(scheduler, "state_in_first_order", True):
        return scheduler.sigmas[i]
    if hasattr(scheduler, "mid_point_sigma"):  # DPMSolverSDE
        return scheduler.mid_point_sigma
    if hasattr(scheduler, "sigmas_interpol"):  # KDPM2; the ancestral one stores them one place earlier
        return scheduler.sigmas_interpol[i - hasattr(scheduler, "sigmas_up")]
    return scheduler.sigmas[i]


def _preconditioning(scheduler, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of D = c_skip x + c_out F."""
    if hasattr(scheduler, "get_scalings_for_boundary_condition"):
        return scheduler.get_scalings_for_boundary_condition(sigma)
    zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
    return scheduler.precondition_outputs(one, zero, sigma), scheduler.precondition_outputs(zero, one, sigma)
