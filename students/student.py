"""What a student is: an object with `sample(n_steps)`. SolverStudent joins a teacher, a solver and a time grid."""

import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, nn

from students.diffusion.denoiser import guided
from students.diffusion.grids import make_grid, quadratic, uniform
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import VE
from students.errors import FewstepError, Unsupported, UnsupportedSteps
from students.models.found_grids import FoundGrid, default_grid
from students.models.teacher import as_teacher
from students.nfe import module_attributes
from students.spec import Spec, import_object, parse
from students.whole import whole_numbers

MAX_STEPS = 1000


class Student:
    """Turns seeds into samples in `n_steps`. Subclasses implement `generate`.

    shape: of one sample: (C, H, W) for images, (D,) for vectors.
    classes, prior: the number of classes (None if unconditional) and their probabilities.
    supported_steps: the step counts that make sense, a container.
    options: whatever else can change its samples, as plain JSON values; part of a cell's identity.
    family: "solver" for a teacher with a solver, "distilled" otherwise.
    takes_guidance: False for a network that was distilled without. guidable: whether the network knows the class
        `classes`, which stands for no class.
    """

    name = "student"
    family = "distilled"
    shape: tuple[int, ...]
    classes: int | None = None
    prior: Tensor | None = None
    supported_steps: Collection[int] = range(1, MAX_STEPS + 1)
    device = torch.device("cpu")
    options: dict = {}
    takes_guidance = True
    guidable = True

    def generate(self, n_steps: int, noise: SeedNoise, conditions: Tensor | None, guidance: float) -> Tensor:
        """Samples (len(noise.seeds), *shape), not yet clamped. All randomness comes from `noise`."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """The modules whose calls are network evaluations."""
        return module_attributes(self)

    @torch.inference_mode()
    def sample(self, n_steps: int, seeds=range(16), conditions=None, guidance: float = 1.0) -> Tensor:
        """One sample per seed, float32: (N, C, H, W) in [-1, 1], or (N, D).

        conditions: (N,) classes; None draws each seed's class from the prior. guidance: w of classifier-free
        guidance. Raises UnsupportedSteps, Unsupported, or FewstepError for conditions or guidance the student cannot
        take.
        """
        self.check(n_steps, guidance)
        noise = SeedNoise(seeds, self.shape, self.device)
        if not len(noise.seeds):
            return torch.empty(0, *self.shape, device=self.device)
        x = self.generate(int(n_steps), noise, self._conditions(noise, conditions), guidance)
        if not torch.is_tensor(x) or not x.is_floating_point():
            got = x.dtype if torch.is_tensor(x) else type(x).__name__
            raise FewstepError(f"{self.name}: generate() must return a tensor of floating point numbers, got {got}")
        x = x.float()
        return x.clamp(-1, 1) if len(self.shape) == 3 else x

    def _conditions(self, noise: SeedNoise, given) -> Tensor | None:
        """The classes asked for, checked, or those drawn from the prior."""
        if self.classes is None:
            if given is not None:
                raise FewstepError(f"{self.name} is unconditional: call sample without conditions")
            return None
        if given is None:
            return noise.classes(self.classes, self.prior)
        classes = whole_numbers(given, "conditions")
        if classes.shape != noise.seeds.shape:
            raise FewstepError(f"{len(noise.seeds)} seeds need as many conditions, got {len(classes)}")
        if classes.max() > self.classes - (not self.guidable):
            known = f"0 to {self.classes - 1}" + (f", or {self.classes} for no class" if self.guidable else "")
            raise FewstepError(f"conditions of {self.name} must be {known}, got {classes.max()}")
        return classes.to(self.device)

    def check(self, n_steps: int, guidance: float = 1.0) -> None:
        """Raise what `sample` would raise for these arguments, without any network call."""
        whole = isinstance(n_steps, int | np.integer) and not isinstance(n_steps, bool)
        if not whole:
            raise UnsupportedSteps(f"{self.name} cannot run in {n_steps!r} steps: give a whole number")
        if n_steps not in self.supported_steps:
            raise UnsupportedSteps(f"{self.name} cannot run in {n_steps!r} steps; it supports {self._supported()}")
        number = isinstance(guidance, int | float | np.number) and not isinstance(guidance, bool)
        if not number or not math.isfinite(guidance):
            raise FewstepError(f"guidance must be a finite number, got {guidance!r}")
        if guidance != 1 and not self.takes_guidance:
            raise Unsupported(f"{self.name} was distilled without guidance: leave guidance at 1")
        if guidance != 1 and self.classes is None:
            raise FewstepError(f"{self.name} is unconditional: guidance {guidance} needs classes; leave it at 1")
        if guidance != 1 and not self.guidable:
            raise FewstepError(f"{self.name} was trained without label dropout: leave guidance at 1")

    def _supported(self) -> str:
        steps = self.supported_steps
        if isinstance(steps, range) and steps:
            return f"{steps[0]} to {steps[-1]}"
        return ", ".join(map(str, steps)) or "none"


class SolverStudent(Student):
    """A teacher, a solver and a time grid.

    teacher: a Teacher, or a denoiser (students/diffusion/denoiser.py). solver: a function of students/solvers or one's
    own, or a name of students/spec.py. grid: a name of students/diffusion/grids.py, a list of times, or a FoundGrid,
    whose step counts are then those supported; None for that of the solver's name, else for the teacher's. Other
    options go to the solver.
    """

    family = "solver"

    def __init__(
        self,
        teacher,
        solver,
        grid=None,
        shape=None,
        *,
        name=None,
        grid_options=None,
        supported_steps=range(1, MAX_STEPS + 1),
        device=None,
        **options,
    ):
        teacher = as_teacher(teacher)
        self.denoiser, self.prior, self.classes = teacher.denoiser, teacher.prior, teacher.classes
        self.guidable = teacher.has_no_class
        self.device = device_of(self.denoiser) if device is None else torch.device(device)
        self.denoiser.to(self.device)
        if isinstance(solver, str):
            spec = parse(solver)
            name, solver, options = name or spec.name, import_object(spec.target), spec.options | options
            grid = grid or own_grid(spec, teacher.schedule)
        self.solver = solver
        self.grid, self.grid_options = grid or teacher.grid, grid_options or {}
        self.name = name or solver.__name__
        self.shape = tuple(shape or teacher.shape)
        self.supported_steps = supported_steps
        self.solver_options = options
        self.options = {"grid": self.grid, **self.grid_options, **options}
        if isinstance(self.grid, FoundGrid):
            if self.grid_options:
                raise FewstepError(f"{self.name} has the times of a file: leave {min(self.grid_options)} out")
            self.options["grid"] = {str(n): times for n, times in self.grid.times.items()}
            self.training = self.grid.cost
            self.supported_steps = sorted(n for n in self.grid.times if n in supported_steps)
            counts = self.supported_steps
        else:
            counts = [len(self.grid) - 1 if isinstance(self.grid, list | tuple) else 1]
        try:
            for n in counts:  # raises for times that are none, and a name or option that is wrong
                self.times(n)
        except FewstepError as error:
            raise FewstepError(f"{self.name}: {error}") from error

    def times(self, n_steps: int) -> Tensor:
        grid = self.grid.times[n_steps] if isinstance(self.grid, FoundGrid) else self.grid
        return make_grid(grid, self.denoiser.schedule, n_steps, **self.grid_options)

    def grid_name(self, n_steps: int) -> str:
        """The grid of so many steps, "list" for times that were given."""
        if isinstance(self.grid, FoundGrid):
            return self.grid.names.get(n_steps, "")
        return self.grid if isinstance(self.grid, str) else "list"

    def generate(self, n_steps, noise, conditions, guidance):
        times = self.times(n_steps)
        x = noise() * self.denoiser.schedule.sigma(times[0])
        return self.solver(guided(self.denoiser, conditions, guidance), x, times, noise=noise, **self.solver_options)


def own_grid(spec: Spec, schedule) -> str | None:
    """The grid of a solver whose spec names none (`default_grid`); None for the teacher's.

    That also where it is equal steps in t or sqrt(t), the time of a VP schedule, and the schedule is VE, whose time is
    the noise level.
    """
    grid = default_grid(spec)
    return None if isinstance(schedule, VE) and grid in (uniform.__name__, quadratic.__name__) else grid


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors lie; the CPU if it has none."""
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
