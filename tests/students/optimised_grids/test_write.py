"""The command that finds grids: what it writes, for whom, and what it answers before any work."""

import pytest
import torch

import students
from students.__main__ import main
from students.models.found_grids import TUNING_SEED, grid_path, read_record
from students.models.load import load_teacher
from students.models.weights import state_hash
from students.optimised_grids import gits
from tests.conftest import make_mixture

OWN = f"{__name__}:own"


def own():
    return make_mixture(conditional=True)


def lambda_teacher():
    denoise = lambda x, t, condition=None: torch.zeros_like(x)
    denoise.schedule, denoise.shape = make_mixture().schedule, (2,)
    return denoise


@pytest.mark.parametrize("method", ["gits", "ays"])
@pytest.mark.parametrize("task", ["gaussians", OWN])
def test_a_file_that_any_solver_takes(tmp_path, capsys, method, task):
    out = tmp_path / "new" / "grid.json"
    assert main(f"schedule {method} --task {task} --images 8 --steps 1 4 --out {out}".split()) == 0
    record = read_record(out)
    assert f"wrote {out}: {record['cost']['evaluations']:,} network evaluations" in capsys.readouterr().out
    assert record["method"] == method and sorted(record["times"]) == ["1", "4"]
    assert record["teacher"] == {"name": task, "hash": state_hash(load_teacher(task).denoiser)}
    assert record["seeds"] == [TUNING_SEED, TUNING_SEED + 8] and record["seeds"][0] >= 5_000_000
    assert (record["cost"]["relative"] is None) == (task == OWN)
    student = students.load(f"heun:grid={out}", task=task)
    assert student.grid_name(4) == method and student.sample(4, seeds=range(2)).isfinite().all()


def test_the_same_seeds_find_the_same_grid(tmp_path):
    for name in "ab":
        assert main(f"schedule ays --task gaussians --images 8 --out {tmp_path / name}.json".split()) == 0
    assert read_record(tmp_path / "a.json")["times"] == read_record(tmp_path / "b.json")["times"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gist --task gaussians", "unknown method 'gist': did you mean 'gits'?"),
        ("gits --task digit", "unknown teacher 'digit': did you mean 'digits'?"),
        ("gits --task digit --out x.json", "unknown teacher 'digit': did you mean 'digits'?"),
        ("gits --task gaussians --steps 0", "--steps of gits are whole numbers from 1 to 64, got [0]"),
        ("ays --task gaussians --steps 4 41", "--steps of ays are whole numbers from 1 to 40, got [4, 41]"),
        ("ays --task gaussians --images 0", "--images must be at least 1"),
        ("ays --task gaussians --out grid.txt", "must end in .json"),
        ("ays --task gaussians --out /proc/none/grid.json", "cannot write /proc/none/grid.json"),
        ("ays --task gaussians --device cuda:99", "device 'cuda:99' is not there"),
        (f"ays --task {OWN}", "has no place of its own for grids: say where with --out PATH.json"),
        ("gits --task file:/none.safetensors --out grid.json", "no checkpoint at /none.safetensors"),
        (f"gits --task {__name__}:lambda_teacher --out grid.json", "has no parameters or buffers to tell it by"),
    ],
)
def test_mistakes_are_one_line_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gits, "find", None)
    assert main(["schedule", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_killed_in_the_middle_it_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    out = tmp_path / "grid.json"
    command = f"schedule gits --task gaussians --images 8 --out {out}".split()
    assert main(command) == 0
    before = out.read_bytes()

    def killed(source, steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(gits, "find", killed)
    assert main(command) == 130
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]


def test_by_default_it_lies_beside_the_weights():
    assert grid_path("gits", "digits").parent.name == "digits" and grid_path("gits", "digits").is_file()
