"""Trainings that say how much the settings and the seed of a training matter, measured like any student.

    python -m bench search TASK    every method under the same few learning rates and dropouts
    python -m bench repeat TASK    methods again from other training seeds: the spread over them

A search measures on the seeds that choose grids, which no block of a task reaches; `repeat` on the task's first block,
where students are compared. Weights come to run/trials, and what is continued from there is what was interrupted.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from bench.context import Context
from bench.measure import metric_columns
from bench.plan import Setup
from bench.tasks import Task
from bench.tune import SAMPLES, distance
from students.errors import FewstepError, unknown
from students.files import write_atomically
from students.models.found_grids import TUNING_SEED
from students.models.teachers import TEACHERS, training_evaluations
from students.models.weights import record_path
from students.provenance import commit
from students.samplers.record import read_records, weights_files
from students.spec import METHODS
from students.student import Student
from students.training.distill import method_class, train_method
from students.training.settings import merged_settings, own_budget

SHARE = 1 / 8  # of a method's own training, without its noise-image pairs
STEPS = (1, 2, 4, 8)
TRIALS = ((1, 0.0), (0.5, 0.0), (2, 0.0), (1, 0.1))  # the learning rate relative to the method's own; dropout
KEY = ["method", "relative_lr", "dropout"]


def search(task: Task, methods: Sequence[str] | None = None, out: Path | None = None, device: str = "cpu") -> Path:
    """Train and measure the trials of these methods, by default of all, and add them to a CSV file, `out`.

    A row: method, relative_lr, dropout, lr, the evaluations and seconds of the training, the task's primary metric at
    those of STEPS that the method can take, and their geometric mean. Trials that the file has are not made again.
    Raises FewstepError for an unknown method, and for a task whose teacher has no place of its own for weights.
    """
    names, context = checked(task, methods, list(METHODS)), _context(task, device)
    path = out or Path("reports", task.name, "search.csv")
    for trial in tqdm([(name, *trial) for name in names for trial in TRIALS], unit="trial"):
        if trial not in known(path, KEY):
            append(path, dict(zip(KEY, trial, strict=True)) | _measured(context, *trial))
    return path


def repeat(task: Task, methods: Sequence[str], seeds: Sequence[int], device: str = "cpu") -> list[Path]:
    """Train methods again as their weights were, from other training seeds, and measure them as the task does.

    Adds to the record of the weights that ship, whose paths are returned, `repeats`: by column of the task's primary
    metric the samples, the training seeds, and by step count the values of each. Raises FewstepError as `search` does,
    and where those weights were trained from one of these seeds.
    """
    names, context = checked(task, methods, ()), _context(task, device)
    files = {name: weights_files(None, name, task.teacher) for name in names}
    records = {name: read_records(files[name], name, task.teacher) for name in names}
    for name, stages in records.items():
        own = next(iter(stages.values()))["seed"]
        if own in seeds or len({*seeds}) < len(seeds):
            raise FewstepError(f"{name} was trained from seed {own}: give other ones, each once")
    paths = []
    for name in tqdm(names, unit="method"):
        record, kind = list(records[name].values())[-1], method_class(name)
        kept = math.fsum(
            share for stage, share in zip(kind.stages, kind.shares, strict=True) if stage not in kind.passing
        )
        steps = sum(stage["planned_steps"] for stage in records[name].values())
        settings = record["settings"] | {"steps": round(steps / kept)}
        if "pairs" in record:
            settings["pairs"] = record["pairs"]["count"]
        found = [_repeated(context, name, seed, record["options"], settings) for seed in seeds]
        values = {str(n): [values[n] for values in found] for n in found[0]}
        column = metric_columns(task.primary, task.extractor)[0]
        record["repeats"] = {column: {"samples": task.samples, "seeds": [*seeds], "values": values}}
        paths.append(record_path(list(files[name].values())[-1]))
        write_atomically(paths[-1], (json.dumps(record, indent=1) + "\n").encode())
    return paths


def checked(task: Task, methods: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    """Those methods, or the default. Raises FewstepError for an unknown one, and a task that none is trained on."""
    if task.teacher not in TEACHERS:
        raise FewstepError(f"teacher {task.teacher} is none that methods are trained for: take a task of {[*TEACHERS]}")
    for name in methods or ():
        if name not in METHODS:
            raise unknown("method", name, list(METHODS))
    return list(methods or default)


def _context(task: Task, device: str) -> Context:
    return Context(Setup(replace(task, metrics=(task.primary,)), (task.primary,), device))


def known(path: Path, key: list[str]) -> set[tuple]:
    """The rows that a table has, by the columns `key`; raises FewstepError for another table."""
    if not path.is_file():
        return set()
    try:
        return set(pd.read_csv(path)[key].itertuples(index=False, name=None))
    except (KeyError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise FewstepError(f"{path} is no table with {', '.join(key)}: move it away") from error


def append(path: Path, *rows: dict) -> None:
    """Add rows to a table, or begin it."""
    table = pd.DataFrame(rows)
    if path.is_file():
        table = pd.concat([pd.read_csv(path), table])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, table.to_csv(index=False, float_format="%.6g").encode())


def _measured(context: Context, name: str, factor: float, dropout: float) -> dict:
    """What a trial of a search cost, and the distances of what came of it."""
    task, kind = context.task, method_class(name)
    own = merged_settings(kind, {}, vectors=task.kind == "vector")
    settings = {"lr": factor * own["lr"], "dropout": dropout}
    pairs = own["pairs"] * kind.pairs.steps / training_evaluations(task.teacher) if kind.pairs else 0.0
    budget = pairs + SHARE * (own_budget(kind, task.kind == "vector") - pairs)
    student = trained(context, name, f"{factor:g}-{dropout:g}", budget=budget, settings=settings)
    found = _distances(context, student, range(TUNING_SEED, TUNING_SEED + SAMPLES))
    logs = [math.nan if value is None else math.log(value) for value in found.values()]
    return {
        "lr": settings["lr"],
        "evaluations": student.training["evaluations"],  # type: ignore[attr-defined]
        "seconds": student.training["seconds"],  # type: ignore[attr-defined]
        **{f"{metric_columns(task.primary, task.extractor)[0]}@{n}": found.get(n) for n in STEPS},
        "geometric_mean": math.exp(math.fsum(logs) / len(logs)),
    }


def _repeated(context: Context, name: str, seed: int, options: dict, settings: dict) -> dict[int, float | None]:
    student = trained(context, name, f"seed-{seed}", seed=seed, options=options, settings=settings)
    return _distances(context, student, range(context.task.samples))


def trials_folder(task: Task) -> Path:
    """Where the weights of all trials of a task lie, a folder each."""
    return Path("run", "trials", task.name)


def trial_weights(task: Task, method: str, trial: str) -> Path:
    """The folder of the weights of a trial."""
    return trials_folder(task) / f"{method}-{trial}"


def trained(context: Context, name: str, trial: str, **how) -> Student:
    """A method's student, trained as `how` says; what it starts from is what ships."""
    task, kind = context.task, method_class(name)
    weights = trial_weights(task, name, trial)
    if kind.after:
        weights.mkdir(parents=True, exist_ok=True)
        for file in weights_files(None, kind.after, task.teacher).values():
            for part in (file, record_path(file)):
                shutil.copy(part, weights)
    if not _made(weights, name, task.teacher, **how):
        state = trials_folder(task) / "train" / weights.name
        train_method(name, task.teacher, weights, device=context.device, state=state, **how)
    return context.student(f"{name}:weights={weights}")


def _made(
    weights: Path, name: str, teacher: str, seed: int = 0, options: dict | None = None, settings: dict | None = None,
    budget: float | None = None,
) -> bool:  # fmt: skip
    """Whether weights of this training, by the code as it is, are there; never of a budget, which no record has."""
    try:
        record = next(iter(read_records(weights_files(weights, name, teacher), name, teacher).values()))
    except FewstepError:
        return False
    made = record["settings"] | {"pairs": record.get("pairs", {}).get("count")}
    chosen = asdict(method_class(name).Options(**(options or {})))
    alike = all(made.get(key) == value for key, value in (settings or {}).items())
    same = (record["seed"], record["options"], record.get("commit")) == (seed, chosen, commit())
    return budget is None and alike and same


def _distances(context: Context, student: Student, seeds: range) -> dict[int, float | None]:
    """The task's primary metric of the samples of these seeds, at those of STEPS that the student can take."""
    return {n: distance(context, student, n, seeds)[0] for n in STEPS if n in student.supported_steps}
