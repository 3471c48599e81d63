"""`train_method("progressive", "digits")`: the command that trains any distillation method on any task.

It loads the teacher, makes batches of what the method learns from, gives the method's losses to the loop, stage by
stage, and writes weights and records. What is special about a method is in its file of students/distillation.
"""

import inspect
import json
import math
import time
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from students.base import SolverStudent
from students.checkpoints.safetensors_file import record_path, save_weights
from students.data import load_data
from students.devices import check_device
from students.distillation import stage_file
from students.distillation.load import load_base, load_distilled, method_class, state_hash
from students.distillation.method import DATA, PAIRS, Batch, Distillation
from students.errors import FewstepError, unknown
from students.loading import DEFAULT_GRID
from students.provenance import commit
from students.recipes import RECIPES, START, UNCONDITIONAL, teacher_weights, weights_folder
from students.registry import STUDENTS, import_object
from students.training.checkpoint import check_folder, remove_checkpoints
from students.training.loop import batch_share, train
from students.training.pairs import PairSet, pairs_folder
from students.training.quality import SAMPLES, quality
from students.training.teacher import draw_batch, scaled

SETTINGS = {"batch_size": 128, "lr": 1e-3, "warmup": 100, "ema_decay": 0.999}
VECTOR_SETTINGS = SETTINGS | {"lr": 2e-3}  # for tasks of vectors, with
VECTOR_BATCH = 2  # times the batch


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
    teacher: instead of the task's (see `load_base`). budget: evaluations of networks relative to the teacher's own
    training. settings: arguments of the loop (batch_size, lr, ema_decay, clip, steps ...) and the number of `pairs`,
    instead of the method's.
    options: those of the method. Training that `time_limit` stops writes nothing, but keeps its state.

    Raises FewstepError for what can be known to be wrong before it starts.
    """
    start_time = time.monotonic()
    kind = method_class(name)
    device = _device(device)
    _check_numbers(budget=budget, time_limit=time_limit)
    folder = Path(out or weights_folder(task))
    state = Path(state or Path("run", "train", f"{name}-{task}"))
    options, settings = dict(options or {}), dict(settings or {})
    _check_options(kind, name, options, settings)
    check_folder(folder)
    source, start = load_base(task, teacher, device)
    previous, before = None, {"evaluations": 0, "seconds": 0.0}
    if kind.after is not None:
        previous, before = _previous(kind.after, name, task, folder, device)
        start = previous.denoiser
    method = kind(source, start, **options)
    method.prepare()
    recipe = RECIPES[START.get(task, UNCONDITIONAL.get(task, task))]
    dataset = load_data(recipe.data).train
    samples = dataset.samples.to(device)
    labels = dataset.labels.to(device) if getattr(source, "classes", None) is not None else None
    identity = {"name": teacher, "hash": state_hash(source), "evaluations": _teacher_evaluations(task, teacher)}
    described = {"task": task, "method": name, "seed": seed, "teacher": identity, "options": options}
    described |= {"start": state_hash(start)}

    vectors = len(source.shape) == 1
    merged = (VECTOR_SETTINGS if vectors else SETTINGS) | kind.settings
    if vectors:
        merged |= {"batch_size": merged["batch_size"] * VECTOR_BATCH} | kind.vector_settings
    merged |= settings
    n = batch_share(merged["batch_size"])
    pair_set, plan, spent = None, {}, 0
    if kind.source == PAIRS:
        plan = {"count": merged.pop("pairs", kind.pairs.count), "steps": kind.pairs.steps, "path": kind.pairs.path}
        spent = plan["count"] * plan["steps"]
    updates = _updates(method, identity["evaluations"], spent, budget, merged)
    check_folder(state)
    method.begin(method.stages[0], {}, updates[0])  # what cannot be built is to be known before pairs are made
    if kind.source == PAIRS:
        maker = solver_student(source if previous is None else start, kind.pairs.solver, device)
        made_by = {"task": task, "teacher": state_hash(maker.denoiser), "solver": kind.pairs.solver}
        with PartialState().main_process_first():
            place = pairs or pairs_folder(state.parent / "pairs", made_by | plan)
            pair_set = PairSet(place, maker, made_by, **plan, deadline=start_time + time_limit)
        described |= {"pairs": made_by | plan}

    prior = getattr(source, "prior", None)
    prior = torch.ones(getattr(source, "classes", None) or 1) if prior is None else prior.float()
    prior = prior.to(device)

    def batch(generator: torch.Generator) -> Batch:
        if kind.source == PAIRS:
            index = torch.randint(pair_set.count, (n,), generator=generator, device=device)
            return Batch(**pair_set.rows(index, device))
        x0, chosen = draw_batch(samples, labels, n, generator, recipe.flips)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        if kind.source == DATA:
            return Batch(noise, chosen, x0)
        if labels is not None:
            chosen = torch.multinomial(prior, n, replacement=True, generator=generator)
        return Batch(noise, chosen)

    real = scaled(samples[:SAMPLES])
    trained, records = {}, {}
    for stage, steps in zip(method.stages, updates, strict=True):
        torch.manual_seed(seed)
        model = method.begin(stage, trained, steps)

        def loss(generator, step):
            return method.loss(batch(generator), step, generator)

        def measure(averaged, stage=stage):
            return quality(_named(method.student(trained | {stage: averaged}), device), real)

        trained[stage], record = train(
            model,
            loss,
            **merged | {"steps": steps},
            dtype=getattr(torch, recipe.precision) if device.type == "cuda" else torch.float32,
            seed=seed,
            state=state / (stage or "single"),
            config=described | {"settings": merged | {"steps": steps}},
            time_limit=time_limit - (time.monotonic() - start_time),
            averages={} if method.target_ema is None else {"target": method.target_ema},
            networks={"teacher": _counted([method.teacher]), "student": _counted(method.networks())},
            measure=measure,
            title=f"{name} {stage}".strip(),
        )
        if record["steps"] < steps:
            raise FewstepError(
                f"{name} stopped at step {record['steps']} of {steps}{f' of stage {stage}' if stage else ''}: "
                f"the same command goes on from {state}"
            )
        if pair_set and not records:
            record["evaluations"] = record["evaluations"] | {"pairs": pair_set.spent}
            record["seconds"] = round(record["seconds"] + pair_set.seconds, 1)
        records[stage] = described | {"stage": stage, "settings": merged} | record | method.report(trained[stage])
    paths = []
    if PartialState().is_main_process:
        for stage, record in records.items():
            parameters = sum(p.numel() for p in trained[stage].parameters())
            about = {"parameters": parameters, "before": before, "device": _device_name(device), "commit": commit()}
            paths.append(stage_file(folder, name, stage))
            save_weights(paths[-1], trained[stage].state_dict(), record | about)
        for stage in records:
            remove_checkpoints(state / (stage or "single"))
        if state.is_dir() and not any(state.iterdir()):
            state.rmdir()
    return paths


def solver_student(denoiser, solver: str, device) -> SolverStudent:
    """A solver of the registry on the denoiser's own grid."""
    entry = STUDENTS[solver]
    grid = getattr(denoiser, "grid", DEFAULT_GRID)
    return SolverStudent(denoiser, import_object(entry.target), grid=grid, device=device, **entry.options)


