"""Searches of settings and other training seeds: which trainings, on which seeds they are measured, what is written."""

import json
import shutil

import pandas as pd
import pytest

from bench import trials
from bench.cli import main
from bench.plan import plan
from bench.store import Store, frame
from bench.sweep import run
from bench.tasks import load_task
from students.models.load import load_start
from students.models.teachers import weights_folder
from students.samplers.record import weights_files
from students.training.distill import method_class
from students.training.settings import updates_of_stages

TASK = load_task("gaussians")
COLUMNS = ["method", "relative_lr", "dropout", "lr", "evaluations", "seconds", "swd@1", "swd@2", "swd@4", "swd@8"]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Seeds and spec of every measurement; trainings of a few updates, in a folder of their own."""
    measured, seen = trials.distance, []

    def distance(context, student, n, seeds):
        seen.append((student.name, n, seeds))
        return measured(context, student, n, seeds)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "distance", distance)
    monkeypatch.setattr(trials, "SHARE", 1e-3)
    monkeypatch.setattr(trials, "SAMPLES", 50)
    return seen


def test_a_search_gives_every_method_the_same_trials_on_seeds_of_no_block(drawn, tmp_path, monkeypatch):
    path = trials.search(TASK, ["ecm"], tmp_path / "search.csv")
    table = pd.read_csv(path)
    assert list(table) == [*COLUMNS, "geometric_mean"]
    assert [*table[trials.KEY].itertuples(index=False, name=None)] == [("ecm", *trial) for trial in trials.TRIALS]
    assert {seeds for _, _, seeds in drawn} == {range(5_000_000, 5_000_050)}
    row = table.iloc[0]
    assert row["geometric_mean"] == pytest.approx(row[COLUMNS[6:]].astype(float).prod() ** 0.25, rel=1e-4)
    assert list(table["lr"]) == [row["lr"] * factor for factor, _ in trials.TRIALS]
    drawn.clear()
    trials.search(TASK, ["ecm", "knowledge"], path)
    assert all(name.startswith("knowledge:") for name, *_ in drawn), "trials that the table has are not made again"
    with_pairs = pd.read_csv(path).query("method == 'knowledge'")
    assert with_pairs["swd@2"].isna().all() and with_pairs["swd@1"].notna().all(), "one step is all it can take"


def test_dropout_of_a_trial_is_that_of_its_network(drawn, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(trials, "train_method", lambda *arguments, **how: given.append((arguments, how)))
    monkeypatch.setattr(trials.Context, "student", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trials.search(TASK, ["consistency"], tmp_path / "search.csv")
    assert given[0][1]["settings"]["dropout"] == 0.0 and given[0][0][:2] == ("consistency", "gaussians")


def test_other_seeds_are_measured_as_the_task_does_and_shown_beside_its_numbers(drawn, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for path in weights_folder("gaussians").glob("ecm.*"):
        shutil.copy(path, shipped)
    monkeypatch.setattr(trials, "weights_files", lambda _, *method: weights_files(shipped, *method))
    monkeypatch.setattr(trials, "train_method", _few_updates(trials.train_method))
    assert trials.repeat(TASK, ["ecm"], [1, 2]) == [shipped / "ecm.json"]
    repeats = json.loads((shipped / "ecm.json").read_text())["repeats"]["swd"]
    assert (repeats["seeds"], repeats["samples"]) == ([1, 2], TASK.samples)
    assert {n: len(values) for n, values in repeats["values"].items()} == {"1": 2, "2": 2, "4": 2, "8": 2}
    assert len(set(repeats["values"]["1"])) == 2, "other seeds, other weights"
    assert {seeds for *_, seeds in drawn} == {range(TASK.samples)}
    store = Store(tmp_path, "gaussians")
    name = f"ecm:weights={shipped}"
    run(plan(TASK, [(name, 2, 1.0)]), TASK, store, ("swd",), "cpu", "float32")
    cells = frame(store.cells(), store).set_index("student")
    assert cells.loc[name, "swd_repeats"] == repeats["values"]["2"]


def _few_updates(train):
    def trained(*arguments, settings, **how):
        return train(*arguments, settings=settings | {"steps": 2}, **how)

    return trained


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["search", "gaussians", "--methods", "ecn"], "unknown method 'ecn': did you mean 'ecm'?"),
        (["repeat", "gaussians", "--methods", "ecm", "--seeds", "0", "1"], "ecm was trained from seed 0"),
        (["repeat", "gaussians", "--methods", "ecm", "--seeds", "1", "1"], "give other ones, each once"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_training_of_stages_is_repeated_as_long_as_it_was(drawn, monkeypatch, tmp_path):
    """Also where a stage leaves no weights, whose record would say how long it was."""
    shipped = tmp_path / "shipped"
    shutil.copytree(weights_folder("gaussians"), shipped)
    monkeypatch.setattr("students.samplers.record.weights_folder", lambda task: shipped)
    given = []

    def train(context, name, trial, settings, **how):
        given.append(updates_of_stages(method_class(name)(*load_start("gaussians")), None, 0, None, settings))

    monkeypatch.setattr(trials, "trained", train)
    monkeypatch.setattr(trials, "_distances", lambda *_: {1: 0.0})
    for name in ("disback", "progressive"):
        trials.repeat(TASK, [name], [1])
        files = weights_files(None, name, "gaussians").values()
        own = [json.loads(file.with_suffix(".json").read_text())["planned_steps"] for file in files]
        assert given.pop()[-len(own) :] == own
