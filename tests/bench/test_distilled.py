"""Distilled students as cells: what identifies them, what they carry, what a report says of them."""

import json
import shutil

import pytest

from bench.cli import main
from bench.plan import REAL, TEACHER, plan
from bench.store import Store, frame
from bench.tasks import load_task
from students.models.weights import load_weights, save_weights
from students.training.distill import train_method

TASK = load_task("gaussians")
QUICK = ["--samples", "64", "--seed-blocks", "2", "--metrics", "swd", "faithfulness_vector"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a consistency student of a few steps."""
    folder = tmp_path_factory.mktemp("weights")
    train_method("consistency", "gaussians", folder, state=folder / "state", settings={"steps": 5, "batch_size": 16})
    return folder


def ids(folder, task=TASK, steps=1):
    cells = plan(task, [(f"consistency:weights={folder}", steps, 1.0)])
    return [cell.id for cell in cells if cell.student not in (REAL, TEACHER)]


def test_the_id_is_of_the_weights_and_not_of_their_folder(weights, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(weights, copy)
    assert ids(copy) == ids(weights) and len(set(ids(weights))) == TASK.seed_blocks
    assert not set(ids(copy, steps=2)) & set(ids(weights))
    identity = plan(TASK, [(f"consistency:weights={copy}", 1, 1.0)])[-1].identity["student"]
    assert list(identity["stages"]) == [""] and str(copy) not in json.dumps(identity)
    path = copy / "other" / "consistency.safetensors"
    state, record = load_weights(copy / "consistency.safetensors")
    save_weights(path, {name: 2 * tensor for name, tensor in state.items()}, record)
    assert not set(ids(path.parent)) & set(ids(weights))


def test_a_method_in_stages_is_identified_by_all_of_them(weights, tmp_path):
    state, record = load_weights(weights / "consistency.safetensors")
    for stage in ("8", "4"):
        as_staged = record | {"stage": stage, "method": "progressive"}
        save_weights(tmp_path / f"progressive-{stage}.safetensors", state, as_staged)
    cell = plan(TASK, [(f"progressive:weights={tmp_path}", 4, 1.0)])[-1]
    assert cell.identity["student"]["stages"].keys() == {"4", "8"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no weights of consistency in"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "cut short"),
        (lambda path: path.with_suffix(".json").unlink(), "consistency.json cannot be read"),
    ],
)
def test_missing_or_spoiled_weights_are_noticed_before_any_work(spoil, message, weights, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(weights, copy)
    spoil(copy / "consistency.safetensors")
    students = ["ddim", f"consistency:weights={copy}"]
    assert main(["run", "gaussians", "--steps", "1", "--students", *students, *QUICK, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("cell.json"))


def test_a_run_says_what_training_cost(weights, tmp_path, capsys):
    spec, out = f"consistency:weights={weights}", ["--out", str(tmp_path)]
    assert main(["run", "gaussians", "--students", "ddim", "--steps", "1", "4", *QUICK, *out]) == 0
    assert "training cost" not in capsys.readouterr().out
    assert main(["run", "gaussians", "--students", spec, "--steps", "1", "2", "3", *QUICK, *out]) == 0
    printed = capsys.readouterr().out
    assert printed.index("best first") < printed.index("what training or a grid cost")
    assert "no solver measured" not in printed, "solvers of an earlier run are compared with"

    store = Store(tmp_path, "gaussians")
    cells = [cell for cell in store.cells() if cell["student"] == spec]
    assert {(cell["steps"], cell["status"], cell["nfe"]) for cell in cells} == {
        (1, "ok", 1.0), (2, "ok", 2.0), (3, "unsupported", 0.0),
    }  # fmt: skip
    training = cells[0]["training"]
    assert training["evaluations"] == 5 * 16 * 4 and 0 < training["relative"] < 1 and training["curve"]
    table = frame(store.cells(), store).set_index("student")
    assert (table.loc[spec, "training_evaluations"] == 320).all() and table.loc["ddim", "training_cost"].isna().all()
    assert (table.loc[spec, "family"] == "distilled").all() and not table["own_model"].any()

    report = tmp_path / "reports/gaussians/64-samples"
    text = (report / "table.md").read_text()
    assert "what training or a grid cost" in text and "teacher_distance" in text
    assert (report / "training.png").stat().st_size > 0 and (report / "training.svg").stat().st_size > 0
    assert main(["leaderboard", "gaussians", *out]) == 0
    assert "### What training or a grid cost" in (tmp_path / "leaderboards/gaussians.md").read_text()
