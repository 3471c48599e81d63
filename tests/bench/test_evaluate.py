"""What a cell survives: too little memory, a device that goes away; saved images; agreement with the classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bench import evaluate
from bench.context import context_of
from bench.measure import TEACHER_SOLVER, TEACHER_STEPS
from bench.measure.jackknife import GROUPS
from bench.measure.representations import to_uint8
from bench.plan import REAL, TEACHER, Setup, plan
from bench.store import IMAGES, OK, Store
from bench.sweep import run
from bench.tasks import load_task
from students.data import load_data
from students.errors import FewstepError

TASK = replace(load_task("digits"), samples=20, seed_blocks=1, batch_size=16, students=("ddim",), metrics=("fd",))


def evaluated(task=TASK, spoil=None, metrics=("fd",), student="ddim"):
    """The record of two steps, with `spoil(context)` before."""
    setup, cell = Setup(task, metrics), plan(task, [(student, 2, 1.0)])[1]
    if spoil:
        spoil(context_of(setup))
    return evaluate.finish(setup, cell, [evaluate.compute_shard(setup, cell, s) for s in cell.shards(16)]).record


def small_memory(limit: int):
    """Makes the teacher run out of memory for batches larger than `limit`."""

    def spoil(context):
        def refuse(module, args):
            if len(args[0]) > limit:
                raise torch.OutOfMemoryError("not enough")

        context.teacher.denoiser.network.register_forward_pre_hook(refuse)

    return spoil


def test_batches_are_halved_until_they_fit_and_numbers_stay_the_same():
    plain, halved = evaluated(), evaluated(spoil=small_memory(5))
    assert halved["status"] == OK and halved["latency"]["throughput_batch"] == 4
    assert halved["nfe"] == plain["nfe"] == 2
    assert halved["metrics"]["fd_digits_cnn"] == pytest.approx(plain["metrics"]["fd_digits_cnn"], rel=1e-4)


def test_a_single_image_that_does_not_fit_fails_the_cell():
    record = evaluated(spoil=small_memory(0))
    assert record["status"] == "failed" and "not enough" in record["reason"]


def test_a_lost_device_ends_the_sweep_and_is_no_fault_of_the_cell(tmp_path, monkeypatch):
    def lose(context):
        def fail(module, args):
            context.device = torch.device("cuda:99")  # as dead as one that fell off the bus
            raise RuntimeError("CUDA error: unspecified launch failure")

        context.teacher.denoiser.network.register_forward_pre_hook(fail)

    with pytest.raises(FewstepError, match=r"was lost .* finished cells are kept"):
        evaluated(spoil=lose)


def test_a_metric_that_raises_anything_is_its_own_failure(monkeypatch):
    def broken(generated, reference):
        raise ValueError("a fault\nin two lines")

    monkeypatch.setattr("bench.measure.fidelity.kid", broken)
    record = evaluated(metrics=("fd", "kid"))
    assert record["status"] == OK and record["metrics"].keys() == {"fd_digits_cnn"}
    assert record["failures"] == {"kid": "ValueError: a fault in two lines"}


def test_shards_give_the_numbers_of_one_piece(monkeypatch):
    task = replace(TASK, samples=75)
    whole = evaluated(task, student="ddpm")
    monkeypatch.setattr("bench.plan.SHARD", 32)
    assert len(plan(task, [("ddpm", 2, 1.0)])[1].shards(16)) == 3
    parts = evaluated(task, student="ddpm")
    assert parts["metrics"]["fd_digits_cnn"] == pytest.approx(whole["metrics"]["fd_digits_cnn"], rel=1e-9)
    assert (parts["nfe"], parts["samples"]) == (whole["nfe"], whole["samples"]) == (2.0, 75)
    assert parts["latency"].keys() == whole["latency"].keys() and parts["latency"]["throughput_batch"] == 16


def test_what_sets_a_student_up_is_the_same_for_every_cell():
    task = replace(TASK, seed_blocks=2)
    setup = Setup(task, ("fd",))
    cells = plan(task, [("rk45", 12, 1.0)])[1:]
    found = [evaluate.compute_shard(setup, cell, cell.shards(16)[0]).setup for cell in cells]
    assert found[0] == found[1] > 0


def test_saved_images_are_the_samples_rounded(tmp_path):
    store, cells = Store(tmp_path, TASK.name), plan(TASK, [("ddim", 2, 1.0)])
    run(cells, TASK, store, ["fd"])
    folder = store.path(cells[1].id) / IMAGES
    assert not folder.exists()
    run(cells, TASK, store, ["fd"], save_images=True)
    assert len(list(folder.iterdir())) == TASK.samples
    context = context_of(Setup(TASK, ("fd",)))
    seeds = range(16, 20)
    block = range(TASK.samples)
    images = context.student("ddim").sample(2, seeds=seeds, conditions=context.conditions(seeds, block))
    saved = np.stack([np.asarray(Image.open(folder / f"{seed:07d}.png")) for seed in seeds])
    assert np.array_equal(saved, to_uint8(images)[:, 0].numpy())


def test_agreement_is_the_share_of_samples_seen_as_their_class():
    record = evaluated(replace(TASK, samples=200), metrics=("agreement",))
    assert 0.8 < record["metrics"]["agreement_digits_cnn"] <= 1


def test_a_block_shows_the_classes_of_the_data():
    record = evaluated(replace(TASK, samples=100))
    counts = torch.tensor(record["class_counts"])
    shares = load_data("digits").prior
    assert counts.sum() == 100 and ((counts - 100 * shares / shares.sum()).abs() < 1).all()


def test_the_jackknife_is_of_smooth_metrics_whose_rows_are_kept():
    record = evaluated(replace(TASK, samples=100, metrics=("fd", "kid")), metrics=("fd", "kid"))
    assert list(record["jackknife"]) == ["fd_digits_cnn"] and len(record["jackknife"]["fd_digits_cnn"]) == GROUPS
    assert evaluated(replace(TASK, samples=100))["jackknife"] == {}  # nothing keeps rows


def test_the_teacher_s_images_are_those_of_its_solver(tmp_path):
    task = replace(TASK, samples=48, metrics=("fd", "kid", "faithfulness"))
    name = f"{TEACHER_SOLVER}:grid={task.grid}"
    cells = plan(task, [(name, TEACHER_STEPS, 1.0)])
    assert [cell.student for cell in cells] == [REAL, TEACHER, name]
    _, teacher, solver = run(cells, task, Store(tmp_path, task.name), task.metrics)
    assert teacher["family"] == "teacher" and teacher["nfe"] == solver["nfe"] == 2 * TEACHER_STEPS - 1
    assert teacher["metrics"] == pytest.approx(solver["metrics"], rel=1e-4, abs=1e-4)
    assert teacher["class_counts"] == solver["class_counts"]
