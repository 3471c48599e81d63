"""Time grids that were found for a teacher, read from files: one for each step count, and what finding them cost.

    grid=gits, grid=ays     written by `python -m students schedule`, for any solver
    grid=best               written by `python -m bench tune`: for each solver and step count the best of the others
    grid=PATH.json          either of these, of one's own

The files of a teacher with a name lie beside its weights, `grid-gits.json`. Each holds the hash of the teacher it was
made for, `students.models.weights.state_hash`, so that no other one is sampled with it. Importing this module imports
no torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from students.errors import FewstepError
from students.files import write_atomically
from students.models.cards import FILE, load_card
from students.models.teachers import TEACHERS, weights_folder
from students.spec import Spec

SEARCHES, BEST = ("gits", "ays"), "best"
TUNING_SEED = 5_000_000  # seeds from here on choose grids; no block of a task reaches them
GRID_KEYS = ("grid", "rho", "t_max", "t_min")  # options that say which grid


@dataclass(frozen=True)
class FoundGrid:
    """times: steps -> n + 1 decreasing times. names: steps -> the grid these are of. teacher: the hash of its teacher.

    cost: `evaluations` of networks and `seconds` that finding it took, all step counts together, and `relative`: to the
    evaluations of the teacher's own training, None where these are not known.
    """

    times: dict[int, list[float]]
    names: dict[int, str]
    teacher: str
    cost: dict


def is_found(grid) -> TypeGuard[str]:
    """Whether a grid is one that this module reads, rather than a name of students/diffusion/grids.py or a list."""
    return isinstance(grid, str) and (grid in (*SEARCHES, BEST) or grid.endswith(".json"))


def default_grid(spec: Spec) -> str | None:
    """The grid of a solver whose spec names none: that of a card whose own solver it is, else that of its authors.

    None for a solver that says nothing, which takes the teacher's.
    """
    if spec.model and not spec.model.startswith(f"{FILE}:"):
        card = load_card(spec.model)
        if card.grid and card.solver == spec.head:
            return card.grid
    return spec.entry.grid.name if spec.entry and spec.entry.grid else None


def grid_path(grid: str, teacher: str) -> Path:
    """Where the file of a grid lies by default."""
    return weights_folder(teacher) / f"grid-{grid}.json"


def solver_key(spec: Spec) -> str:
    """A solver as a file of best grids calls it: `dpm_solver_pp:order=3`, its spec without model and grid."""
    own = spec.entry.options if spec.entry else {}
    options = {key: value for key, value in spec.options.items() if key not in GRID_KEYS and own.get(key) != value}
    name = spec.head if spec.entry else spec.target
    return name + ":" * bool(options) + ",".join(f"{key}={options[key]}" for key in sorted(options))


def read_found(grid: str, spec: Spec, teacher: str | None) -> FoundGrid:
    """The grid of a solver and a teacher, by the name of its file or its path; raises FewstepError, with the command
    that makes it, where there is none, or none of this solver, and for a file that is none."""
    path = _path(grid, spec, teacher)
    record = read_record(path)
    try:
        if "solvers" in record:
            key = solver_key(spec)
            if key not in record["solvers"]:
                raise FewstepError(f"{path} has no grid of {key}: {_command(BEST, teacher, key)} adds it")
            chosen = record["solvers"][key]
            steps = {int(n): (row["times"], row["grid"]) for n, row in chosen["steps"].items()}
            cost = chosen["cost"]
        else:
            steps = {int(n): (times, record["method"]) for n, times in record["times"].items()}
            cost = record["cost"]
        return FoundGrid(
            {n: [float(t) for t in times] for n, (times, _) in steps.items()},
            {n: str(name) for n, (_, name) in steps.items()},
            record["teacher"]["hash"],
            {"evaluations": cost["evaluations"], "relative": cost["relative"], "seconds": cost["seconds"]},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FewstepError(f"{path} is no file of grids, or not whole: {_command(grid, teacher)} writes one") from error


def _path(grid: str, spec: Spec, teacher: str | None) -> Path:
    if grid not in (*SEARCHES, BEST):
        path = Path(grid).expanduser()
        if not path.is_file():
            raise FewstepError(f"there is no file of grids {grid}: {_command('gits', teacher)} writes one")
        return path
    if spec.model or teacher not in TEACHERS:
        advice = "name a grid, or the path of a file" if grid == BEST else f"{_command(grid, teacher)} makes one"
        raise FewstepError(f"no {grid} grid ships for {spec.model or teacher or 'this teacher'}: {advice}")
    path = grid_path(grid, teacher)
    if not path.is_file():
        raise FewstepError(
            f"there is no {grid} grid of {teacher}: {_command(grid, teacher, solver_key(spec))} makes it"
        )
    return path


def other_teacher(grid: str, spec: Spec, teacher: str | None) -> str:
    """What is wrong with a grid that was found for another teacher, and the command that mends it."""
    return f"grid {grid} was found for another teacher: {_command(grid, teacher, solver_key(spec))} finds this one's"


def _command(grid: str, teacher: str | None, solver: str = "SOLVER") -> str:
    """What makes a file; a teacher without a place of its own needs --out, whose path is the grid then."""
    if grid == BEST:
        return f"`python -m bench tune {teacher or 'TASK'} --students {solver}`"
    out = "" if teacher in TEACHERS else " --out PATH.json`, named as `grid=PATH.json"
    return f"`python -m students schedule {grid if grid in SEARCHES else 'gits'} --task {teacher or 'TEACHER'}{out}`"


def read_record(path: Path) -> dict:
    """The content of a file of grids; raises FewstepError for one that cannot be read or is none."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FewstepError(f"{path} cannot be read as a file of grids: delete it, and make it again") from error
    if not isinstance(record, dict) or not {"teacher", "method"} <= record.keys():
        raise FewstepError(f"{path} is no file of grids: delete it, and make it again")
    return record


def write_record(path: Path, record: dict) -> None:
    """Write a file of grids, whole or not at all, a line for each step count; raises FewstepError if it cannot be."""
    try:
        write_atomically(path, (_lines(record) + "\n").encode())
    except OSError as error:
        raise FewstepError(f"cannot write {path} ({error.strerror}): give another path with --out") from error


def _lines(value, depth: int = 0) -> str:
    """JSON with a line for each entry of a mapping, lists in one line; a mapping of plain values in one line too."""
    if not isinstance(value, dict) or (depth and not any(isinstance(item, dict | list) for item in value.values())):
        return json.dumps(value)
    inner = ",\n".join(f"{' ' * (depth + 1)}{json.dumps(str(key))}: {_lines(value[key], depth + 1)}" for key in value)
    return "{\n" + inner + "\n" + " " * depth + "}"
