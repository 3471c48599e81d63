"""Settings of a training, by the names of `--set`, and how many updates a budget of network evaluations buys."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from students.errors import FewstepError
from students.models.teachers import training_evaluations
from students.models.weights import record_path
from students.options import Range, check, describe

MOST_STEPS = 10**8
VECTOR_BATCH = 2  # times the batch, for tasks of vectors
VECTOR_LR = 2e-3


@dataclass(frozen=True)
class Settings:
    """Of the loop, and of the student as a player (players.py). steps: instead of what the budget buys, all stages.

    dropout: of the networks that the student trains, in every method. Targets that a network computes itself know none.
    pairs: how many noise-image pairs, for a method that learns from them.
    """

    batch_size: Annotated[int, Range(1, 1e6)] = 128
    lr: Annotated[float, Range(0, 1e9, open=True)] = 1e-3
    warmup: Annotated[int, Range(0, 1e9)] = 100
    ema_decay: Annotated[float, Range(0, 1)] = 0.999
    clip: Annotated[float, Range(0, 1e9, open=True)] = 1.0
    weight_decay: Annotated[float, Range(0, 1e9)] = 0.0
    dropout: Annotated[float, Range(0, 1)] = 0.0
    every: Annotated[int, Range(1, 1e6)] = 1
    steps: Annotated[int, Range(1, MOST_STEPS)] | None = None
    pairs: Annotated[int, Range(1, 1e9)] | None = None


def merged_settings(kind: type[Any], given: dict, vectors: bool) -> dict:
    """Those given, else the method's, else the defaults; raises FewstepError for unknown names and bad values."""
    known = describe(Settings, () if kind.pairs else ("pairs",))
    given = check("--set", given, known)
    merged: dict[str, Any] = {key: known[key].default for key in ("batch_size", "lr", "warmup", "ema_decay", "dropout")}
    if vectors:
        merged["lr"] = VECTOR_LR
    merged |= kind.settings
    if vectors:
        merged |= {"batch_size": merged["batch_size"] * VECTOR_BATCH} | kind.vector_settings
    if kind.pairs:
        merged["pairs"] = kind.pairs.count
    return merged | given


def teacher_evaluations(task: str, teacher: str | None) -> int | None:
    """Network evaluations of the teacher's own training (for an exact teacher: of the network students start from)."""
    if teacher is None:
        return training_evaluations(task)
    if teacher.endswith(".safetensors") and ":" not in teacher:
        return json.loads(record_path(Path(teacher)).read_text())["images_seen"]
    return None


def evaluations_of_step(method, settings: dict) -> float:
    """Network evaluations an image of one step, in which the opponents move, and the student in one of `every`."""
    return method.evaluations / settings.get("every", 1) + method.opponent_evaluations


def own_budget(kind, vectors: bool) -> float:
    """A method's own budget, on tasks of vectors or others."""
    return kind.vector_budget if vectors and kind.vector_budget is not None else kind.budget


def updates_of_stages(method, reference: int | None, spent: int, budget: float | None, settings: dict) -> list[int]:
    """The steps of each stage: `settings["steps"]`, or what the budget leaves after `spent` evaluations.

    reference: evaluations of the teacher's own training, which budgets are relative to.
    """
    if budget is not None and not 0 < budget < float("inf"):
        raise FewstepError(f"--budget must be a number above 0, got {budget:g}")
    if settings.get("steps"):
        if budget is not None:
            raise FewstepError("--budget and --set steps both say how long to train: leave one out")
        return [max(1, round(settings["steps"] * share)) for share in method.shares]
    if reference is None:
        raise FewstepError(
            "what this teacher's training cost is not known, so a budget says nothing: give --set steps=N"
        )
    budget = own_budget(method, len(method.start.shape) == 1) if budget is None else budget
    left = budget * reference - spent
    updates = left / (evaluations_of_step(method, settings) * settings["batch_size"])
    if updates < 1:
        taken = f"noise-image pairs take {spent} evaluations, so " if spent else ""
        raise FewstepError(f"{taken}the budget is less than one update: give a larger --budget")
    if updates > MOST_STEPS:
        raise FewstepError(f"the budget is {updates:.3g} updates, more than {MOST_STEPS:,}: give a smaller --budget")
    return [max(1, round(updates * share)) for share in method.shares]
