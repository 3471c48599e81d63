"""`students.load`: from a spec to a student that samples."""

import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch

from students.conventions import CONVENTIONS
from students.conventions.afs import analytical_first_step
from students.conventions.student import ConventionStudent, convention_options
from students.errors import FewstepError
from students.models.found_grids import FoundGrid, is_found, other_teacher, read_found
from students.models.load import load_teacher
from students.models.public import load_model
from students.models.teacher import Teacher, as_teacher
from students.models.weights import state_hash
from students.options import Choices, Option, Range, check, describe
from students.samplers.levels import LevelsStudent
from students.samplers.load import load_trained
from students.solvers.adaptive import BudgetStudent
from students.spec import TRAINED, Spec, import_object, parse
from students.student import MAX_STEPS, SolverStudent, Student, own_grid

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SOLVER_ARGUMENTS = ["denoise", "x", "times"]
GRID_OPTIONS = {name: Option(name, float, 1.0, Range(0, 1e6, open=True)) for name in ("rho", "t_max")}
GRID_OPTIONS["t_min"] = Option("t_min", float, 0.0, Range(0))
CONVENTION = Option("convention", str, None, Choices(*CONVENTIONS))
AFS = Option("afs", bool, False)


def load(spec: str, task="digits", *, grid=None, device="cpu", dtype: str = "float32", **options) -> Student:
    """A student by spec (see students/spec.py).

    task: the name of a teacher, `package.module:attribute` of one, a Teacher, or a denoiser; a spec that names a
    checkpoint samples from that instead.
    grid: the time grid of a solver, unless the spec names one: a name of students/diffusion/grids.py, a list of times,
    or one that was found for the teacher (students/models/found_grids.py). By default that of the solver's authors
    (students/spec.py), of a public checkpoint with its own solver that of its card, of anybody's solver the teacher's.
    A spec with a `convention` (students/conventions) has the steps of that instead.
    dtype: of the teacher's network. Other options go to the solver or factory; a factory is given `denoiser`, `teacher`
    and `device` if it takes arguments of these names. Raises FewstepError for unknown names and options.
    """
    parsed = parse(spec)
    options = parsed.options | options
    if parsed.kind == TRAINED:
        return _trained(parsed, task, device, dtype, options)
    found = import_object(parsed.target)
    if not callable(found):
        if options:
            raise FewstepError(f"{spec!r} is a student already, which takes no options: leave {min(options)!r} out")
        return _checked(found, spec)
    if parsed.model:
        teacher = load_model(parsed.model, device, DTYPES[dtype])
    elif isinstance(task, str):
        teacher = load_teacher(task, device=device, dtype=DTYPES[dtype])
    else:
        teacher = as_teacher(task)
    if is_solver(found):
        solved = _solver_student(found, replace(parsed, options=options), teacher, grid, device, dtype)
        solved.options |= {"afs": True} if options.get("afs") else {}
        return solved
    takes = inspect.signature(found).parameters
    offered = {"denoiser": teacher.denoiser, "teacher": teacher, "device": device}
    student = found(**{key: value for key, value in offered.items() if key in takes}, **options)
    student.name = parsed.name
    return _checked(student, spec)


def _trained(parsed: Spec, task, device, dtype: str, options: dict) -> Student:
    name = task if isinstance(task, str) else as_teacher(task).name
    if name is None:
        raise FewstepError(f"{parsed.name!r} was distilled from a task's teacher: load it with the task's name")
    folder = options.pop("weights", None)
    student = load_trained(parsed.head, name, folder, device, DTYPES[dtype], options)
    student.name = parsed.name
    return student


def is_solver(found) -> bool:
    """Whether an object is a solver function `(denoise, x, times, ...)` rather than a factory of students."""
    return inspect.isfunction(found) and list(inspect.signature(found).parameters)[:3] == SOLVER_ARGUMENTS


def _solver_student(solver, parsed: Spec, teacher: Teacher, grid, device, dtype: str) -> SolverStudent:
    takes = describe(solver, (*SOLVER_ARGUMENTS, "noise", "callback"))
    known = takes | _step_options(parsed) | {"convention": CONVENTION, "afs": AFS}
    parameters = inspect.signature(solver).parameters.values()
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if "noise" not in inspect.signature(solver).parameters and not anything:
        raise FewstepError(f"{parsed.name!r} takes no noise: a solver is a function (denoise, x, times, *, noise=None)")
    if anything:
        known |= {name: Option(name, object) for name in parsed.options if name not in known}
    options = check(repr(parsed.name), parsed.options, known)
    convention = options.pop("convention", None)
    if options.pop("afs", False):
        solver = analytical_first_step(solver, parsed.name)
    fewest = parsed.entry.min_steps if parsed.entry else 1
    if convention:
        own = {key: options.pop(key) for key in convention_options(convention) if key in options}
        return ConventionStudent(
            teacher, solver, convention, own, name=parsed.name, fewest=fewest, device=device, **options
        )
    if teacher.levels and not options.keys() & {"grid", *GRID_OPTIONS}:
        student = LevelsStudent(teacher.denoiser, teacher.levels, solver, device=device, **options)
        student.name = parsed.name
        return student
    chosen = options.pop("grid", grid) or own_grid(parsed, teacher.schedule)
    arguments = {
        "grid": _found(chosen, parsed, teacher, dtype) if is_found(chosen) else chosen,
        "grid_options": {key: options.pop(key) for key in GRID_OPTIONS if key in options},
        "name": parsed.name,
        "device": device,
    }
    if "tolerance" in takes:
        return BudgetStudent(teacher, solver, **arguments, **options)
    given = arguments["grid"]
    steps = (len(given) - 1,) if isinstance(given, list | tuple) else range(fewest, MAX_STEPS + 1)
    return SolverStudent(teacher, solver, supported_steps=steps, **arguments, **options)


def _step_options(parsed: Spec) -> dict[str, Option]:
    """What says where the steps go: a grid with its options, or a convention with its own."""
    convention = CONVENTION.check(parsed.options.get("convention"), repr(parsed.name))
    if convention is None:
        return {"grid": Option("grid", object)} | GRID_OPTIONS
    if "grid" in parsed.options:
        raise FewstepError(f"{parsed.name!r}: a convention has the steps of its own: leave grid out, or convention")
    return convention_options(convention)


def _found(grid: str, parsed: Spec, teacher: Teacher, dtype: str) -> FoundGrid:
    """A grid from a file; raises FewstepError if it was found for another teacher, told by its weights in float32."""
    found = read_found(grid, parsed, teacher.name)
    if dtype != "float32" and teacher.name:
        teacher = load_model(teacher.name) if parsed.model else load_teacher(teacher.name)
    if state_hash(teacher.denoiser) != found.teacher:
        raise FewstepError(f"{parsed.name}: {other_teacher(grid, parsed, teacher.name)}")
    return found


def _checked(student, spec: str):
    missing = [name for name in ("sample", "shape") if not hasattr(student, name)]
    if missing:
        raise FewstepError(f"{spec!r} is no student: it has no {missing[0]!r}; see students/student.py for what one is")
    if not isinstance(student.shape, Sequence):
        raise FewstepError(
            f"the shape of {spec!r} must be (C, H, W) of images or (D,) of vectors, got {student.shape!r}"
        )
    return student
