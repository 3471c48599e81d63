"""The schedulers of diffusers by class name: which can be students, and the options that are always given to them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from students.errors import FewstepError, unknown
from students.solvers import diffusers_times as times

# Passed to every scheduler whose constructor takes them: the defaults differ class by class.
EXPLICIT = {
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "timestep_type": "discrete",
    "interpolation_type": "linear",
    "steps_offset": 0,
    "set_alpha_to_one": False,
    "final_sigmas_type": "sigma_min",
    "lower_order_final": True,
    "clip_sample": False,
    "clip_denoised": False,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift": 1.0,
    "flow_shift": 1.0,
}
# With flow sigmas "sigma_min" would repeat the last noise level.
EXPLICIT_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "final_sigmas_type": "zero"}
# The grid of the EDM schedulers already contains sigma_min.
EXPLICIT_EDM = {"final_sigmas_type": "zero", "sigma_data": 0.5}
FROM_SCHEDULE = {"use_flow_sigmas", "invert_sigmas", "trained_betas"}

_TOKENS = "it steps discrete tokens, not images"
_INVERSE = "it steps from data to noise"
_FIXED = "its betas are fixed and cannot be those of another schedule"
REFUSED = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "ConsistencyDecoderScheduler": _FIXED,
    "DDIMInverseScheduler": _INVERSE,
    "DDPMWuerstchenScheduler": _FIXED,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "HeliosDMDScheduler": "its step needs the noise and the grid of a staged video pipeline",
    "KarrasVeScheduler": "diffusers has removed it",
    "PiflowScheduler": "it needs a network that predicts a whole policy, not a denoiser",
    "RFD4ProteinaScheduler": "it steps protein coordinates, not images",
    "RePaintScheduler": "it inpaints: a step needs an image and a mask",
    "ScoreSdeVeScheduler": "it has no step(): it is driven by separate predictor and corrector calls",
    "UnCLIPScheduler": _FIXED,
    "VQDiffusionScheduler": _TOKENS,
}


@dataclass(frozen=True)
class Row:
    """What the adapter knows of a scheduler class.

    family: whose coordinates and predictions it has, "beta", "edm", "trigflow" or "flow". kinds: the schedules it
    steps. times: how its times are set, a function of diffusers_times.py. own_betas: whether its betas are those of its
    few steps rather than of training. predicts: what the network is asked for
    where the class has no `prediction_type`. fewest: its fewest steps. ends_with_data: whether its last timestep is
    the data end, where nothing is evaluated.
    """

    family: str
    kinds: tuple[str, ...]
    times: Callable = times.count
    own_betas: bool = False
    predicts: str = "v_prediction"
    fewest: int = 1
    ends_with_data: bool = False


_BETA = Row("beta", ("vp",))
_BETA_OR_FLOW = Row("beta", ("vp", "flow"))
_EDM = Row("edm", ("ve", "vp"), predicts="preconditioned")
_FLOW = Row("flow", ("flow",), times.sigmas, predicts="flow_prediction")
ROWS = {
    **dict.fromkeys(
        [
            "CogVideoXDDIMScheduler",
            "CogVideoXDPMScheduler",
            "DDIMParallelScheduler",
            "DDIMScheduler",
            "DDPMParallelScheduler",
            "DDPMScheduler",
            "DEISMultistepScheduler",
            "DPMSolverSDEScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "LCMScheduler",
            "LMSDiscreteScheduler",
            "SASolverScheduler",
            "TCDScheduler",
        ],
        _BETA,
    ),
    "IPNDMScheduler": replace(_BETA, own_betas=True),
    "PNDMScheduler": replace(_BETA, fewest=4),
    # without a choice of final sigma, a grid of flow sigmas would end at its last noise level, not at the data
    "DPMSolverMultistepScheduler": _BETA_OR_FLOW,
    "DPMSolverSinglestepScheduler": _BETA_OR_FLOW,
    "UniPCMultistepScheduler": _BETA_OR_FLOW,
    "CMStochasticIterativeScheduler": _EDM,
    "CosineDPMSolverMultistepScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "EDMEulerScheduler": _EDM,
    "SCMScheduler": Row("trigflow", ("vp",), times.angle, ends_with_data=True),
    "FlowMapEulerDiscreteScheduler": _FLOW,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": replace(_FLOW, times=times.count),
    "FlowMatchLCMScheduler": _FLOW,
    "HeliosScheduler": replace(_FLOW, times=times.count),
    "LTXEulerAncestralRFScheduler": replace(_FLOW, times=times.sigmas_and_zero, ends_with_data=True),
    "MiniMaxH3Scheduler": replace(_FLOW, times=times.bounds, predicts="data_minus_noise"),
}


def scheduler_names() -> list[str]:
    """The scheduler classes of the installed `diffusers` that can step a denoiser; imports none of them."""
    import diffusers

    return sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and name not in REFUSED)


def scheduler_class(name: str) -> type:
    """The class of that name. Raises FewstepError if it is unknown, refused, without a row or lacks a package."""
    import diffusers

    if name in REFUSED:
        raise FewstepError(f"{name} cannot step a denoiser, {REFUSED[name]}: take another scheduler")
    if name not in scheduler_names():
        raise unknown("diffusers scheduler", name, scheduler_names())
    cls = getattr(diffusers, name)
    if ".dummy_" in cls.__module__:
        raise FewstepError(f"{name} needs a package that is not installed: pip install {' '.join(cls._backends[1:])}")
    if name not in ROWS:
        raise FewstepError(f"{name} is no class the adapter knows: take one of {', '.join(sorted(ROWS))}")
    return cls


def schedule_kind(schedule) -> str:
    """Which of alpha^2 + sigma^2 ("vp"), alpha ("ve") and alpha + sigma ("flow") is 1 at all times."""
    t = torch.linspace(schedule.t_min, schedule.t_max, 5, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    for kind, one in {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}.items():
        if torch.allclose(one, torch.ones_like(one), atol=1e-6, rtol=0):
            return kind
    raise FewstepError(f"diffusers has no scheduler for {type(schedule).__name__}: use a VP, VE or flow schedule")


def trained_betas(schedule, n: int) -> list[float]:
    """The betas whose running product prod(1 - beta_i) is alpha(t_i)^2 at n even times from t_min to t_max."""
    alpha2 = schedule.alpha(torch.linspace(schedule.t_min, schedule.t_max, n, dtype=torch.float64)) ** 2
    return (1 - alpha2 / torch.cat([torch.ones_like(alpha2[:1]), alpha2[:-1]])).tolist()
