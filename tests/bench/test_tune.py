"""Choosing grids: which candidates, on which seeds, what the file says, and what a cell records of its grid."""

import pytest

import students
from bench import tune
from bench.cli import main
from bench.plan import plan
from bench.store import Store, frame
from bench.sweep import run
from bench.tasks import load_task
from students.diffusion.grids import GRIDS
from students.errors import FewstepError
from students.models.found_grids import SEARCHES, read_record

TASK = load_task("gaussians")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(tune, "SAMPLES", 100)


def test_the_best_of_all_grids_for_each_step_count(tmp_path, monkeypatch):
    out, drawn = tmp_path / "best.json", []
    conditions = tune.draw

    def draw(student, cell, seeds, *arguments):
        drawn.append((student.name, cell.steps, seeds))
        return conditions(student, cell, seeds, *arguments)

    monkeypatch.setattr(tune, "draw", draw)
    assert tune.tune(TASK, ["ddim:eta=1", "pndm"], [1, 4], out) == out
    record = read_record(out)
    assert record["seeds"] == [5_000_000, 5_000_100] and record["metric"] == "swd"
    assert {seeds for _, _, seeds in drawn} == {range(5_000_000, 5_000_100)}
    assert set(record["solvers"]) == {"ddim:eta=1", "pndm"} and set(record["solvers"]["pndm"]["steps"]) == {"4"}
    chosen = record["solvers"]["ddim:eta=1"]
    assert chosen["steps"]["1"]["grid"] == "quadratic", "its own, where all are the same"
    assert len([name for name, steps, _ in drawn if name.startswith("ddim") and steps == 1]) == 1
    distances = chosen["steps"]["4"]["distances"]
    assert list(distances) == ["quadratic", *(name for name in GRIDS if name != "quadratic"), *SEARCHES]
    assert distances[chosen["steps"]["4"]["grid"]] == min(distances.values())
    student = students.load(f"ddim:eta=1,grid={out}", task="gaussians")
    assert student.grid_name(4) == chosen["steps"]["4"]["grid"]
    searches = sum(read_record(tune.grid_path(name, "gaussians"))["cost"]["evaluations"] for name in SEARCHES)
    assert chosen["cost"]["evaluations"] == 100 * (1 + 4 * len(distances)) + searches == student.training["evaluations"]


def test_a_solver_is_added_to_those_chosen_in_the_same_way(tmp_path, monkeypatch):
    out = tmp_path / "best.json"
    tune.tune(TASK, ["ddim"], [2], out)
    first = read_record(out)["solvers"]["ddim"]
    tune.tune(TASK, ["unipc"], [2], out)
    assert read_record(out)["solvers"]["ddim"] == first and set(read_record(out)["solvers"]) == {"ddim", "unipc"}
    monkeypatch.setattr(tune, "SAMPLES", 50)
    tune.tune(TASK, ["unipc"], [2], out)
    assert set(read_record(out)["solvers"]) == {"unipc"}, "on other seeds"


def test_killed_in_the_middle_it_keeps_the_solvers_that_are_done(tmp_path, monkeypatch, capsys):
    out, choose = tmp_path / "best.json", tune._choose

    def killed(context, candidates, *arguments):
        if next(iter(candidates.values())).name.startswith("unipc"):
            raise KeyboardInterrupt
        return choose(context, candidates, *arguments)

    monkeypatch.setattr(tune, "_choose", killed)
    assert main(f"tune gaussians --students ddim unipc --steps 2 --out {out}".split()) == 130
    assert set(read_record(out)["solvers"]) == {"ddim"} and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["heun:grid=uniform"], "names a grid"),
        (["dpm_solver_pp:order=3,rho=2"], "names a grid"),
        (["progressive"], "is no solver on a grid"),
        (["rk45"], "is no solver on a grid|chooses its own steps"),
        (["diffusers:DDIMScheduler"], "grid|is no solver"),
        (["hen"], "did you mean 'heun'"),
    ],
)
def test_what_has_no_grid_is_refused_in_one_line(tmp_path, names, message):
    with pytest.raises(FewstepError, match=message) as caught:
        tune.tune(TASK, names, [2], tmp_path / "best.json")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_diverging_candidate_is_never_the_best(tmp_path, monkeypatch):
    check = tune.check_samples

    def refuse(samples, n, shape, name):
        if "uniform" in name:
            raise FewstepError("not finite")
        check(samples, n, shape, name)

    monkeypatch.setattr(tune, "check_samples", refuse)
    tune.tune(TASK, ["ddim"], [4], tmp_path / "best.json")
    distances = read_record(tmp_path / "best.json")["solvers"]["ddim"]["steps"]["4"]["distances"]
    assert distances["uniform"] is None and distances["gits"] > 0


def test_a_cell_says_its_grid_and_what_finding_it_cost(tmp_path):
    task = load_task("gaussians")
    names = ["heun", "heun:grid=best", "unipc:grid=gits", "unipc:grid=uniform", "progressive", "unipc:grid=ays"]
    cells = plan(task, [(name, 2, 1.0) for name in names])
    cells = [cell for cell in cells if cell.seed_block == 0]
    store = Store(tmp_path, task.name)
    records = {record["student"]: record for record in run(cells, task, store, ["fd_exact"])}
    assert {name: record.get("grid") for name, record in records.items() if name not in ("real", "teacher")} == {
        "heun": "polynomial",
        "heun:grid=best": students.load("heun:grid=best", task="gaussians").grid_name(2),
        "unipc:grid=gits": "gits",
        "unipc:grid=ays": "ays",
        "unipc:grid=uniform": "uniform",
        "progressive": None,
    }
    table = frame(list(records.values()), store).set_index("student")
    spent = read_record(tune.grid_path("gits", "gaussians"))["cost"]["evaluations"]
    assert table.loc["unipc:grid=gits", "training_evaluations"] == spent
    assert table["training_evaluations"].isna()["heun"] and table.loc["unipc:grid=gits", "family"] == "solver"
    [unsupported] = run(plan(task, [("heun:grid=best", 3, 1.0)])[-1:], task, store, ["fd_exact"])
    assert unsupported["status"] == "unsupported" and "it supports 1, 2, 4, 8, 16" in unsupported["reason"]
