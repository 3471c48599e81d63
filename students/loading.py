"""`students.load`: from a spec to a student that samples."""

import inspect
import math

import torch

from students.base import FewStepStudent, SolverStudent, Student
from students.errors import FewstepError
from students.pretrained import load_model
from students.registry import METHODS, Spec, import_object, parse
from students.solvers.adaptive import BudgetStudent
from students.teachers import load_teacher

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_STEPS = 1000
SOLVER_ARGUMENTS = ["denoise", "x", "times"]
DEFAULT_GRID = "log_snr"
GRID_OPTIONS = ("rho", "t_max", "t_min")


def load(spec: str, task="digits", *, grid=None, device="cpu", dtype: str = "float32", **options) -> Student:
    """A student by spec (see students/registry.py).

    task: the name of a teacher, `package.module:attribute` of one, or a denoiser object; a spec that names a checkpoint
    samples from that instead.
    grid: the time grid of a solver, unless the spec names one, or a checkpoint; by default the teacher's.
    dtype: of the teacher's network. Other options go to the solver or factory; a factory is given `denoiser` and
    `device` if it takes arguments of these names. Raises FewstepError for unknown names and options.
    """
    parsed = parse(spec)
    options = parsed.options | options
    if spec_is_distilled(parsed):
        return _distilled(parsed, task, device, dtype, options)
    found = import_object(parsed.target)
    if not callable(found):
        return _checked(found, spec)
    if parsed.model:
        denoiser, grid = load_model(parsed.model, device, DTYPES[dtype]), None
    else:
        denoiser = load_teacher(task, device=device, dtype=DTYPES[dtype]) if isinstance(task, str) else task
    if is_solver(found):
        return _solver_student(found, parsed, denoiser, grid, device, options)
    takes = inspect.signature(found).parameters
    offered = {"denoiser": denoiser, "device": device}
    student = found(**{key: value for key, value in offered.items() if key in takes}, **options)
    student.name = parsed.name
    return _checked(student, spec)


def spec_is_distilled(parsed: Spec) -> bool:
    """Whether a spec names a distillation method, whose student has weights of its own."""
    return parsed.entry is not None and parsed.entry in METHODS.values()


def _distilled(parsed: Spec, task, device, dtype: str, options: dict) -> Student:
    from students.distillation.load import load_distilled

    name = task if isinstance(task, str) else getattr(task, "name", None)
    if name is None:
        raise FewstepError(f"{parsed.name!r} was distilled from a task's teacher: load it with the task's name")
    folder = options.pop("weights", None)
    if options:
        raise FewstepError(f"{parsed.name!r} takes no option {min(options)!r}: it takes weights")
    student = load_distilled(parsed.name.partition(":")[0], name, folder, device, DTYPES[dtype])
    student.name = parsed.name
    return student


def is_solver(found) -> bool:
    """Whether an object is a solver function `(denoise, x, times, ...)` rather than a factory of students."""
    return inspect.isfunction(found) and list(inspect.signature(found).parameters)[:3] == SOLVER_ARGUMENTS


def _solver_student(solver, parsed: Spec, denoiser, grid, device, options: dict) -> SolverStudent:
    parameters = inspect.signature(solver).parameters
    takes = [key for key in parameters if key not in (*SOLVER_ARGUMENTS, "noise")]
    known = [*takes, "grid", *GRID_OPTIONS]
    if bad := [key for key in options if key not in known]:
        raise FewstepError(f"{parsed.name!r} takes no option {bad[0]!r}: it takes {', '.join(known)}")
    numbers = [*GRID_OPTIONS, *(key for key in takes if isinstance(parameters[key].default, int | float))]
    if bad := [key for key in numbers if not _is_number(options.get(key, 0))]:
        raise FewstepError(f"{parsed.name!r}: {bad[0]} must be a number, got {options[bad[0]]!r}")
    if (levels := getattr(denoiser, "levels", None)) and not options.keys() & {"grid", *GRID_OPTIONS}:
        return FewStepStudent(denoiser, solver, levels, name=parsed.name, device=device, **options)
    arguments = {
        "grid": options.pop("grid", grid) or getattr(denoiser, "grid", None) or DEFAULT_GRID,
        "grid_options": {key: options.pop(key) for key in GRID_OPTIONS if key in options},
        "name": parsed.name,
        "device": device,
    }
    if "tolerance" in takes:
        return BudgetStudent(denoiser, solver, **arguments, **options)
    min_steps = parsed.entry.min_steps if parsed.entry else 1
    steps = range(min_steps, MAX_STEPS + 1)
    return SolverStudent(denoiser, solver, supported_steps=steps, **arguments, **options)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def _checked(student, spec: str):
    missing = [name for name in ("sample", "shape") if not hasattr(student, name)]
    if missing:
        raise FewstepError(f"{spec!r} is no student: it has no {missing[0]!r}; see students/base.py for what one is")
    return student
