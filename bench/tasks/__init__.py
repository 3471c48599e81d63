"""A task says what is measured on what: one YAML file, and the dataclass it loads into.

`load_task("digits")` reads bench/tasks/digits.yaml; `load_task("my/task.yaml")` reads one's own.
Importing this module imports no torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from bench.yaml_files import filled, read_mapping
from students.errors import FewstepError, unknown

FOLDER = Path(__file__).parent
ROUNDINGS = ("round", "truncate")


@dataclass(frozen=True)
class Task:
    """A task; the keys of its YAML file are these fields.

    version: raise it when the meaning of the task's numbers changes; it is part of every cell's id.
    data: a name of students/data.py. teacher: a name of students/models/teachers.py. Either may be
        `package.module:attribute` of a function without arguments.
    shape: (C, H, W) of an image or (D,) of a vector. classes: how many, or null for an unconditional task.
    students: specs (students/spec.py) of the default sweep. grid: the time grid of solvers that have none of their own,
        and of the teacher's samples that faithfulness compares with. steps: the default step counts.
    samples: per seed block, compared with the training half of the data. seed_blocks: block k is the seeds
        k * samples ... (k + 1) * samples - 1. guidance: scales of classifier-free guidance; 1 is none.
    extractor: a name of bench/measure/extractors.py, or null for a vector task. extractor_otherwise: where its weights
        are missing.
    metrics: names of bench/measure METRICS. primary: the one whose first column plots and leaderboards rank by.
    rounding: of samples to 8 bits, "round" or "truncate". batch_size: of sampling; the throughput batch.
    threads: of each process that computes on a CPU; more than one pays only for large networks with cores to spare.
    """

    name: str
    version: int
    summary: str
    data: str
    teacher: str
    shape: tuple[int, ...]
    classes: int | None
    students: tuple[str, ...]
    grid: str
    steps: tuple[int, ...]
    samples: int
    seed_blocks: int
    extractor: str | None
    metrics: tuple[str, ...]
    primary: str
    batch_size: int
    guidance: tuple[float, ...] = (1.0,)
    rounding: str = "round"
    extractor_otherwise: str | None = None
    threads: int = 1

    @property
    def kind(self) -> str:
        return "image" if len(self.shape) == 3 else "vector"


def task_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_task(name: str) -> Task:
    """Read and check a task by name or by the path of its YAML file.

    Raises FewstepError for an unknown task, a file that is no YAML mapping, or a key that is unknown,
    missing, or of the wrong type.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        if path.parent == FOLDER:
            raise unknown("task", name, task_names())
        raise FewstepError(f"no task file {name}: give the path of a YAML file, or one of {', '.join(task_names())}")
    return _checked(filled(Task, read_mapping(path, "task"), path), path)


def _checked(task: Task, path: Path) -> Task:
    if task.rounding not in ROUNDINGS:
        raise FewstepError(f"{path}: {unknown('rounding', task.rounding, ROUNDINGS)}")
    for key in ("samples", "seed_blocks", "batch_size", "version", "threads"):
        if (value := getattr(task, key)) < 1:
            raise FewstepError(f"{path}: key {key!r} must be at least 1, got {value}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", task.name):
        raise FewstepError(f"{path}: key 'name' names folders: letters, digits, '_', '.' and '-', got {task.name!r}")
    if len(task.shape) not in (1, 3) or min(task.shape) < 1:
        raise FewstepError(f"{path}: key 'shape' must be [C, H, W] of images or [D] of vectors, got {[*task.shape]}")
    if task.classes is not None and task.classes < 1:
        raise FewstepError(f"{path}: key 'classes' must be at least 1, or null for none, got {task.classes}")
    for key in ("students", "steps", "metrics", "guidance", "grid"):
        if not getattr(task, key):
            raise FewstepError(f"{path}: key {key!r} must not be empty")
    if task.primary not in task.metrics:
        raise FewstepError(f"{path}: key 'primary': {unknown('metric of the task', task.primary, task.metrics)}")
    if task.kind == "image" and task.extractor is None:
        raise FewstepError(f"{path}: an image task needs an extractor (see python -m bench list metrics)")
    return task
