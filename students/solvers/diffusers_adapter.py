"""Any scheduler of `diffusers` as a student.

A scheduler steps a state x = a x_0 + s eps in coordinates of its own (variance preserving, variance exploding or
flow) at noise levels of its own. Whatever they are, the denoiser is asked at the time t where its schedule has the
same ratio, lam(t) = log(a / s), for the same point in its own coordinates, x sigma(t) / s; the answer goes back as
the prediction (noise, sample, velocity) that the scheduler expects.
"""

import copy
import inspect
import json
import math
import sys
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from students.diffusion.denoiser import guided
from students.diffusion.schedules import SCHEDULES
from students.errors import FewstepError, UnsupportedSteps, unknown
from students.models.teacher import as_teacher
from students.solvers.diffusers_schedulers import (
    ENDS_WITH_DATA,
    EXPLICIT,
    EXPLICIT_EDM,
    EXPLICIT_FLOW,
    FEWEST_STEPS,
    FLOW_ONLY,
    FROM_SCHEDULE,
    schedule_kind,
    scheduler_class,
    trained_betas,
)
from students.student import Student, device_of


class _BrownianPath:
    """Normalised increments (W_b - W_a) / sqrt(|b - a|), nested ones with the same start on one path."""

    def __init__(self, draw):
        self.draw = draw
        self.start = None

    def __call__(self, a, b) -> Tensor:
        a, b = float(a), float(b)
        if a != self.start:
            self.start, self.end, self.w = a, a, 0
        self.w = self.w + abs(b - self.end) ** 0.5 * self.draw()
        self.end = b
        return self.w / abs(b - a) ** 0.5


@contextmanager
def _noise_from(draw, scheduler):
    """Let the scheduler take all its noise from `draw()`, by replacing the two sources its module has."""
    module: Any = sys.modules[type(scheduler).__module__]
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = _BrownianPath(draw)
    if not hasattr(module, "randn_tensor"):
        yield
        return
    original = module.randn_tensor
    module.randn_tensor = lambda shape, *args, dtype=None, **kwargs: draw().reshape(shape).to(dtype or torch.float64)
    try:
        yield
    finally:
        module.randn_tensor = original