def _device(device):
    """The device asked for; of several processes, each has its own GPU."""
    checked = check_device(device)
    processes = PartialState(cpu=checked.type == "cpu")
    return processes.device if processes.num_processes > 1 else checked


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _named(student, device):
    student.device = device
    return student


def _check_options(kind: type[Distillation], name: str, options: dict, settings: dict) -> None:
    takes = [key for key in inspect.signature(kind.__init__).parameters if key not in ("self", "teacher", "start")]
    loops = [*SETTINGS, "steps", "clip", "weight_decay", *(["pairs"] if kind.source == PAIRS else [])]
    defaults = inspect.signature(kind.__init__).parameters
    for key, value in options.items():
        if key not in takes:
            raise FewstepError(f"{name} takes no option {key!r}: it takes {', '.join(takes) or 'none'}")
        if isinstance(defaults[key].default, str):
            if not isinstance(value, str):
                raise FewstepError(f"option {key} must be a name, such as {defaults[key].default!r}, got {value!r}")
            continue
        low, high = kind.ranges[key]
        whole = isinstance(defaults[key].default, int)
        if not isinstance(value, int if whole else int | float) or not low <= value <= high:
            raise FewstepError(
                f"option {key} must be a {'whole ' if whole else ''}number from {low:g} to {high:g}, got {value!r}"
            )
    for key, value in settings.items():
        if key not in loops:
            raise unknown("setting", key, loops)
        whole = key in ("steps", "batch_size", "warmup", "pairs")
        low, high = (1 if whole and key != "warmup" else 0), (1 if key == "ema_decay" else 1e9)
        if not isinstance(value, int if whole else int | float) or not low <= value <= high:
            raise FewstepError(
                f"setting {key} must be a {'whole ' if whole else ''}number from {low} to {high:g}, got {value!r}"
            )
        if key in ("lr", "clip") and value == 0:
            raise FewstepError(f"setting {key} must be above 0: nothing would be learned")


def _check_numbers(budget: float | None, time_limit: float) -> None:
    if budget is not None and not 0 < budget < math.inf:
        raise FewstepError(f"--budget must be a number above 0, got {budget:g}")
    if not time_limit >= 0:
        raise FewstepError(f"--time-limit must be a number of seconds of at least 0, got {time_limit:g}")


def _previous(after: str, name: str, task: str, folder: Path, device):
    """The student that a method starts from, and what its training cost."""
    try:
        previous = load_distilled(after, task, folder, device)
    except FewstepError as error:
        raise FewstepError(f"{name} starts from {after}: {error}") from error
    return previous, {key: previous.training[key] for key in ("evaluations", "seconds")}


def _teacher_evaluations(task: str, teacher: str | None) -> int | None:
    """Network evaluations of the teacher's own training (of an exact teacher: of the network students start from)."""
    if teacher is None:
        path = teacher_weights(START.get(task, task))
    elif teacher.endswith(".safetensors") and ":" not in teacher:
        path = Path(teacher)
    else:
        return None
    return json.loads(record_path(path).read_text())["images_seen"]


def _updates(
    method: Distillation, reference: int | None, spent: int, budget: float | None, settings: dict
) -> list[int]:
    """The updates of each stage: `settings["steps"]`, or what the budget leaves after `spent`."""
    if "steps" in settings:
        return [max(1, round(settings["steps"] * share)) for share in method.shares]
    if reference is None:
        raise FewstepError(
            "what this teacher's training cost is not known, so a budget says nothing: give --set steps=N"
        )
    left = (method.budget if budget is None else budget) * reference - spent
    updates = left / (method.evaluations * settings["batch_size"])
    if updates < 1:
        taken = f"noise-image pairs take {spent} evaluations, so " if spent else ""
        raise FewstepError(f"{taken}the budget is less than one update: give a larger --budget")
    return [max(1, round(updates * share)) for share in method.shares]


def _counted(denoisers: list[nn.Module]) -> list[nn.Module]:
    """What counts as a network: that inside a denoiser, which may also be called by itself, or an exact denoiser."""
    return [getattr(denoiser, "network", denoiser) for denoiser in denoisers]
