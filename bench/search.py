"""`python -m bench search TASK`: every distillation method under the same few learning rates and dropouts.

Each trial trains for the same share of its method's own training, and is measured on the seeds that choose grids, which
no block of a task reaches. What the methods' files say was chosen by this; a row of the table is a trial.
"""

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from bench.context import Context
from bench.measure import metric_columns
from bench.plan import Setup
from bench.tasks import Task
from bench.tune import SAMPLES, distance
from students.errors import FewstepError, unknown
from students.models.found_grids import TUNING_SEED
from students.models.teachers import TEACHERS, training_evaluations
from students.models.weights import record_path
from students.samplers.record import weights_files
from students.spec import METHODS
from students.training.distill import method_class, train_method
from students.training.settings import merged_settings

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
    if task.teacher not in TEACHERS:
        raise FewstepError(f"teacher {task.teacher} is none that methods are trained for: take a task of {[*TEACHERS]}")
    for name in methods or ():
        if name not in METHODS:
            raise unknown("method", name, list(METHODS))
    path = out or Path("reports", task.name, "search.csv")
    context = Context(Setup(replace(task, metrics=(task.primary,)), (task.primary,), device))
    for trial in tqdm([(name, *trial) for name in methods or METHODS for trial in TRIALS], unit="trial"):
        if trial not in _known(path):
            _append(path, dict(zip(KEY, trial, strict=True)) | _measured(context, *trial))
    return path


def _known(path: Path) -> set[tuple]:
    """The trials that a table has."""
    return set(pd.read_csv(path)[KEY].itertuples(index=False, name=None)) if path.is_file() else set()


def _append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([row]).to_csv(path, mode="a", header=not path.is_file(), index=False, float_format="%.6g")


def _measured(context: Context, name: str, factor: float, dropout: float) -> dict:
    """What a trial cost, and the distances of what came of it."""
    task, kind = context.task, method_class(name)
    own = merged_settings(kind, {}, vectors=task.kind == "vector")
    lr = factor * own["lr"]
    pairs = own["pairs"] * kind.pairs.steps / training_evaluations(task.teacher) if kind.pairs else 0.0
    folder = Path("run", "search", task.name)
    weights = folder / f"{name}-{factor:g}-{dropout:g}"
    if kind.after:
        _copy(weights_files(None, kind.after, task.teacher).values(), weights)
    train_method(
        name, task.teacher, weights, device=context.device, state=folder / "train" / weights.name,
        budget=pairs + SHARE * (kind.budget - pairs), settings={"lr": lr, "dropout": dropout},
    )  # fmt: skip
    student, column = context.student(f"{name}:weights={weights}"), metric_columns(task.primary, task.extractor)[0]
    seeds = range(TUNING_SEED, TUNING_SEED + SAMPLES)
    found = {n: distance(context, student, n, seeds)[0] for n in STEPS if n in student.supported_steps}
    logs = [math.nan if value is None else math.log(value) for value in found.values()]
    return {
        "lr": lr,
        "evaluations": student.training["evaluations"],
        "seconds": student.training["seconds"],
        **{f"{column}@{n}": found.get(n) for n in STEPS},
        "geometric_mean": math.exp(math.fsum(logs) / len(logs)),
    }


def _copy(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        for part in (file, record_path(file)):
            shutil.copy(part, folder)
