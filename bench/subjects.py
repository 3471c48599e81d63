"""What the numbers of a student, a teacher and a data set depend on, as JSON. Importing this module imports no torch.

Of a student that was trained these are its weights, their record and the code that samples; never the code that trained
it. What may be anybody's is loaded and looked at (bench/third_party.py).
"""

import functools
from importlib.metadata import version

from bench.identity import code_hash
from bench.tasks import Task
from students.models import teachers
from students.models.cards import model_identity
from students.models.found_grids import BEST, SEARCHES, default_grid, is_found, read_found
from students.networks import NETWORKS
from students.samplers.record import trained_identity
from students.spec import OBJECT, SCHEDULER, TRAINED, Spec, parse

STUDENT = "students.student"
CONVENTION_CODE = {"convention": "student", "afs": "afs"}  # the modules of students/conventions behind options


@functools.cache
def student_identity(name: str, task: Task) -> dict:
    """Its object, options and code, and its weights where it has its own; of a third party's also what it holds."""
    spec = parse(name)
    if spec.kind == TRAINED:
        identity, modules = trained_identity(spec, task.teacher)
        return identity | {"method": spec.head, "code": [*map(code_hash, modules), code_hash(STUDENT)]}
    module = spec.target.partition(":")[0]
    rules = [name for key, name in CONVENTION_CODE.items() if key in spec.options]
    identity = {
        "target": spec.target,
        "options": {"grid": default_grid(spec) or task.grid} | spec.options | _own_file(spec),
        "code": [code_hash(module), code_hash(STUDENT), *(code_hash(f"students.conventions.{name}") for name in rules)],
    }
    if "convention" in spec.options:
        del identity["options"]["grid"]
    if spec.model:
        identity |= model_identity(spec.model) | {"reader": code_hash("students.models.public")}
    if _is_third_party(spec):
        from bench.third_party import identify

        identity |= identify(name, task)
    if spec.kind == SCHEDULER:
        identity["diffusers"] = version("diffusers")
    return identity


def _own_file(spec: Spec) -> dict:
    """Not where a file of grids lies; `grid_taken` has its times."""
    grid = spec.options.get("grid")
    return {"grid": "file"} if is_found(grid) and grid not in (*SEARCHES, BEST) else {}


def grid_taken(spec: Spec, task: Task, steps: int) -> list[float] | None:
    """The times of a grid that was found for the teacher; None for another grid, or where it has none for the steps.

    Raises FewstepError where there is no file of it.
    """
    grid = spec.options.get("grid")
    if spec.kind == TRAINED or not is_found(grid):
        return None
    return read_found(grid, spec, task.teacher).times.get(steps)


def _is_third_party(spec: Spec) -> bool:
    return spec.kind == OBJECT and not spec.target.startswith("students.")


def teacher_identity(name: str) -> dict:
    """Its weights and code; raises FewstepError for an unknown name, WeightsError for weights missing or altered."""
    if ":" in name:
        from bench.third_party import teacher_hash

        return {"name": name, "code": code_hash(name.partition(":")[0]), "weights": teacher_hash(name)}
    identity = teachers.teacher_identity(name)
    if "exact" in identity:
        return identity | {"code": data_code(identity["exact"])}
    kind = "unet" if len(teachers.recipe(name).shape) == 3 else "mlp"
    return identity | {"code": code_hash(NETWORKS[kind].partition(":")[0])}


def data_code(name: str) -> list[str]:
    """The hashes of the code that makes a data set; of a third party's, which may read files, also of the data."""
    kind, colon, _ = name.partition(":")
    if colon:
        from bench.third_party import data_hash
        from students.datareaders import READERS

        return [code_hash("students.datareaders" if kind in READERS else kind), data_hash(name)]
    return [code_hash("students.data", only=name.replace("-", "_")), code_hash("students.diffusion.analytic")]
