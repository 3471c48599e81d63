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
from typing import Any

import torch
from torch import Tensor

from students.diffusion.denoiser import guided
from students.diffusion.schedules import SCHEDULES
from students.errors import FewstepError, UnsupportedSteps, unknown
from students.models.teacher import as_teacher
from students.solvers.diffusers_check import ORDINARY, Outcome, dry_run, fault, first_line
from students.solvers.diffusers_noise import noise_from
from students.solvers.diffusers_schedulers import (
    EXPLICIT,
    EXPLICIT_EDM,
    EXPLICIT_FLOW,
    FROM_SCHEDULE,
    ROWS,
    schedule_kind,
    scheduler_class,
    trained_betas,
)
from students.solvers.diffusers_states import prediction, scales_input, state
from students.solvers.diffusers_times import own_betas, set_times
from students.student import Student, device_of


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
        self.row = ROWS[scheduler]
        self.kind = self._find_kind(teacher.schedule)
        self.denoiser, self.prior, self.classes = teacher.denoiser, teacher.prior, teacher.classes
        self.guidable = teacher.has_no_class
        self.shape = tuple(shape or teacher.shape)
        self.device = device_of(self.denoiser) if device is None else torch.device(device)
        self.denoiser.to(self.device)
        self._init_options, self._step_options = self._resolve(options)
        self.supported_steps = self._step_range()
        self.predicts = self._predicts()
        self.given = options
        self.plain = DiffusersStudent(denoiser, scheduler, shape, device=device) if options else None
        self._checked: dict[int, str] = {}
        self._outcomes: dict[int, Outcome] = {}
        try:
            self._unused = self._construct()
            self.outcome(ORDINARY)
        except Exception as error:
            raise FewstepError(f"{self.name} cannot run with options {options}: {first_line(error)}") from error

    def _find_kind(self, schedule) -> str:
        """The schedule's kind. Raises FewstepError if the class does not step it."""
        if (kind := schedule_kind(schedule)) not in self.row.kinds:
            raise FewstepError(
                f"{self.scheduler} steps {' and '.join(self.row.kinds)} schedules, and this denoiser's is {kind}: "
                "take another scheduler or another denoiser"
            )
        return kind

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
        if self.row.family == "edm":
            u_min, u_max = schedule.u([schedule.t_min, schedule.t_max]).tolist()
            explicit |= EXPLICIT_EDM | {"sigma_min": u_min, "sigma_max": u_max}
        elif self.row.family == "trigflow":
            explicit |= {"prediction_type": "trigflow", "sigma_data": 1.0}
        elif self.kind == "flow":
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
            raise FewstepError(f"options of {self.scheduler} must be plain values: {first_line(error)}") from error
        return explicit | given, step

    def _predicts(self) -> str:
        given = self._init_options.get("prediction_type")
        return self.row.predicts if given in (None, "trigflow") or self.row.family == "edm" else given

    def _step_range(self) -> range:
        fewest = self.row.fewest
        if self.options.get("sigma_schedule") == "exponential":
            fewest = 2  # its grid of one step starts at sigma_min
        most = self.options.get("original_inference_steps", self.options.get("num_train_timesteps", 1000))
        return range(fewest, most + 1)

    def _construct(self, **options):
        if self.row.family == "beta" and "trained_betas" not in options:
            n = self._init_options["num_train_timesteps"]
            options["trained_betas"] = trained_betas(self.denoiser.schedule, n)
        return self._class(**self._init_options, **options)

    def make_scheduler(self, n_steps: int):
        """A fresh scheduler with its timesteps set; the timesteps stay on the CPU."""
        if self.row.own_betas:
            scheduler = self._construct(trained_betas=own_betas(self.denoiser.schedule, n_steps))
        else:
            scheduler = copy.deepcopy(self._unused)  # some constructors are slow
        set_times(self, scheduler, n_steps)
        return scheduler

    def check(self, n_steps, guidance=1.0):
        super().check(n_steps, guidance)
        if n_steps not in self._checked:
            self._checked[n_steps] = fault(self, n_steps)
        if found := self._checked[n_steps]:
            raise UnsupportedSteps(found)

    def outcome(self, n_steps: int) -> Outcome:
        """The dry run's outcome, remembered."""
        if n_steps not in self._outcomes:
            self._outcomes[n_steps] = dry_run(self, n_steps)
        return self._outcomes[n_steps]

    def generate(self, n_steps, noise, conditions, guidance):
        denoise = guided(self.denoiser, conditions, guidance)
        shape = (len(noise.seeds), *self.shape, *[1] * (3 - len(self.shape)))  # schedulers expect images

        def denoise_image(x: Tensor, t: Tensor) -> Tensor:
            return denoise(x.float().reshape(len(x), *self.shape), t).double().reshape(shape)

        def draw() -> Tensor:
            return noise().double().reshape(shape)

        return self.run(n_steps, denoise_image, draw, draw()).reshape(-1, *self.shape).float()

    def run(self, n_steps: int, denoise, draw, x: Tensor) -> Tensor:
        """The loop of a diffusers pipeline; the state stays float64 where the scheduler leaves it so."""
        scheduler = self.make_scheduler(n_steps)
        schedule = self.denoiser.schedule
        t_max = torch.tensor(schedule.t_max, dtype=torch.float64)
        exploding = scales_input(scheduler)
        with_history = "old_pred_original_sample" in inspect.signature(scheduler.step).parameters
        history = {"old_pred_original_sample": None, "timestep_back": None} if with_history else {}
        timesteps = scheduler.timesteps[: -1 if self.row.ends_with_data else None]
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        with noise_from(draw, scheduler):
            for i, timestep in enumerate(timesteps):
                a, s = state(self, scheduler, i, timestep, exploding)
                lam = (a.log() - s.log()).clamp(min=-100)  # finite where the state is pure noise
                t = schedule.time(lam).minimum(t_max)
                x0 = denoise(x * (schedule.sigma(t) / s), t)
                x, *rest = scheduler.step(
                    model_output=prediction(self, scheduler, i, x, x0, a, s),
                    timestep=timestep,
                    sample=x,
                    return_dict=False,
                    **history,
                    **self._step_options,
                )
                if with_history:
                    history = {"old_pred_original_sample": rest[0], "timestep_back": timestep}
        return x
