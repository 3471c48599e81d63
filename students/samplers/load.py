"""From the weights of a trained method to the student that samples with them."""

import torch
from torch import nn

from students.diffusion.denoiser import Denoiser
from students.errors import WeightsError, reading
from students.models.acceleration import accelerate
from students.models.load import load_start
from students.models.weights import load_into, load_weights, record_path, state_hash
from students.samplers import make
from students.samplers.levels import StagedStudent
from students.samplers.record import read_records, stage_sampler, training_cost, weights_files
from students.student import Student


def load_trained(
    method: str, task: str, folder=None, device="cpu", dtype=torch.float32, options: dict | None = None
) -> Student:
    """The student of a trained method; its `training` says what that cost (see `training_cost`).

    folder: where the weights lie, by default where those that ship do. options: of the sampler, instead of the
    record's. dtype: of the networks. Raises WeightsError for weights that are missing, cut short, or of another method,
    task, teacher or network.
    """
    files = weights_files(folder, method, task)
    records = read_records(files, method, task)
    members = {}
    for stage, record in records.items():
        state, _ = load_weights(files[stage])
        with reading(record_path(files[stage]), "record of a student"):
            sampler = stage_sampler(record)
            model = sampler.load_class().build(record["model"])
            load_into(model, state, files[stage])
            accelerate(in_dtype(model, dtype).to(device).eval().requires_grad_(False))
            prior = record["prior"] and torch.tensor(record["prior"], dtype=torch.float64, device=device)
            teacher = None
            if sampler.load_class().uses_teacher:
                teacher = _teacher(task, record["teacher"], device, dtype, files[stage])
            members[stage] = make(sampler, model, prior, teacher, options)
    student = join(members)
    student.name, student.device = method, torch.device(device)
    with reading(record_path(next(iter(files.values()))), "record of a student"):
        student.training = training_cost(list(records.values()))  # type: ignore[attr-defined]
    return student


def join(members: dict[str, Student]) -> Student:
    """The student of all stages: that of the only one, or one network for each step count."""
    if list(members) == [""]:
        return members[""]
    return StagedStudent({int(stage): member for stage, member in members.items()})


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its networks in `dtype`; what is around them stays in its own."""
    for module in model.modules():
        if isinstance(module, Denoiser):
            module.network.to(dtype)
    return model


def _teacher(task: str, recorded: dict, device, dtype, path):
    teacher, _ = load_start(task, recorded["name"], device)
    if state_hash(teacher.denoiser) != recorded["hash"]:
        raise WeightsError(f"{path} was distilled from another teacher of {task}: train it again")
    return teacher if dtype == torch.float32 else load_start(task, recorded["name"], device, dtype)[0]
