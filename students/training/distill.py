"""`train_method("progressive", "digits")`: the command that trains any distillation method on any task.

It loads the teacher, makes batches of what the method learns from, lets the method's players play, stage by stage, and
writes weights and records. What is special about a method is in its file of students/distillation.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from students.data import load_data
from students.diffusion.denoiser import Denoiser
from students.errors import FewstepError, unknown
from students.models.load import load_start
from students.models.teacher import Teacher
from students.models.teachers import recipe, weights_folder
from students.models.weights import state_hash
from students.networks.network import set_dropout
from students.options import check, describe
from students.provenance import commit
from students.samplers import Sampler, make
from students.samplers.load import join, load_trained
from students.samplers.record import stage_file
from students.solvers.euler import ddim, euler
from students.spec import METHODS, import_object
from students.student import SolverStudent
from students.training.batches import PAIRS, Batch, Batches, scaled
from students.training.checkpoint import check_folder
from students.training.loop import batch_share, train
from students.training.pairs import pairs_folder, shared_pairs
from students.training.players import STUDENT, Player
from students.training.processes import check_time_limit, describe_device, is_first, own_device, stopped, write_weights
from students.training.quality import SAMPLES, quality
from students.training.settings import merged_settings, teacher_evaluations, updates_of_stages

PAIR_SOLVERS = {"ddim": ddim, "euler": euler}


def method_class(name: str) -> type[Any]:
    """The class of a method; raises FewstepError for an unknown name, with the nearest one."""
    if name not in METHODS:
        raise unknown("method", name, ["teacher", *METHODS])
    return import_object(METHODS[name].target)


def train_method(
    name: str,
    task: str,
    out: Path | None = None,
    seed: int = 0,
    device="cpu",
    time_limit: float = math.inf,
    state: Path | None = None,
    pairs: Path | None = None,
    teacher: str | None = None,
    budget: float | None = None,
    settings: dict | None = None,
    options: dict | None = None,
) -> list[Path]:
    """Train a method; returns the paths of the weights, one a stage, each with a record beside it.

    out: the folder for weights, by default that of those that ship. state: a folder for checkpoints, from which the
    same call goes on, removed at the end; pairs: the folder of noise-image pairs, by default below `state`.
    teacher: instead of the task's (see `load_start`). budget: evaluations of networks relative to the teacher's own
    training. settings: of the loop and of the student as a player (settings.py), instead of the method's.
    options: those of the method. Training that `time_limit` stops writes nothing, but keeps its state.

    Raises FewstepError for what can be known to be wrong before it starts, Stopped at the time limit.
    """
    deadline = time.monotonic() + time_limit
    kind = method_class(name)
    device = own_device(device)
    check_time_limit(time_limit)
    options = asdict(kind.Options(**check(name, dict(options or {}), describe(kind.Options))))
    folder = Path(out or weights_folder(task))
    state = Path(state or Path("run", "train", f"{name}-{task}"))
    check_folder(folder, "--out folder")
    if pairs is not None and kind.pairs is None:
        raise FewstepError(f"{name} learns from no noise-image pairs: leave --pairs out")
    source, start = load_start(task, teacher, device)
    settings = merged_settings(kind, settings or {}, vectors=len(source.shape) == 1)
    previous, before = None, {"evaluations": 0, "seconds": 0.0}
    if kind.after is not None:
        previous, before = _previous(kind.after, name, task, folder, device)
        start = previous.denoiser
    method = kind(source, start, kind.Options(**options))
    method.prepare()
    made = recipe(task)
    data = load_data(made.data).train
    samples = data.samples.to(device)
    identity: dict[str, Any] = {
        "name": teacher, "hash": state_hash(source.denoiser), "evaluations": teacher_evaluations(task, teacher)
    }  # fmt: skip
    described = {"task": task, "method": name, "seed": seed, "teacher": identity, "options": options}
    described |= {"start": state_hash(start)}
    count = settings.pop("pairs", None)
    plan = {"count": count, "steps": method.pairs.steps, "path": method.pairs.path} if method.pairs else {}
    spent = plan["count"] * plan["steps"] if plan else 0
    updates = updates_of_stages(method, identity["evaluations"], spent, budget, settings)
    check_folder(state, "--state folder")
    method.begin(method.stages[0], {}, updates[0])  # what cannot be built is to be known before pairs are made
    pair_set = None
    if PAIRS in method.needs:
        solver = method.pairs.solver
        maker = pair_maker(Teacher(start, previous.grid, source.prior) if previous else source, solver, device)
        made_by = {"task": task, "teacher": state_hash(maker.denoiser), "solver": solver, "grid": maker.grid}
        place = pairs or pairs_folder(state.parent / "pairs", made_by | plan)
        pair_set = shared_pairs(deadline, place, maker, made_by, **plan)
        described |= {"pairs": made_by | plan}
    batches = Batches(
        method.needs, batch_share(settings["batch_size"]), samples,
        None if source.classes is None else data.labels.to(device),  # type: ignore[union-attr]
        flips=made.flips, classes=source.classes, prior=source.prior, pairs=pair_set,
    )  # fmt: skip

    real = scaled(samples[:SAMPLES])
    trained: dict[str, nn.Module] = {}
    records: dict[str, dict] = {}
    samplers: dict[str, Sampler] = {}
    for stage, steps in zip(method.stages, updates, strict=True):
        torch.manual_seed(seed)
        model = method.begin(stage, trained, steps)
        set_dropout(model, settings["dropout"])
        passing = stage in method.passing
        players = players_of(method, settings | ({"ema_decay": None} if passing else {}), batches)
        if not passing:
            samplers[stage] = method.sampler(method.sampled(model))

        def measure(averaged, stage=stage):
            students = {
                name: make(samplers[name], method.sampled(module), source.prior, source)
                for name, module in (trained | {stage: averaged}).items()
            }
            student = join(students)
            student.device = device
            return quality(student, real)

        modules, record = train(
            players,
            steps=steps,
            batch_size=settings["batch_size"],
            dtype=getattr(torch, made.precision) if device.type == "cuda" else torch.float32,
            seed=seed,
            state=state / (stage or "single"),
            config=described | {"settings": settings | {"steps": steps}},
            time_limit=deadline - time.monotonic(),
            networks=_roles(method, players),
            measure=None if passing else measure,
            title=f"{name} {stage}".strip(),
        )
        if record["steps"] < steps:
            raise stopped(f"{name} {f'(stage {stage})' if stage else ''}".strip(), record, state)
        if pair_set and stage == method.stages[0]:
            record["evaluations"] = record["evaluations"] | {"pairs": pair_set.spent}
            record["seconds"] = round(record["seconds"] + pair_set.seconds, 1)
        if passing:
            before = {
                "evaluations": before["evaluations"] + sum(record["evaluations"].values()),
                "seconds": before["seconds"] + record["seconds"],
            }
            continue
        trained[stage] = modules[STUDENT]
        records[stage] = described | {"stage": stage, "settings": settings} | record | method.report(trained[stage])
        records[stage] |= sampling_record(samplers[stage], method.sampled(trained[stage]), source)
        records[stage] |= {
            "feature_spaces": method.feature_spaces(),
            "before": before,
            "device": describe_device(device),
            "commit": commit(),
        }
    weights = {
        stage_file(folder, name, stage): (method.sampled(trained[stage]), record) for stage, record in records.items()
    }
    paths = write_weights(weights, [state / (stage or "single") for stage in method.stages])
    if is_first():
        with suppress(OSError):  # others may have something in it
            state.rmdir()
    return paths


def sampling_record(sampler: Sampler, model, teacher: Teacher) -> dict:
    """What `students.load` needs of a trained model: its sampler, what it is built from, the prior of its classes."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "sampler": {"name": sampler.name, "options": sampler.options},
        "model": model.record() if isinstance(model, Denoiser) else model.config,
        "prior": None if teacher.prior is None else teacher.prior.tolist(),
    }


