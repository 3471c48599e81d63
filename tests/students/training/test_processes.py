"""Several processes: they share a batch, end with the same weights, and stop at one step, whenever each has started."""

import json
import re

import pytest

from students.training.processes import is_first, own_device, stopped
from tests.students.training.runs import torchrun

SHARED = """
import json
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from students.errors import FewstepError
from students.training.loop import batch_share, train
from students.training.players import Player

rank = PartialState(cpu=True).process_index
assert batch_share(8) == 4
try:
    batch_share(9)
except FewstepError as error:
    refused = str(error)
torch.manual_seed(0)
model, drawn = nn.Linear(1, 1, bias=False), []

def loss(generator, step):
    drawn.append(torch.rand(1, generator=generator).item())
    return (model.weight - 1 - rank).square().sum()

player = Player(model, loss, lr=0.1, warmup=10, ema_decay=0.9)
trained, record = train({"student": player}, steps=300, batch_size=8)
found = {"weight": trained["student"].weight.item(), "drawn": drawn, "refused": refused}
Path(f"{rank}.json").write_text(json.dumps(record | found))
"""


@pytest.mark.slow
def test_several_processes_share_a_batch_and_end_with_the_same_weights(tmp_path):
    (tmp_path / "script.py").write_text(SHARED)
    done = torchrun(2, ["script.py"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["weight"] == second["weight"] == pytest.approx(1.5, abs=0.05)  # between what each alone would find
    assert first["processes"] == 2 and first["images_seen"] == 300 * 8
    assert first["loss_curve"] == second["loss_curve"]
    assert not {*first["drawn"]} & {*second["drawn"]}
    assert "2 processes cannot share a batch of 9" in first["refused"]


LATE = """
import os
import sys
import time

time.sleep(os.environ["RANK"] == os.environ["LATE"])  # as on a slow disk, or another node

from students.__main__ import main

command = ["train", "consistency", "--task", "gaussians", "--out", "w", "--state", "s", "--set", "steps=100000"]
for limit in ("3", "0"):
    print(f"limit {limit}", file=sys.stderr, flush=True)
    assert main([*command, "--time-limit", limit]) == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_all_processes_stop_at_one_step_with_a_checkpoint(tmp_path, late):
    (tmp_path / "script.py").write_text(LATE)
    done = torchrun(2, ["script.py"], tmp_path, LATE=str(late))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    notes = re.findall(r"note: consistency stopped at step (\d+) of 100000: the same command goes on", done.stderr)
    first, second = sorted({int(step) for step in notes})  # one step of each call, in both processes
    assert second == first + 1
    assert [path.name for path in (tmp_path / "s" / "single").glob("step-*")] == [f"step-{second:08d}"]
    assert not list((tmp_path / "w").iterdir())


def test_one_process_is_the_first():
    assert is_first() and own_device("cpu").type == "cpu"


def test_what_is_said_of_a_training_that_was_stopped(tmp_path):
    record = {"steps": 3, "planned_steps": 9}
    told = str(stopped("ctm", record, tmp_path))
    assert told == f"ctm stopped at step 3 of 9: the same command goes on from {tmp_path}"
    assert "nothing was kept" in str(stopped("ctm", record, None))
