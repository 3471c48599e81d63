"""`python -m bench tune TASK`: for each solver and step count the best of all grids, on seeds that no block reaches.

Writes the file of `grid=best` (students/models/found_grids.py). Candidates are the named grids and those found for the
teacher whose file is there. A choice costs what sampling all candidates and finding those grids did.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from bench.context import Context, context_of
from bench.draw import check_samples, draw
from bench.measure import METRICS, metric_columns
from bench.plan import Cell, Setup
from bench.tasks import Task
from students.diffusion.grids import GRIDS
from students.errors import FewstepError
from students.models.found_grids import (
    BEST,
    GRID_KEYS,
    SEARCHES,
    TUNING_SEED,
    default_grid,
    grid_path,
    read_record,
    solver_key,
    write_record,
)
from students.models.teachers import TEACHERS, training_evaluations
from students.models.weights import state_hash
from students.provenance import commit
from students.solvers.adaptive import BudgetStudent
from students.spec import OBJECT, SOLVER, parse
from students.student import SolverStudent, Student

SAMPLES = 2000  # of each candidate


def tune(
    task: Task,
    students: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    out: Path | None = None,
    device: str = "cpu",
) -> Path:
    """Choose the grids of solvers, by default of the task's rows with `grid=best`, and add them to the file.

    steps: by default the task's. out: by default beside the teacher's weights. Each solver is written when all its
    steps are done; what the file has of others stays, if it was chosen for the same teacher in the same way. Raises
    FewstepError, before any sample, for a student that is no solver or names a grid.
    """
    if task.teacher not in TEACHERS and out is None:
        raise FewstepError(f"teacher {task.teacher} has no place of its own for grids: say where with --out PATH.json")
    path = out or grid_path(BEST, task.teacher)
    names = list(students or _rows(task))
    if not names:
        raise FewstepError(f"task {task.name!r} has no row with grid={BEST}: name solvers with --students")
    context = context_of(Setup(replace(task, metrics=(task.primary,)), (task.primary,), device))
    candidates = {name: _candidates(context, name) for name in names}
    seeds = range(TUNING_SEED, TUNING_SEED + SAMPLES)
    about = {
        "method": BEST,
        "teacher": {"name": task.teacher, "hash": state_hash(context.teacher.denoiser)},
        "metric": metric_columns(task.primary, task.extractor)[0],
        "seeds": [seeds.start, seeds.stop],
    }
    for name in tqdm(names, unit="solver"):
        row = _choose(context, candidates[name], steps or task.steps, seeds)
        kept = _solvers(path, about)
        write_record(path, {**about, "commit": commit(), "solvers": kept | {solver_key(parse(name)): row}})
    return path


def _rows(task: Task) -> list[str]:
    return [solver_key(spec) for spec in map(parse, task.students) if spec.options.get("grid") == BEST]


def _solvers(path: Path, about: dict) -> dict:
    """The solvers that a file has, if it says the same `about` them."""
    if not path.is_file():
        return {}
    record = read_record(path)
    return record.get("solvers", {}) if about.items() <= record.items() else {}


def _candidates(context: Context, name: str) -> dict[str, SolverStudent]:
    """The solver on each grid, its own first, which wins where several are as good."""
    spec, no_grid = parse(name), FewstepError(f"{name} is no solver on a grid: leave it out")
    if spec.kind not in (SOLVER, OBJECT):
        raise no_grid
    if named := set(spec.options) & set(GRID_KEYS):
        raise FewstepError(f"{name} names a grid ({min(named)}): give the solver alone")
    found = [grid for grid in SEARCHES if grid_path(grid, context.task.teacher).is_file()]
    grids = dict.fromkeys([default_grid(spec) or context.task.grid, *GRIDS, *found])
    separator = "," if spec.options.keys() - (spec.entry.options if spec.entry else {}).keys() else ":"
    students = {grid: context.student(f"{name}{separator}grid={grid}") for grid in grids}
    for student in students.values():
        if not isinstance(student, SolverStudent) or isinstance(student, BudgetStudent) or student.family != "solver":
            raise no_grid
    return students


def _choose(context: Context, students: dict[str, SolverStudent], steps: Sequence[int], seeds: range) -> dict:
    """What the file says of a solver: for each step count the best grid, its times, all distances; and the cost."""
    begin, task = time.monotonic(), context.task
    sign = 1 if METRICS[task.primary].better == "lower" else -1
    evaluations, rows = 0, {}
    for n in steps:
        distances: dict[str, float | None] = {}
        known: dict[tuple, float | None] = {}
        for grid, student in students.items():
            if n not in student.supported_steps:
                continue
            times = tuple(student.times(n).tolist())
            if times not in known:
                known[times], spent = distance(context, student, n, seeds)
                evaluations += spent
            distances[grid] = known[times]
        finite = {grid: sign * value for grid, value in distances.items() if value is not None}
        if finite:
            best = min(finite, key=lambda grid: finite[grid])
            rows[str(n)] = {"grid": best, "times": students[best].times(n).tolist(), "distances": distances}
    searches = [read_record(grid_path(grid, task.teacher))["cost"] for grid in students if grid in SEARCHES]
    evaluations += sum(cost["evaluations"] for cost in searches)
    seconds = time.monotonic() - begin + sum(cost["seconds"] for cost in searches)
    own = training_evaluations(task.teacher)
    relative = evaluations / own if own else None
    return {"cost": {"evaluations": evaluations, "relative": relative, "seconds": round(seconds, 1)}, "steps": rows}


def distance(context: Context, student: Student, n: int, seeds: range) -> tuple[float | None, int]:
    """The task's primary metric of a student's samples, None where they are not finite; and their evaluations."""
    task = context.task
    values, evaluations = measured(context, student, n, seeds)
    return values.get(metric_columns(task.primary, task.extractor)[0]), evaluations


def measured(context: Context, student: Student, n: int, seeds: range) -> tuple[dict[str, float], int]:
    """All metrics of the context, by column, of a student's samples, where they are finite; and their evaluations."""
    task, statistics, evaluations = context.task, context.collectors(), 0
    cell = Cell(student.name, n, 1.0, 0, {"seeds": [seeds.start, seeds.stop]})
    for batch in draw(student, cell, seeds, context.conditions(seeds, seeds), task.batch_size, context.device):
        evaluations += batch.nfe.rows
        try:
            check_samples(batch.samples, len(batch.seeds), task.shape, student.name)
        except FewstepError:
            return {}, evaluations
        for name, rows in context.rows(batch.samples, batch.conditions).items():
            statistics[name].update(rows)
    values: dict[str, float] = {}
    for name in context.setup.metrics:
        numbers = METRICS[name].compute(statistics, context.reference)
        values |= dict(zip(metric_columns(name, task.extractor), map(float, numbers), strict=True))
    return {column: value for column, value in values.items() if math.isfinite(value)}, evaluations
