"""The plan of a sweep: which cells there are, what each one's numbers depend on, and how it is cut into shards.

Imports no torch, so that a run whose cells are all present only reads them.
"""

import math
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from bench.identity import digest
from bench.measure import METRICS, TEACHER_SOLVER, TEACHER_STEPS
from bench.measure.extractors import extractor_identity, extractor_problem
from bench.subjects import data_code, grid_taken, student_identity, teacher_identity
from bench.tasks import Task
from students.errors import FewstepError, unknown
from students.models.cards import check_fits
from students.spec import parse

# Pseudo-students: held-out data, which are the floor, and the teacher's own images, in many steps
REAL, TEACHER = "real", "teacher"
SHARD = 5000  # samples
SEEDS = 2**40  # of a task; data of mixtures are drawn from those above


def needs(metrics: Iterable[str], representation: str) -> bool:
    """Whether one of the metrics compares this representation."""
    return any(representation in METRICS[name].needs for name in metrics)


@dataclass(frozen=True)
class Setup:
    """What all cells of a run have in common and no cell says: plain and small, so that it travels to any process.

    device: a name, such as "cuda". run: tells runs apart, so that none finds what another one loaded.
    """

    task: Task
    metrics: tuple[str, ...]
    device: str = "cpu"
    dtype: str = "float32"
    save_images: bool = False
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    def needs(self, representation: str) -> bool:
        """Whether a metric, of the task or asked for, compares this representation."""
        return needs({*self.task.metrics, *self.metrics}, representation)


@dataclass(frozen=True)
class Cell:
    """One planned (student, steps, guidance, seed block) of a task.

    `identity` holds everything that can change its numbers; `id` is the hash of it.
    """

    student: str
    steps: int
    guidance: float
    seed_block: int
    identity: dict = field(hash=False, compare=False, repr=False)

    @property
    def id(self) -> str:
        return digest(self.identity)

    @property
    def block(self) -> range:
        """The seeds of its block."""
        return range(*self.identity["seeds"])

    @property
    def title(self) -> str:
        if self.student == REAL:
            return "real against real"
        guidance = "" if self.guidance == 1 else f", guidance {self.guidance:g}"
        return f"{self.student}, {self.steps} steps{guidance}, block {self.seed_block}"

    def shards(self, batch_size: int) -> list[range]:
        """Its seeds in parts of about SHARD, of whole batches; the floor, which draws none, has one part.

        They are the same whoever computes them, so that the numbers are too.
        """
        if self.student == REAL:
            return [range(0)]
        size = math.ceil(SHARD / batch_size) * batch_size
        return [self.block[start : start + size] for start in range(0, len(self.block), size)]


def resolve_extractor(task: Task, asked: str | None = None) -> Task:
    """The task with the extractor asked for; else its own, or the other it names where the weights of that are missing.

    The second choice is said on standard error, and shows in the names of the columns.
    """
    if asked is not None and task.kind == "vector":
        raise FewstepError(f"task {task.name!r} compares vectors as they are: leave --extractor out")
    if asked is not None:
        return replace(task, extractor=asked)
    if task.extractor_otherwise:
        return replace(task, extractor=available(task.extractor, task.extractor_otherwise))  # type: ignore[arg-type]
    return task


def available(extractor: str, otherwise: str) -> str:
    """The extractor, or the other one where the weights of the first are missing, which standard error says then."""
    if problem := extractor_problem(extractor):
        print(f"note: measuring with {otherwise}, because {problem}", file=sys.stderr)
        return otherwise
    return extractor


def check_metrics(task: Task, metrics: Sequence[str]) -> None:
    """Raise FewstepError for a metric that is unknown, made for another kind of task, or compares with classes."""
    for name in metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
        if METRICS[name].kind != task.kind:
            fitting = ", ".join(key for key, metric in METRICS.items() if metric.kind == task.kind)
            raise FewstepError(f"metric {name!r} needs {METRICS[name].kind} samples; {task.name} has: {fitting}")
        if "agreement" in METRICS[name].needs and task.classes is None:
            raise FewstepError(f"metric {name!r} compares with classes, and {task.name} has none: leave it out")


def plan(
    task: Task, runs: Sequence[tuple[str, int, float]], dtype: str = "float32", first_block: int = 0
) -> list[Cell]:
    """The real-against-real floor, then a cell for every (student, steps, guidance) and seed block.

    Where a task compares with the teacher's images, these are cells too. Raises FewstepError for what can be known to
    be wrong before any work: unknown students, steps that are not positive, guidance on an unconditional task, missing
    or altered weights.
    """
    if task.samples * (first_block + task.seed_blocks) > SEEDS:
        raise FewstepError(
            f"seed blocks up to {first_block + task.seed_blocks} of {task.samples} samples pass the last seed, 2^40: "
            "take fewer"
        )
    common = {
        "task": task.name,
        "version": task.version,
        "samples": task.samples,
        "rounding": task.rounding,
        "shape": list(task.shape),
        "reference": {"data": task.data, "code": data_code(task.data)},
        "extractor": None if task.extractor is None else extractor_identity(task.extractor),
    }
    cells = [Cell(REAL, 0, 1.0, 0, common | {"student": REAL})]
    common |= {} if task.classes is None else {"conditions": "stratified"}
    teacher = teacher_identity(task.teacher)
    own = dict.fromkeys((TEACHER, TEACHER_STEPS, guidance) for name, _, guidance in runs if not parse(name).model)
    for name, steps, guidance in [*(own if needs(task.metrics, "faithfulness") else ()), *dict.fromkeys(runs)]:
        if not math.isfinite(guidance):
            raise FewstepError(f"guidance must be a finite number, got {guidance}")
        if steps < 1:
            raise FewstepError(f"steps must be whole numbers of at least 1, got {steps}")
        if guidance != 1 and task.classes is None:
            raise FewstepError(f"task {task.name!r} is unconditional: guidance needs classes; leave --guidance out")
        spec = parse(f"{TEACHER_SOLVER}:grid={task.grid}" if name == TEACHER else name)
        if spec.model:
            check_fits(spec.model, task.shape, task.classes)
        student = student_identity(spec.name, task) | ({"role": TEACHER} if name == TEACHER else {})
        if times := grid_taken(spec, task, steps):
            student = student | {"times": times}
        for block in range(first_block, first_block + task.seed_blocks):
            identity = common | {
                "student": student,
                "teacher": None if spec.model else teacher | {"grid": task.grid},  # of faithfulness's samples
                "steps": steps,
                "guidance": float(guidance),
                "dtype": dtype,
                "seeds": [block * task.samples, (block + 1) * task.samples],
            }
            cells.append(Cell(name, steps, float(guidance), block, identity))
    return cells
