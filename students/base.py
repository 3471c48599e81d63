"""What a student is, and how its network evaluations are counted."""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from students.diffusion.denoiser import guided
from students.diffusion.grids import make_grid
from students.diffusion.noise import SeedNoise
from students.errors import FewstepError, Unsupported, UnsupportedSteps
from students.registry import import_object, parse


class Student:
    """Turns seeds into samples in `n_steps`. Subclasses implement `generate`.

    shape: of one sample: (C, H, W) for images, (D,) for vectors.
    classes, prior: the number of classes (None if unconditional) and their probabilities.
    supported_steps: the step counts that make sense, a container.
    options: whatever else can change its samples, as plain JSON values; part of a cell's identity.
    family: "solver" for a teacher with a solver, "distilled" otherwise.
    takes_guidance: False for a network that was distilled without.
    """

    name = "student"
    family = "distilled"
    shape: tuple[int, ...]
    classes: int | None = None
    prior: Tensor | None = None
    supported_steps = range(1, 1001)
    device = torch.device("cpu")
    options: ClassVar[dict] = {}
    takes_guidance = True

    def generate(self, n_steps: int, noise: SeedNoise, labels: Tensor | None, guidance: float) -> Tensor:
        """Samples (len(noise.seeds), *shape), not yet clamped. All randomness comes from `noise`."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """The modules whose calls are network evaluations."""
        return _module_attributes(self)

    @torch.inference_mode()
    def sample(self, n_steps: int, seeds=range(16), labels=None, guidance: float = 1.0) -> Tensor:
        """One sample per seed, float32: (N, C, H, W) in [-1, 1], or (N, D).

        labels: (N,) classes; None draws each seed's class from the prior. guidance: w of classifier-free
        guidance. Raises UnsupportedSteps, Unsupported, or FewstepError for labels or guidance the student cannot take.
        """
        self.check(n_steps, guidance)
        noise = SeedNoise(seeds, self.shape, self.device)
        if self.classes is None:
            if labels is not None:
                raise FewstepError(f"{self.name} is unconditional: call sample without labels")
        elif labels is None:
            prior = torch.ones(self.classes) if self.prior is None else self.prior
            labels = noise.labels(prior.to(self.device))
        else:
            labels = torch.as_tensor(labels, device=self.device)
            if labels.shape != noise.seeds.shape:
                raise FewstepError(f"{len(noise.seeds)} seeds need as many labels, got shape {tuple(labels.shape)}")
            if len(labels) and not 0 <= labels.min() <= labels.max() <= self.classes:
                raise FewstepError(f"labels must be 0 to {self.classes - 1}, or {self.classes} for no class")
        x = self.generate(n_steps, noise, labels, guidance)
        if not torch.is_tensor(x) or not x.is_floating_point():
            got = x.dtype if torch.is_tensor(x) else type(x).__name__
            raise FewstepError(f"{self.name}: generate() must return a tensor of floating point numbers, got {got}")
        x = x.float()
        return x.clamp(-1, 1) if len(self.shape) == 3 else x

    def check(self, n_steps: int, guidance: float = 1.0) -> None:
        """Raise what `sample` would raise for these arguments, without any network call."""
        if type(n_steps) is not int or n_steps not in self.supported_steps:
            raise UnsupportedSteps(f"{self.name} cannot run in {n_steps} steps; it supports {self._supported()}")
        if guidance != 1 and not self.takes_guidance:
            raise Unsupported(f"{self.name} was distilled without guidance: leave guidance at 1")
        if guidance != 1 and self.classes is None:
            raise FewstepError(f"{self.name} is unconditional: guidance {guidance} needs classes; leave it at 1")

    def _supported(self) -> str:
        steps = self.supported_steps
        if isinstance(steps, range) and steps:
            return f"{steps[0]} to {steps[-1]}"
        return ", ".join(map(str, steps)) or "none"


def _module_attributes(student) -> list[nn.Module]:
    """Modules among the attributes, also those in lists, tuples and dicts."""
    found = []
    for value in vars(student).values():
        members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [member for member in members if isinstance(member, nn.Module)]
    return found


def networks_of(student) -> list[nn.Module]:
    """The networks of any student: what its `networks()` returns, else its attributes that are modules."""
    return student.networks() if hasattr(student, "networks") else _module_attributes(student)


class SolverStudent(Student):
    """A denoiser, a solver and a time grid.

    denoiser: see students/diffusion/denoiser.py. solver: a function of students/solvers or one's own, or a name of
    students/registry.py. grid: a name of students/diffusion/grids.py, or a list of times. Other options go to the
    solver.
    """

    family = "solver"

    def __init__(
        self,
        denoiser,
        solver,
        grid="log_snr",
        shape=None,
        *,
        name=None,
        grid_options=None,
        supported_steps=range(1, 1001),
        device=None,
        **options,
    ):
        self.denoiser = as_module(denoiser)
        self.device = device_of(self.denoiser) if device is None else torch.device(device)
        self.denoiser.to(self.device)
        if isinstance(solver, str):
            spec = parse(solver)
            name, solver, options = name or spec.name, import_object(spec.target), spec.options | options
        self.solver = solver
        self.grid, self.grid_options = grid, grid_options or {}
        self.name = name or solver.__name__
        self.shape = tuple(shape or denoiser.shape)
        self.classes = getattr(denoiser, "classes", None)
        self.prior = getattr(denoiser, "prior", None)
        self.supported_steps = supported_steps
        self.solver_options = options
        self.options = {"grid": grid, **self.grid_options, **options}
        if isinstance(grid, str):
            make_grid(grid, denoiser.schedule, 1, **self.grid_options)  # raises for a name or option that is wrong

    def check(self, n_steps, guidance=1.0):
        super().check(n_steps, guidance)
        if guidance != 1 and not getattr(self.denoiser, "has_no_class", True):
            raise FewstepError(f"{self.name} was trained without label dropout: leave guidance at 1")

    def times(self, n_steps: int) -> Tensor:
        return make_grid(self.grid, self.denoiser.schedule, n_steps, **self.grid_options)

    def generate(self, n_steps, noise, labels, guidance):
        times = self.times(n_steps)
        schedule = self.denoiser.schedule
        x = noise() * schedule.sigma(times[0])
        return self.solver(guided(self.denoiser, labels, guidance), x, times, noise=noise, **self.solver_options)


class FewStepStudent(SolverStudent):
    """A distilled network, sampled at noise levels that are given for each step count.

    levels: steps -> noise levels (times of its VE schedule), the last one the data end; the keys are what it supports.
    """

    family = "distilled"
    takes_guidance = False

    def __init__(self, denoiser, solver, levels: dict[int, list], **arguments):
        steps = tuple(sorted(levels))
        super().__init__(denoiser, solver, grid=levels[steps[0]], supported_steps=steps, **arguments)
        self.levels = levels
        self.options = {"levels": {str(n): levels[n] for n in steps}, **self.solver_options}

    def times(self, n_steps: int):
        return make_grid(self.levels[n_steps], self.denoiser.schedule, n_steps)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors lie; the CPU if it has none."""
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))


