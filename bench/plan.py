"""The plan of a sweep: which cells there are, and what each one's numbers depend on.

Imports no torch, so that a run whose cells are all present only reads them.
"""

import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from bench.identity import code_hash, digest
from bench.measure import METRICS, extractor_identity, extractor_problem
from bench.tasks import Task
from students.cards import check_fits, model_identity
from students.checkpoints.safetensors_file import verified_hash
from students.distillation import weights_files
from students.errors import FewstepError, unknown
from students.recipes import EXACT, RECIPES, UNCONDITIONAL, teacher_weights, weights_folder
from students.registry import METHODS, Spec, parse

DIFFUSERS = "students.solvers.diffusers_adapter:"
NETWORKS = {"image": "students.networks.unet", "vector": "students.networks.mlp"}  # of our own teachers and students
REAL = "real"  # the pseudo-student that answers with held-out data: the floor


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
    def title(self) -> str:
        if self.student == REAL:
            return "real against real"
        guidance = "" if self.guidance == 1 else f", guidance {self.guidance:g}"
        return f"{self.student}, {self.steps} steps{guidance}, block {self.seed_block}"


def resolve_extractor(task: Task, asked: str | None = None) -> Task:
    """The task with the extractor asked for; else its own, or the other it names where the weights of that are missing.

    The second choice is said on standard error, and shows in the names of the columns.
    """
    if asked and task.kind == "vector":
        raise FewstepError(f"task {task.name!r} compares vectors as they are: leave --extractor out")
    if asked:
        return replace(task, extractor=asked)
    if task.extractor_otherwise and (problem := extractor_problem(task.extractor)):
        print(f"note: measuring with {task.extractor_otherwise}, because {problem}", file=sys.stderr)
        return replace(task, extractor=task.extractor_otherwise)
    return task


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


def plan(task: Task, runs: Sequence[tuple[str, int, float]], dtype: str = "float32") -> list[Cell]:
    """The real-against-real floor, then a cell for every (student, steps, guidance) and seed block.

    Raises FewstepError for what can be known to be wrong before any work: unknown students, steps that are
    not positive, guidance on an unconditional task, missing or altered weights.
    """
    common = {
        "task": task.name,
        "version": task.version,
        "samples": task.samples,
        "rounding": task.rounding,
        "shape": list(task.shape),
        "reference": {"data": task.data, "code": data_code(task.data)},
        "extractor": task.extractor and extractor_identity(task.extractor),
    }
    teacher = _teacher(task.teacher)
    cells = [Cell(REAL, 0, 1.0, 0, common | {"student": REAL})]
    for name, steps, guidance in dict.fromkeys(runs):
        if not math.isfinite(guidance):
            raise FewstepError(f"guidance must be a finite number, got {guidance}")
        if steps < 1:
            raise FewstepError(f"steps must be whole numbers of at least 1, got {steps}")
        if guidance != 1 and task.classes is None:
            raise FewstepError(f"task {task.name!r} is unconditional: guidance needs classes; leave --guidance out")
        spec = parse(name)
        if spec.model:
            check_fits(spec.model, task.shape, task.classes)
        student = _student(name, task)
        for block in range(task.seed_blocks):
            identity = common | {
                "student": student,
                "teacher": None if spec.model else teacher,
                "steps": steps,
                "guidance": float(guidance),
                "dtype": dtype,
                "seeds": [block * task.samples, (block + 1) * task.samples],
            }
            cells.append(Cell(name, steps, float(guidance), block, identity))
    return cells


@functools.cache
def _student(name: str, task: Task) -> dict:
    """What identifies a student: its object, options and code, and its weights where it has its own.

    For a third party's also what it says of itself.
    """
    spec = parse(name)
    module = spec.target.partition(":")[0]
    distilled = spec.entry in METHODS.values()
    identity = {
        "target": spec.target,
        "options": ({} if spec.model or distilled else {"grid": task.grid}) | spec.options,
        "code": [code_hash(module), code_hash("students.base")],
    }
    if distilled:
        identity["code"].append(code_hash(NETWORKS[task.kind]))
        identity["weights"] = _distilled_weights(spec, identity["options"].pop("weights", None), task)
    if spec.model:
        identity |= model_identity(spec.model) | {"reader": code_hash("students.pretrained")}
    if not module.startswith("students."):
        from bench.loading import identify

        identity |= identify(name, task)
    if spec.target.startswith(DIFFUSERS):
        identity["diffusers"] = version("diffusers")
    return identity


def _distilled_weights(spec: Spec, folder, task: Task) -> dict[str, str]:
    """Stage -> the verified hash of its weights, in a folder or among those that ship."""
    files = weights_files(folder or weights_folder(task.teacher), spec.name.partition(":")[0], task.teacher)
    return {stage: verified_hash(path) for stage, path in files.items()}


def _teacher(name: str) -> dict:
    if ":" in name:
        from bench.loading import teacher_hash

        return {"name": name, "code": code_hash(name.partition(":")[0]), "weights": teacher_hash(name)}
    if name in EXACT:
        return {"name": name, "code": data_code(name)}
    if name not in (*RECIPES, *UNCONDITIONAL):
        raise unknown("teacher", name, [*RECIPES, *UNCONDITIONAL, *EXACT])
    kind = "image" if len(RECIPES[UNCONDITIONAL.get(name, name)].shape) == 3 else "vector"
    return {"name": name, "weights": verified_hash(teacher_weights(name)), "code": code_hash(NETWORKS[kind])}


def data_code(name: str) -> list[str]:
    """The hashes of the code that makes a data set; of a third party's, which may read files, also of the data."""
    if ":" in name:
        from bench.loading import data_hash

        return [code_hash(name.partition(":")[0]), data_hash(name)]
    return [code_hash("students.data", only=name), code_hash("students.diffusion.analytic")]
