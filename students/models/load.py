"""Teachers by name: `load_teacher("digits") -> Teacher`, and what students of a task are distilled from.

The weights that ship are students/weights/<name>/teacher.safetensors; students/training/teacher.py makes them again.
`gaussians` needs no training: its denoiser is exact.
"""

from pathlib import Path

import torch
from torch import nn

from students.data import load_data
from students.diffusion.denoiser import Denoiser, unconditional
from students.diffusion.schedules import make_schedule
from students.errors import FewstepError, one_line, unknown
from students.models.acceleration import accelerate
from students.models.cards import FILE, families
from students.models.public import load_model
from students.models.teacher import Teacher, as_teacher
from students.models.teachers import TEACHERS, Recipe, classes, entry, recipe, teacher_weights, trained_name
from students.models.weights import load_into, load_weights
from students.networks import build_network
from students.spec import import_object


def build(recipe: Recipe) -> Denoiser:
    """The untrained denoiser of a recipe: a U-Net for images, an MLP for vectors."""
    kind = "unet" if len(recipe.shape) == 3 else "mlp"
    network = build_network({"kind": kind, "shape": recipe.shape, "classes": recipe.classes, **recipe.network})
    schedule = make_schedule(recipe.schedule)
    return Denoiser(network, schedule, recipe.prediction, recipe.shape, recipe.classes, recipe.sigma_data)


def load_teacher(name: str, weights: Path | None = None, device="cpu", dtype=torch.float32) -> Teacher:
    """A teacher of TEACHERS, or `package.module:attribute` of a function without arguments that returns a denoiser.

    `dtype` is the network's; exact denoisers always compute in float64. Raises FewstepError for an unknown
    name and WeightsError for weights that are missing or not those of their record.
    """
    if ":" in name:
        return _load_own(name, device)
    line = entry(name)
    if line.exact:
        mixture = load_data(line.exact).mixture.to(device)  # type: ignore[union-attr]
        return Teacher(mixture, line.grid, mixture.prior, name=name)  # type: ignore[arg-type]
    made = recipe(name)
    path = weights or teacher_weights(name)
    state, record = load_weights(path)
    denoiser = build(made)
    load_into(denoiser.network, state, path)
    denoiser.network.to(dtype)
    accelerate(denoiser.to(device).eval().requires_grad_(False))
    if line.parent:
        return Teacher(unconditional(denoiser), made.grid, name=name)
    counts = record["class_counts"]
    prior = None if counts is None else torch.tensor(counts, dtype=torch.float64)
    return Teacher(denoiser, made.grid, prior, name=name)


def load_named(name: str, device="cpu", dtype=torch.float32) -> Teacher:
    """A teacher by any name: of TEACHERS, `family:name`, `file:PATH`, or `package.module:attribute`."""
    if name.partition(":")[0] in (FILE, *families()):
        return load_model(name, device, dtype)
    return load_teacher(name, device=device, dtype=dtype)


def _load_own(name: str, device) -> Teacher:
    if name.partition(":")[0] in (FILE, *families()):
        raise FewstepError(f"{name!r} is a checkpoint, no teacher of a task: name a student of it, {name}:heun")
    found = import_object(name)
    try:
        denoiser = found() if callable(found) else None
    except FewstepError:
        raise
    except (Exception, SystemExit) as error:
        raise FewstepError(f"cannot load teacher {name!r}: {one_line(error)}") from error
    if isinstance(denoiser, Teacher):
        denoiser.denoiser.to(device)
        return denoiser
    if not (callable(denoiser) and hasattr(denoiser, "schedule") and hasattr(denoiser, "shape")):
        got = f"it returns a {type(denoiser).__name__}" if callable(found) else f"it is a {type(found).__name__}"
        raise FewstepError(
            f"{name!r} must be a function that returns a denoiser, a callable with .schedule and .shape: {got}"
        )
    return as_teacher(denoiser.to(device) if isinstance(denoiser, nn.Module) else denoiser)


def load_start(task: str, teacher: str | None = None, device="cpu", dtype=torch.float32) -> tuple[Teacher, Denoiser]:
    """The teacher of a task, or another one, and the denoiser that its students start from.

    teacher: a checkpoint (`family:name`, `file:PATH`), `package.module:attribute`, or the path of weights that were
    trained by the task's recipe. Raises FewstepError for one of another shape or number of classes than the task's.
    """
    if task not in TEACHERS:
        raise unknown("task", task, TEACHERS)
    if teacher == f"{FILE}:":
        raise FewstepError(f"teacher {teacher!r} names no checkpoint: write {FILE}:PATH")
    if teacher is None:
        found = load_teacher(task, device=device, dtype=dtype)
    elif teacher.endswith(".safetensors") and not teacher.startswith(f"{FILE}:"):
        own = trained_name(task) if entry(task).exact else task
        found = load_teacher(own, Path(teacher), device, dtype)
    else:
        found = load_named(teacher, device, dtype)
    wanted, made = (recipe(task).shape, classes(task)), (found.shape, found.classes)
    if made != wanted:
        raise FewstepError(f"teacher {teacher} has (shape, classes) {made}, task {task!r} asks for {wanted}")
    if not next(iter(found.denoiser.state_dict()), None):
        raise FewstepError(
            f"teacher {teacher} is no torch module: students need one with parameters, or at least buffers"
        )
    if isinstance(found.denoiser, Denoiser):
        return found, found.denoiser
    if (start := entry(task).start) is None:
        raise FewstepError(f"teacher {teacher} is no network, so students cannot start from it: give a Denoiser")
    return found, load_teacher(start, device=device, dtype=dtype).denoiser  # type: ignore[return-value]