def pair_maker(teacher: Teacher, solver: str, device) -> SolverStudent:
    """The deterministic sampler of a method's noise-image pairs, on the teacher's own grid."""
    return SolverStudent(teacher, PAIR_SOLVERS[solver], device=device)


def players_of(method, settings: dict, batches: Callable[[torch.Generator], Batch]) -> dict[str, Player]:
    """The method's opponents, then the student, each with batches of its own."""

    def on_batches(loss):
        return lambda generator, step: loss(batches(generator), step, generator)

    opponents = {name: replace(player, loss=on_batches(player.loss)) for name, player in method.opponents().items()}
    averages = {} if method.target_ema is None else {"target": method.target_ema}
    own = {key: value for key, value in settings.items() if key not in ("batch_size", "dropout", "steps")}
    return opponents | {STUDENT: Player(method.model, on_batches(method.loss), averages=averages, **own)}


def _roles(method, players: dict[str, Player]) -> dict[str, Sequence[nn.Module]]:
    """The modules whose evaluations are counted, by role."""
    opponents = {name: [player.module] for name, player in players.items() if name != STUDENT}
    found = {"teacher": method.teachers(), **opponents, STUDENT: method.networks()}
    # the network inside of a denoiser counts, as it may also be called by itself
    return {
        role: [module.network if isinstance(module, Denoiser) else module for module in modules]
        for role, modules in found.items()
    }


def _previous(after: str, name: str, task: str, folder: Path, device):
    """The student that a method starts from, and what its training cost."""
    try:
        previous = load_trained(after, task, folder, device)
    except FewstepError as error:
        raise FewstepError(f"{name} starts from {after}: {error}") from error
    return previous, {key: previous.training[key] for key in ("evaluations", "seconds")}  # type: ignore[attr-defined]