def as_module(denoise) -> nn.Module:
    """A denoiser that may be a plain callable as a module, so that its calls can be counted."""
    return denoise if isinstance(denoise, nn.Module) else _Callable(denoise)


class _Callable(nn.Module):
    def __init__(self, denoise):
        super().__init__()
        self.denoise = denoise
        self.schedule = denoise.schedule
        self.classes = getattr(denoise, "classes", None)

    def forward(self, x, t, labels=None):
        return self.denoise(x, t) if labels is None else self.denoise(x, t, labels)


@dataclass
class NFE:
    """Network evaluations in rows (one image through one network once) and the images they made.

    `setup_rows` were spent inside `setup()`, once for a student and not for each image.
    """

    rows: int = 0
    images: int = 0
    setup_rows: int = 0
    _inside: int = field(default=0, repr=False)

    @property
    def per_image(self) -> float:
        return self.rows / self.images if self.images else float("nan")


_in_setup = ContextVar("in_setup", default=False)


@contextmanager
def setup():
    """Mark network calls that prepare a student (calibration) rather than make an image."""
    token = _in_setup.set(True)
    try:
        yield
    finally:
        _in_setup.reset(token)


def batch_rows(args: tuple, kwargs: dict) -> int:
    """The rows of the batch that a network is called with: the length of the first tensor that has one, else 1."""
    return next((len(value) for value in (*args, *kwargs.values()) if torch.is_tensor(value) and value.ndim), 1)


@contextmanager
def count_nfe(student):
    """Count what `student.sample` costs inside the block, by hooks on its networks.

        with count_nfe(student) as nfe:
            student.sample(4)
        nfe.per_image

    A row of a batch is one evaluation, so guidance in one doubled batch counts two and an adaptive
    solver that drops finished rows counts what each row needed. A network called by another counted
    network is part of it. Raises FewstepError if the student shows no network.
    """
    networks = networks_of(student)
    if not networks:
        raise FewstepError(
            f"cannot count the network evaluations of {getattr(student, 'name', student)}: keep its networks "
            "as nn.Module attributes or return them from networks()"
        )
    nfe = NFE()

    def enter(module, args, kwargs):
        if nfe._inside == 0:
            rows = batch_rows(args, kwargs)
            if _in_setup.get():
                nfe.setup_rows += rows
            else:
                nfe.rows += rows
        nfe._inside += 1

    def leave(module, args, output):
        nfe._inside -= 1

    outer = vars(student).get("sample")  # that of another count, if this one is inside it
    plain_sample = student.sample

    def counted_sample(*args, **kwargs):
        images = plain_sample(*args, **kwargs)
        nfe.images += len(images)
        return images

    hooks = [n.register_forward_pre_hook(enter, with_kwargs=True) for n in networks]
    hooks += [n.register_forward_hook(leave, always_call=True) for n in networks]
    student.sample = counted_sample
    try:
        yield nfe
    finally:
        if outer is None:
            del student.sample
        else:
            student.sample = outer
        for hook in hooks:
            hook.remove()
