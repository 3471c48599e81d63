"""Short trainings that the tests of the loop and of its checkpoints share, and processes of torchrun."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from students.data import load_data
from students.models import teachers
from students.models.load import build
from students.training.batches import draw_data
from students.training.loop import train
from students.training.players import Player
from students.training.teacher import denoising_loss

ROOT = Path(__file__).parents[3]


def quick_digits(monkeypatch, **changes) -> None:
    """Let the recipe of digits be another, such as one of a few steps."""
    entry = teachers.TEACHERS["digits"]
    monkeypatch.setitem(teachers.TEACHERS, "digits", replace(entry, recipe=replace(entry.recipe, **changes)))


def digits_run(state=None, dtype=torch.float32, steps=4, objective=denoising_loss, **options):
    """The module and its average, bit for bit, and the record of a few steps of digits' recipe, dropout included."""
    recipe = teachers.recipe("digits")
    torch.manual_seed(0)
    split = load_data("digits").train
    model = build(recipe)

    def loss(generator, step):
        x0, condition = draw_data(split.samples, split.labels, 8, generator)
        return objective(model, x0, condition, generator, recipe.p_mean, recipe.p_std, 0.1)

    trained, record = train(
        {"student": Player(model, loss, lr=recipe.lr, warmup=2, ema_decay=0.999)},
        steps=steps,
        batch_size=8,
        dtype=dtype,
        state=state,
        config={"recipe": "digits", "dtype": str(dtype)},
        **options,
    )
    modules = {"model": model, "ema": trained["student"]}
    return {f"{kind}.{name}": t for kind, m in modules.items() for name, t in m.state_dict().items()}, record


def equal(a: dict, b: dict) -> bool:
    """Whether two dictionaries of tensors have the same names and bits."""
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def torchrun(processes: int, arguments: list, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a script or `-m module` in several processes, in a folder, with this repository's packages."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
