"""The store: cells appear whole or not at all, and belong to one process at a time."""

import itertools
import json
import multiprocessing
import os
import signal
import time

import pytest

from bench.report.tables import aggregate
from bench.store import SCHEMA, Store, frame, latest
from students import files
from students.errors import FewstepError


def cell(cell_id="a1", **changes):
    record = {
        "id": cell_id, "task": "t", "version": 1, "student": "ddim", "steps": 4, "guidance": 1.0,
        "dtype": "float32", "seed_block": 0, "samples": 8, "rounding": "round", "status": "ok", "reason": "",
        "metrics": {"fd": 1.5}, "latency": {"latency_ms": 2.0}, "identity": {"deep": {"x": 1}},
        "provenance": {"finished": "2026-01-01T00:00:00", "device": "cpu"},
    }  # fmt: skip
    return record | changes


def test_save_load_and_frame(tmp_path):
    store = Store(tmp_path, "t")
    store.open()
    store.save(cell(), {"array": b"123", "features.safetensors": b"4", "images/1.png": b"5"})
    assert store.load("a1") == cell()
    assert (store.path("a1") / "array").read_bytes() == b"123" and store.has_images("a1")
    assert store.arrays("a1") == {"features": b"4"}
    assert store.load("b2") is None
    row = frame(store.cells(), store).iloc[0]
    assert (row.fd, row.latency_ms, row.device, row.cell) == (1.5, 2.0, "cpu", "a1")
    store.update(cell(metrics={"fd": 2.5}))
    assert store.load("a1")["metrics"] == {"fd": 2.5}
    assert (store.path("a1") / "array").exists()


def test_training_is_a_column_for_each_number(tmp_path):
    training = {"evaluations": 300, "relative": None, "seconds": 1.5, "curve": [[100, 0.5]], "straightness": 0.1}
    rows = frame([cell(), cell("b2", training=training), cell("c3", identity={"teacher": None})], Store(tmp_path, "t"))
    numbers = rows[["training_evaluations", "training_cost", "training_seconds", "straightness"]]
    assert numbers.iloc[0].isna().all() and numbers.iloc[1].dropna().tolist() == [300, 1.5, 0.1]
    assert numbers.dtypes.eq("float64").all() and rows.training_curve[1] == [[100, 0.5]]
    assert rows.own_model.tolist() == [False, False, True]


def test_feature_spaces_of_training_are_a_column(tmp_path):
    spaces = [{}, {"feature_spaces": []}, {"feature_spaces": ["encoder", "lpips"]}]
    rows = frame([cell(str(i), training=training) for i, training in enumerate(spaces)], Store(tmp_path, "t"))
    table = aggregate(rows.assign(student=list("abc"), family="distilled"))
    assert rows.trained_in.tolist() == table.trained_in.tolist() == ["", "", "encoder, lpips"]


def test_latest_keeps_the_last_of_equal_measurements():
    old, new = cell("a1"), cell("b2", identity={"weights": "other"})
    other = cell("c3", steps=8)
    assert [c["id"] for c in latest([old, other, new])] == ["b2", "c3"]


def test_the_order_does_not_depend_on_when_cells_were_done():
    cells = [cell(f"{steps}{block}", steps=steps, seed_block=block) for steps in (1, 2, 16) for block in (0, 1)]
    cells += [cell("e", student="heun", extractor="cnn"), cell("f", student="heun", extractor=None)]
    for order in itertools.islice(itertools.permutations(cells), 0, 40_000, 997):
        assert latest(list(order)) == latest(cells)
    assert [found["id"] for found in latest(cells)][:6] == ["10", "11", "20", "21", "160", "161"]


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("a file in the way")
    with pytest.raises(FewstepError, match="--out"):
        Store(tmp_path, "t").open()


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path, monkeypatch):
    store = Store(tmp_path, "t")
    store.open()
    store.save(cell())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FewstepError, match=r"No space left on device.*make room"):
        store.save(cell("a2"), {"array": b"half of it"})
    assert [path.name for path in store.folder.iterdir() if not path.name.startswith(".locks")] == ["a1"]
    with pytest.raises(FewstepError, match=r"No space left on device.*make room"):
        store.update(cell(status="failed"))
    assert store.load("a1")["status"] == "ok" and len(list(store.path("a1").iterdir())) == 1


def test_old_cells_are_read_and_those_of_the_future_refused(tmp_path):
    store = Store(tmp_path, "t")
    store.open()
    store.save(cell())
    assert frame(store.cells(), store)["failed"].tolist() == [""]
    store.save(cell("b2", schema=SCHEMA + 1))
    with pytest.raises(FewstepError, match=f"is of form {SCHEMA + 1}, this version reads 1 to {SCHEMA}: update it"):
        store.cells()


def test_a_failed_metric_names_its_columns_and_reason(tmp_path):
    failed = cell(schema=SCHEMA, failures={"prc": "too few"}, extractor="digits_cnn", reason="")
    row = frame([failed], Store(tmp_path, "t")).iloc[0]
    assert row.failed == "precision_digits_cnn recall_digits_cnn" and row.reason == "prc: too few" and row.fd == 1.5


def _write_slowly(root, started):
    store = Store(root, "t")
    store.open()

    def hang(path):
        started.set()
        time.sleep(60)

    files.flush = hang
    with store.claim("a1"):
        store.save(cell(), {"array": b"half of it"})


def test_kill_in_the_middle_of_a_write_leaves_no_cell(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    writer = context.Process(target=_write_slowly, args=(tmp_path, started))
    writer.start()
    assert started.wait(60)
    store = Store(tmp_path, "t")
    with store.claim("a1") as mine:
        assert not mine, "a living writer holds its cell"
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert store.load("a1") is None and store.cells() == []
    with store.claim("a1") as mine:
        assert mine, "the lock goes with its process"
    store.open()
    assert [p.name for p in store.folder.iterdir()] == [".locks"]


def test_a_record_is_plain_json(tmp_path):
    store = Store(tmp_path, "t")
    store.open()
    store.save(cell())
    assert json.loads((store.path("a1") / "cell.json").read_text())["id"] == "a1"
