"""What training takes of memory: `python -m bench memory TASK`, a row for each distillation method.

An update of a method beside one of plain diffusion, the teacher's own training, on the same batch: networks held at
once, bytes (students/training/memory.py), evaluations an image. Nothing is trained; the table goes to
reports/<task>/memory.csv.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from bench.report.files import write_atomically
from bench.tasks import Task
from bench.trials import checked
from students.diffusion.denoiser import Denoiser
from students.distillation.method import Distillation, trainable
from students.errors import FewstepError
from students.models.load import load_start
from students.spec import METHODS
from students.training.batches import Batch, Data, PairRows
from students.training.checkpoint import check_folder
from students.training.distill import method_class, players_of
from students.training.memory import averages, held
from students.training.players import Player
from students.training.settings import evaluations_of_step, merged_settings
from students.training.teacher import denoising_loss


def memory(task: Task, methods: Sequence[str] = ()) -> Path:
    """Write the table, in which rows of other methods stay; returns its path.

    Methods that cannot be trained on the task are left out, with their reason on standard error.
    """
    checked(task, methods, ())
    path = Path("reports", task.name, "memory.csv")
    check_folder(path.parent, "working folder")
    rows = []
    for name in tqdm(list(methods or METHODS), unit="method"):
        try:
            rows.append({"method": name, **_row(name, task.teacher)})
        except FewstepError as error:
            tqdm.write(f"note: {name} is left out: {error}", file=sys.stderr)
    if not rows:
        raise FewstepError(f"none of {', '.join(methods or METHODS)} can be trained on {task.name}")
    known = pd.read_csv(path).to_dict("records") if path.is_file() else []
    table = pd.DataFrame({row["method"]: row for row in known + rows}.values())
    return write_atomically(path, table.to_csv(index=False).encode())


def _row(name: str, task: str) -> dict:
    kind = method_class(name)
    source, start = load_start(task)
    settings = merged_settings(kind, {}, vectors=len(source.shape) == 1)
    settings.pop("pairs", None)
    method = kind(source, start)
    method.prepare()
    found, networks, n = 0, 0, settings["batch_size"]
    for stage in method.stages:
        torch.manual_seed(0)
        method.begin(stage, {}, 100)
        players = players_of(method, settings, lambda _: _batch(method, n))
        others = [value for value in vars(method).values() if isinstance(value, nn.Module)]
        found = max(found, held(players, others, torch.Generator().manual_seed(0)))
        networks = max(networks, _count(players, others))
    return {
        "batch_size": n,
        "networks": networks,
        "mebibytes": round(found / 2**20, 2),
        "x_diffusion": round(found / _diffusion(start, n), 2),
        "evaluations": round(evaluations_of_step(method, settings), 2),
    }


def _batch(method: Distillation, n: int) -> Batch:
    """Random numbers in the shapes of what the method needs."""
    shape, classes = method.start.shape, method.start.classes
    condition = None if classes is None else torch.arange(n) % classes
    x0, path = torch.randn(n, *shape).clamp(-1, 1), method.pairs.path if method.pairs else 0
    pairs = PairRows(torch.randn(n, *shape), x0, condition, torch.randn(n, path, *shape) if path else None)
    return Batch(torch.randn(n, *shape), condition, Data(x0, condition), pairs)


def _count(players: dict[str, Player], others: list[nn.Module]) -> int:
    """Networks with parameters of their own, averages included."""
    modules = [*(player.module for player in players.values()), *others]
    first = {id(parameter) for module in modules for parameter in [*module.parameters()][:1]}
    return len(first) + len(averages(players))


def _diffusion(start: Denoiser, n: int) -> int:
    """Bytes of an update of plain diffusion on the same network and batch."""
    model, classes = trainable(start), start.classes
    condition = None if classes is None else torch.arange(n) % classes

    def loss(generator: torch.Generator, step: int):
        return denoising_loss(model, torch.randn(n, *start.shape), condition, generator, -1.2, 1.2, 0.0)

    return held({"teacher": Player(model, loss, 1e-3, ema_decay=0.999)}, [], torch.Generator().manual_seed(0))
