"""From the weights of a trained method to the student that samples with them."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from students.base import Student
from students.cards import FILE, families
from students.checkpoints.safetensors_file import load_into, load_weights
from students.diffusion.denoiser import Denoiser
from students.distillation import weights_files
from students.distillation.method import Distillation
from students.errors import FewstepError, WeightsError, unknown
from students.pretrained import load_model
from students.recipes import EXACT, RECIPES, START, UNCONDITIONAL, weights_folder
from students.registry import METHODS, import_object
from students.teachers import load_teacher

RECORDED = ("teacher", "options", "seed", "before", "evaluations", "seconds", "quality_curve")


def method_class(name: str) -> type[Distillation]:
    """The class of a method; raises FewstepError for an unknown name, with the nearest one."""
    if name not in METHODS:
        raise unknown("method", name, ["teacher", *METHODS])
    return import_object(METHODS[name].target)


def load_base(task: str, teacher: str | None = None, device="cpu", dtype=torch.float32) -> tuple[nn.Module, nn.Module]:
    """The teacher of a task, or another one, and the denoiser that its students start from.

    teacher: a checkpoint (`family:name`, `file:PATH`), `package.module:attribute`, or the path of weights that were
    trained by the task's recipe. Raises FewstepError for one of another shape or number of classes than the task's.
    """
    if task not in (*RECIPES, *UNCONDITIONAL, *EXACT):
        raise unknown("task", task, [*RECIPES, *UNCONDITIONAL, *EXACT])
    if teacher is None:
        found = load_teacher(task, device=device, dtype=dtype)
    elif teacher.endswith(".safetensors") and ":" not in teacher:
        found = load_teacher(START.get(task, task), Path(teacher), device, dtype)
    elif teacher.partition(":")[0] in (FILE, *families()):
        found = load_model(teacher, device, dtype)
    else:
        found = load_teacher(teacher, device=device, dtype=dtype)
    if not isinstance(found, nn.Module):
        raise FewstepError(
            f"teacher {teacher} is no torch module: students need one with parameters, or at least buffers"
        )
    recipe = RECIPES[START.get(task, UNCONDITIONAL.get(task, task))]
    wanted = recipe.shape, None if task in UNCONDITIONAL else recipe.classes
    made = tuple(found.shape), getattr(found, "classes", None)
    if made != wanted:
        raise FewstepError(f"teacher {teacher} has (shape, classes) {made}, task {task!r} asks for {wanted}")
    if isinstance(found, Denoiser):
        return found, found
    if task not in START:
        raise FewstepError(f"teacher {teacher} is no network, so students cannot start from it: give a Denoiser")
    return found, load_teacher(START[task], device=device, dtype=dtype)


def state_hash(module: nn.Module) -> str:
    """16 hex digits over a module's parameters and buffers."""
    sha = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def load_distilled(name: str, task: str, folder=None, device="cpu", dtype=torch.float32) -> Student:
    """The student of a trained method; its `training` says what that cost (see `training_cost`).

    folder: where the weights lie, by default where those that ship do. Raises WeightsError for weights that are
    missing, cut short, or of another method, task, teacher or network.
    """
    files = weights_files(folder or weights_folder(task), name, task)
    states, records = {}, {}
    for stage, path in files.items():
        states[stage], records[stage] = load_weights(path)
        made = records[stage].get("method"), records[stage].get("task")
        if made != (name, task):
            raise WeightsError(f"{path} is {made[0]} of {made[1]}, not {name} of {task}: train it, or name its folder")
        lacking = [key for key in RECORDED if key not in records[stage]]
        if lacking:
            raise WeightsError(f"the record of {path} lacks {lacking[0]!r}: it is not whole, train {name} again")
    first = next(iter(records.values()))
    for key in ("teacher", "options", "seed"):
        if any(record[key] != first[key] for record in records.values()):
            raise WeightsError(
                f"the stages of {name} in {next(iter(files.values())).parent} differ in {key}: train it again"
            )
    teacher, start = load_base(task, first["teacher"]["name"], device)
    if state_hash(teacher) != first["teacher"]["hash"]:
        raise WeightsError(f"{next(iter(files.values()))} was distilled from another teacher of {task}: train it again")
    method = method_class(name)(teacher, start, **first["options"])
    trained = {}
    if unknown_stages := [stage for stage in states if stage not in method.stages]:
        raise WeightsError(f"{files[unknown_stages[0]]} is no stage of {name}: those are {', '.join(method.stages)}")
    for stage in (stage for stage in method.stages if stage in states):
        model = method.build(stage, trained)
        load_into(model, states[stage], files[stage])
        for denoiser in (module for module in model.modules() if isinstance(module, Denoiser)):
            denoiser.network.to(dtype)
        trained[stage] = model.to(device).eval().requires_grad_(False)
    student = method.student(trained)
    student.name, student.device = name, torch.device(device)
    student.training = training_cost([records[stage] for stage in trained])
    return student


def training_cost(records: list[dict]) -> dict:
    """What the stages of a method and what went before cost.

    evaluations: of networks, teacher's and students'. relative: to those of the teacher's own training, None where
    that is not known. seconds. curve: pairs of evaluations spent and the energy distance then, all stages joined.
    straightness: of the student's flow, for methods that report it.
    """
    before, teacher = records[0]["before"], records[0]["teacher"]["evaluations"]
    evaluations, curve = before["evaluations"], []
    for record in records:
        evaluations += record["evaluations"].get("pairs", 0)
        curve += [(evaluations + spent, value) for _, spent, value in record["quality_curve"]]
        evaluations += record["evaluations"]["teacher"] + record["evaluations"]["student"]
    cost = {
        "evaluations": evaluations,
        "relative": evaluations / teacher if teacher else None,
        "seconds": round(before["seconds"] + sum(record["seconds"] for record in records), 1),
        "curve": curve,
    }
    return cost | {key: records[-1][key] for key in ("straightness",) if key in records[-1]}