class DiffusersStudent(Student):
    """A teacher stepped by a scheduler of `diffusers`; options go to its constructor, or to its `step`.

    denoiser: a Teacher, or a denoiser (students/diffusion/denoiser.py). scheduler: a class name,
    "UniPCMultistepScheduler". Betas, spacing and prediction type are always given, so that no class falls back on its
    own default: betas from the denoiser's schedule, spacing "trailing", prediction "epsilon" (flow: the velocity), no
    clipping, the last step to t_min where the class has a choice. `options` holds the whole resolved configuration.

    Which schedule: classes with betas run on VP schedules, and on flow schedules where they offer `use_flow_sigmas`;
    EDM and consistency-model classes (sigma_min, sigma_max, sigma_data) on VE and VP; FlowMatch and its kin on flow.
    A scheduler that finds its next time as t - 1000 // n is inexact where n does not divide 1000, as in diffusers.

    NFE is what the class spends, which need not be n: Heun and KDPM2 2n - 1, PNDM n + 9. All noise comes from
    the per-seed streams. Raises FewstepError for a class that is unknown, refused, or of another kind of schedule,
    and for options that it does not take; UnsupportedSteps where the scheduler itself fails or gives non-finite
    values, found by a dry run before any network call.
    """

    family = "solver"
    denoiser: Any

    def __init__(self, denoiser, scheduler: str, shape=None, *, name=None, device=None, **options):
        teacher = as_teacher(denoiser)
        self.name = name or f"diffusers:{scheduler}"
        self.scheduler = scheduler
        self._class: type[Any] = scheduler_class(scheduler)
        self._family = self._find_family(teacher.schedule)
        self.denoiser, self.prior, self.classes = teacher.denoiser, teacher.prior, teacher.classes
        self.guidable = teacher.has_no_class
        self.shape = tuple(shape or teacher.shape)
        self.device = device_of(self.denoiser) if device is None else torch.device(device)
        self.denoiser.to(self.device)
        self._init_options, self._step_options = self._resolve(options)
        self.supported_steps = self._step_range()
        self._runs: set[int] = set()
        try:
            self._unused = self._construct()
            self._dry_run(10)
        except UnsupportedSteps:
            pass
        except Exception as error:
            raise FewstepError(f"{self.name} cannot run with options {options}: {_first_line(error)}") from error

    def _find_family(self, schedule) -> str:
        """One of "beta", "edm", "trigflow", "flow". Raises FewstepError if the schedule is not of that family."""
        takes = inspect.signature(self._class.__init__).parameters
        if self.scheduler in FLOW_ONLY:
            family, kinds = "flow", ["flow"]
        elif "trained_betas" in takes:
            # without a choice of final sigma, a grid of flow sigmas ends at its last noise level, not at the data
            reaches_data = {"use_flow_sigmas", "final_sigmas_type"} <= takes.keys()
            family, kinds = "beta", ["vp", "flow"] if reaches_data else ["vp"]
        elif {"sigma_min", "sigma_max", "sigma_data"} <= takes.keys():
            family, kinds = "edm", ["ve", "vp"]
        elif self.scheduler == "SCMScheduler":
            family, kinds = "trigflow", ["vp"]
        else:
            raise FewstepError(f"{self.scheduler} takes no betas, sigma range or flow shift: it cannot step a denoiser")
        if (kind := schedule_kind(schedule)) not in kinds:
            raise FewstepError(
                f"{self.scheduler} steps {' and '.join(kinds)} schedules, and this denoiser's is {kind}: "
                "take another scheduler or another denoiser"
            )
        self._kind = kind
        return family

    def _resolve(self, options: dict) -> tuple[dict, dict]:
        """Keyword arguments of the constructor and of `step`; sets `self.options`."""
        parameters = inspect.signature(self._class.__init__).parameters
        takes = {k: p.default for k, p in parameters.items() if k != "self" and p.kind is not p.VAR_KEYWORD}
        step_takes = {
            k: p.default
            for k, p in inspect.signature(self._class.step).parameters.items()
            if isinstance(p.default, (bool, int, float)) and k != "return_dict"
        }
        if strange := options.keys() - takes.keys() - step_takes.keys():
            raise unknown(f"option of {self.scheduler}", min(strange), [*takes, *step_takes])
        if fixed := options.keys() & FROM_SCHEDULE:
            raise FewstepError(f"{min(fixed)} of {self.scheduler} follows from the denoiser's schedule: leave it out")

        schedule = self.denoiser.schedule
        explicit = dict(EXPLICIT)
        if self._family == "edm":
            u_min, u_max = schedule.u([schedule.t_min, schedule.t_max]).tolist()
            explicit |= EXPLICIT_EDM | {"sigma_min": u_min, "sigma_max": u_max}
        elif self._family == "trigflow":
            explicit |= {"prediction_type": "trigflow", "sigma_data": 1.0}
        elif self._kind == "flow":
            explicit |= EXPLICIT_FLOW | {"stages": 1, "stage_range": [0, 1]}
        explicit = {k: v for k, v in explicit.items() if k in takes}
        given = {k: v for k, v in options.items() if k in takes}
        step = {k: v for k, v in options.items() if k not in takes}

        self.options = {"scheduler": self.scheduler, **takes, **explicit, **step_takes, **options}
        if "trained_betas" in takes:
            for unused in ("beta_start", "beta_end", "beta_schedule"):
                self.options.pop(unused, None)
            names = {cls: name for name, cls in SCHEDULES.items()}
            self.options["trained_betas"] = names.get(type(schedule), type(schedule).__name__)
        for key, value in self.options.items():
            if isinstance(value, float) and not math.isfinite(value):
                self.options[key] = str(value)
        try:
            json.dumps(self.options)
        except TypeError as error:
            raise FewstepError(f"options of {self.scheduler} must be plain values: {_first_line(error)}") from error
        return explicit | given, step

    def _step_range(self) -> range:
        fewest = FEWEST_STEPS.get(self.scheduler, 1)
        if self.options.get("sigma_schedule") == "exponential":
            fewest = 2  # its grid of one step starts at sigma_min
        most = self.options.get("original_inference_steps", self.options.get("num_train_timesteps", 1000))
        return range(fewest, most + 1)

    def _construct(self, **options):
        if self._family == "beta" and "trained_betas" not in options:
            n = self._init_options["num_train_timesteps"]
            options["trained_betas"] = trained_betas(self.denoiser.schedule, n)
        return self._class(**self._init_options, **options)

    def make_scheduler(self, n_steps: int):
        """A fresh scheduler with its timesteps set; the timesteps stay on the CPU."""
        schedule = self.denoiser.schedule
        if self.scheduler == "IPNDMScheduler":
            # its "betas" are sigma(t) on the grid, below 1 in float32 so that its alphas stay positive
            times = torch.linspace(schedule.t_max, schedule.t_min, n_steps + 1, dtype=torch.float64)
            scheduler = self._construct(trained_betas=schedule.sigma(times).clamp(max=1 - 2**-24).tolist())
        else:
            scheduler = copy.deepcopy(self._unused)  # some constructors are slow
        takes = inspect.signature(scheduler.set_timesteps).parameters
        if self._family == "trigflow":
            angle = torch.atan(schedule.u(schedule.t_max)).item()
            scheduler.set_timesteps(n_steps, max_timesteps=angle, intermediate_timesteps=None)
        elif self.scheduler == "MiniMaxH3Scheduler":
            scheduler.set_timesteps(n_steps + 1)  # it counts times, not steps
        elif self.scheduler == "LTXEulerAncestralRFScheduler":
            scheduler.set_timesteps(sigmas=[1 - i / n_steps for i in range(n_steps + 1)], device=self.device)
        elif self._family == "flow" and "timesteps" in takes:
            scheduler.set_timesteps(n_steps, sigmas=[1 - i / n_steps for i in range(n_steps)])
        else:
            scheduler.set_timesteps(n_steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return scheduler

    def check(self, n_steps, guidance=1.0):
        super().check(n_steps, guidance)
        if guidance != 1 and not self.guidable:
            raise FewstepError(f"{self.name} was trained without label dropout: leave guidance at 1")
        if n_steps not in self._runs:
            try:
                self._dry_run(n_steps)
            except UnsupportedSteps:
                raise
            except Exception as error:
                raise UnsupportedSteps(f"{self.name} cannot run in {n_steps} steps: {_first_line(error)}") from error

    def _dry_run(self, n_steps: int) -> None:
        ones = torch.ones(1, 1, 1, 1, dtype=torch.float64, device=self.device)
        x = self._run(n_steps, lambda x, t: 0.5 * torch.ones_like(x), lambda: ones, ones)
        if not x.isfinite().all():
            raise UnsupportedSteps(f"{self.name} gives non-finite values in {n_steps} steps: choose another count")
        self._runs.add(n_steps)

    def generate(self, n_steps, noise, conditions, guidance):
        denoise = guided(self.denoiser, conditions, guidance)
        shape = (len(noise.seeds), *self.shape, *[1] * (3 - len(self.shape)))  # schedulers expect images

        def denoise_image(x: Tensor, t: Tensor) -> Tensor:
            return denoise(x.float().reshape(len(x), *self.shape), t).double().reshape(shape)

        def draw() -> Tensor:
            return noise().double().reshape(shape)

        return self._run(n_steps, denoise_image, draw, draw()).reshape(-1, *self.shape).float()

    def _run(self, n_steps: int, denoise, draw, x: Tensor) -> Tensor:
        """The loop of a diffusers pipeline; the state stays float64 where the scheduler leaves it so."""
        scheduler = self.make_scheduler(n_steps)
        schedule = self.denoiser.schedule
        t_max = torch.tensor(schedule.t_max, dtype=torch.float64)
        scales_input = _scales_input(scheduler)
        with_history = "old_pred_original_sample" in inspect.signature(scheduler.step).parameters
        history = {"old_pred_original_sample": None, "timestep_back": None} if with_history else {}
        timesteps = scheduler.timesteps[: -1 if self.scheduler in ENDS_WITH_DATA else None]
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        with _noise_from(draw, scheduler):
            for i, timestep in enumerate(timesteps):
                a, s = self._state(scheduler, i, timestep, scales_input)
                t = schedule.time(a.log() - s.log()).minimum(t_max)
                x0 = denoise(x * (schedule.sigma(t) / s), t)
                x, *rest = scheduler.step(
                    model_output=self._prediction(scheduler, i, x, x0, a, s),
                    timestep=timestep,
                    sample=x,
                    return_dict=False,
                    **history,
                    **self._step_options,
                )
                if with_history:
                    history = {"old_pred_original_sample": rest[0], "timestep_back": timestep}
        return x

    def _state(self, scheduler, i: int, timestep: Tensor, scales_input: bool) -> tuple[Tensor, Tensor]:
        """(a, s) of the scheduler's state x = a x_0 + s eps before evaluation i."""
        if self._family == "trigflow":
            angle = timestep.double()
            return angle.cos(), angle.sin()
        if self.scheduler == "IPNDMScheduler":
            return scheduler.alphas[i].double(), scheduler.betas[i].double()
        if not hasattr(scheduler, "sigmas"):
            alpha2 = scheduler.alphas_cumprod[timestep].double()
            return alpha2.sqrt(), (1 - alpha2).sqrt()
        sigma = _sigma(scheduler, i).double().cpu()
        if self._kind == "flow":
            return 1 - sigma, sigma
        norm = 1 if scales_input else (1 + sigma**2).sqrt()
        return torch.ones_like(sigma) / norm, sigma / norm

    def _prediction(self, scheduler, i: int, x: Tensor, x0: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The network output that stands for x0 at the state x = a x0 + s eps."""
        if self._family == "edm":
            c_skip, c_out = _preconditioning(scheduler, scheduler.sigmas[i])
            return (x0 - c_skip * x) / c_out
        eps = (x - a * x0) / s
        if self.scheduler == "MiniMaxH3Scheduler":
            return x0 - eps
        kind = "flow_prediction" if self._family == "flow" else "v_prediction"
        kind = self._init_options.get("prediction_type", kind)
        if kind == "epsilon":
            return eps
        if kind == "sample":
            return x0
        if kind == "flow_prediction":
            return eps - x0
        return (a * eps - s * x0) / torch.hypot(a, s)


def _scales_input(scheduler) -> bool:
    """Whether the state is variance exploding: those schedulers scale the network's input."""
    probe = torch.ones(1, 1, 1, 1)
    return hasattr(scheduler, "scale_model_input") and not probe.equal(
        scheduler.scale_model_input(probe, scheduler.timesteps[0])
    )


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
