"""Training a teacher from its recipe, in one process and in two; the teacher of digits that ships."""

import json

import pytest
import torch
from torch import nn

from students.__main__ import main
from students.data import load_data
from students.diffusion.schedules import VPLinear
from students.errors import FewstepError, Stopped
from students.models.load import load_teacher
from students.models.teachers import teacher_weights
from students.training.batches import scaled
from students.training.teacher import denoising_loss, train_teacher
from tests.students.training.runs import quick_digits, torchrun


def test_the_denoising_loss_is_least_at_the_exact_denoiser(mixture):
    x0 = mixture.sample(range(4000))[0].float()
    mixture.sigma_data = 0.8

    def loss(shift):
        class Shifted(nn.Module):
            schedule, sigma_data = mixture.schedule, mixture.sigma_data

            def forward(self, x, t, condition):
                return mixture(x, t) + shift

        return denoising_loss(Shifted(), x0, None, torch.Generator().manual_seed(0), -0.8, 1.4, 0.0).item()

    assert loss(0.0) < loss(0.05) and loss(0.0) < loss(-0.05)


def test_label_dropout_turns_that_share_of_the_classes_into_none():
    seen = []

    class Spy(nn.Module):
        schedule, sigma_data, classes = VPLinear(), 0.5, 10

        def forward(self, x, t, condition):
            seen.append(condition)
            return x

    x0, classes = torch.zeros(4000, 1, 2, 2), torch.arange(4000) % 10
    denoising_loss(Spy(), x0, classes, torch.Generator().manual_seed(0), -0.8, 1.4, 0.25)
    dropped = seen[0] == 10
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert seen[0][~dropped].equal(classes[~dropped])


def test_a_teacher_trains_repeatably_saves_and_loads(tmp_path, monkeypatch):
    quick_digits(monkeypatch, steps=3, batch_size=8)
    (path,) = train_teacher("digits", tmp_path / "teacher.safetensors")
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["task"] == "digits" and record["images_seen"] == 24 and record["evaluations"] == {"teacher": 24}
    assert record["processes"] == 1
    assert {"seed", "seconds", "commit", "recipe", "sha256", "class_counts"} <= record.keys()
    teacher = load_teacher("digits", path)
    assert teacher.denoiser(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape == (2, 1, 8, 8)
    (again,) = train_teacher("digits", tmp_path / "again.safetensors")
    its = json.loads(again.with_suffix(".json").read_text())
    assert its["sha256"] == record["sha256"], "training is not repeatable"


def test_the_shipped_teacher_is_small_and_denoises():
    assert teacher_weights("digits").stat().st_size <= 500_000
    teacher = load_teacher("digits")
    split = load_data("digits").heldout
    x0 = scaled(split.samples[:200])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    t = teacher.schedule.time(torch.tensor(0.0))
    x = teacher.schedule.alpha(t).float() * x0 + teacher.schedule.sigma(t).float() * eps
    error = (teacher.denoiser(x, t, split.labels[:200]) - x0).square().mean()
    assert error < 0.25 * (eps.square().mean()), "at sigma = alpha the noise must shrink to a quarter of its power"


def test_what_cannot_be_trained_says_why():
    with pytest.raises(FewstepError, match="exact denoiser"):
        train_teacher("gaussians")
    with pytest.raises(FewstepError, match="did you mean 'digits'"):
        train_teacher("digit")


def test_the_command_stops_at_its_time_limit_and_goes_on_from_its_state(tmp_path, monkeypatch, capsys):
    quick_digits(monkeypatch, steps=2, batch_size=8)
    whole, pieces, state = tmp_path / "whole.safetensors", tmp_path / "pieces.safetensors", tmp_path / "state"
    command = ["train", "teacher", "--task", "digits", "--state", str(state)]
    assert main([*command, "--out", str(whole)]) == 0
    assert not state.exists()
    records = []
    for step in (1, 2):
        assert main([*command, "--out", str(pieces), "--time-limit", "0"]) == 0
        records.append(json.loads(pieces.with_suffix(".json").read_text()))
        assert state.exists() == (step == 1)
    assert [record["steps"] for record in records] == [1, 2]
    assert records[1]["sha256"] == json.loads(whole.with_suffix(".json").read_text())["sha256"]
    assert records[0]["sha256"] != records[1]["sha256"]


def test_what_the_time_limit_stops_is_not_written_over_the_weights_that_ship(tmp_path, monkeypatch, capsys):
    quick_digits(monkeypatch, steps=2, batch_size=8)
    ships = tmp_path / "ships" / "teacher.safetensors"
    monkeypatch.setattr("students.training.teacher.teacher_weights", lambda name: ships)
    state = tmp_path / "state"
    with pytest.raises(Stopped, match="the teacher stopped at step 1 of 2"):
        train_teacher("digits", time_limit=0.0, state=state)
    command = ["train", "teacher", "--task", "digits", "--state", str(tmp_path / "other")]
    assert main([*command, "--time-limit", "0"]) == 0
    note = capsys.readouterr().err.strip().splitlines()[-1]
    assert note.startswith("note: the teacher stopped at step 1 of 2") and "--out FILE" in note
    assert not list(ships.parent.iterdir())
    assert train_teacher("digits", state=state) == [ships] and ships.is_file()


def test_the_command_refuses_the_state_of_another_seed(tmp_path, monkeypatch, capsys):
    quick_digits(monkeypatch, steps=2, batch_size=8)
    paths = ["--state", str(tmp_path / "state"), "--out", str(tmp_path / "w.safetensors")]
    command = ["train", "teacher", "--task", "digits", *paths]
    assert main([*command, "--time-limit", "0"]) == 0
    capsys.readouterr()
    assert main([*command, "--seed", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: checkpoint") and "seed: 0 there, 1 asked" in error


SHARED = """
import json
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from students.__main__ import main
from students.models import teachers
from students.training import teacher

entry = teachers.TEACHERS["digits"]
teachers.TEACHERS["digits"] = replace(entry, recipe=replace(entry.recipe, steps=3, batch_size=8))
rank, drawn = PartialState(cpu=True).process_index, []
plain = teacher.draw_data
teacher.draw_data = lambda *arguments: drawn.append(plain(*arguments)) or drawn[-1]
states, folder = [], Path("s-pieces")
for name, limits in {"whole": [[]], "pieces": [["--time-limit", "0"]] * 3}.items():
    for limit in limits:
        arguments = ["--out", f"{name}.safetensors", "--state", f"s-{name}", *limit]
        assert main(["train", "teacher", "--task", "digits", *arguments]) == 0
        states.append(folder.exists())
torch.save((drawn, states), f"drawn-{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_one_teacher(tmp_path):
    """Each takes half of a batch, and one of them writes; stopped by the clock and resumed, they end the same."""
    (tmp_path / "script.py").write_text(SHARED)
    done = torchrun(2, ["script.py"], tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.stdout.count("wrote ") == 4  # by one process of the two
    halves, states = zip(*(torch.load(tmp_path / f"drawn-{rank}.pt") for rank in range(2)), strict=True)
    assert states[0] == states[1] == [False, True, True, False]
    for first, second in zip(*halves, strict=True):
        assert len(first[0]) == len(second[0]) == 4 and not first[0].equal(second[0])
    whole, pieces = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "pieces"))
    assert (whole["processes"], whole["images_seen"], whole["evaluations"]) == (2, 24, {"teacher": 24})
    assert pieces["sha256"] == whole["sha256"] and pieces["evaluations"] == {"teacher": 24}
