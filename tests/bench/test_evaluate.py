"""What a cell survives: too little memory, a device that goes away; saved images; agreement with the classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bench.evaluate import Evaluator
from bench.measure.features import to_uint8
from bench.plan import plan
from bench.results import IMAGES, OK, Store
from bench.sweep import run
from bench.tasks import load_task
from students.errors import FewstepError

TASK = replace(load_task("digits"), samples=20, seed_blocks=1, batch_size=16, students=("ddim",))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path, TASK.name)
    store.open()
    return store


def evaluated(task, store, spoil=None, metrics=("fd",), **options):
    """The record of two DDIM steps, with `spoil(evaluator)` before."""
    cell = plan(task, [("ddim", 2, 1.0)])[1]
    evaluator = Evaluator(task, metrics, "cpu", "float32", **options)
    if spoil:
        spoil(evaluator)
    with store.claim(cell.id):
        evaluator.complete(cell, store)
    return store.load(cell.id)


def small_memory(limit: int):
    """Makes the teacher run out of memory for batches larger than `limit`."""

    def spoil(evaluator):
        def refuse(module, args):
            if len(args[0]) > limit:
                raise torch.OutOfMemoryError("not enough")

        evaluator.teacher.network.register_forward_pre_hook(refuse)

    return spoil


def test_batches_are_halved_until_they_fit_and_numbers_stay_the_same(store, tmp_path):
    plain = evaluated(TASK, store)
    other = Store(tmp_path / "small", TASK.name)
    other.open()
    halved = evaluated(TASK, other, small_memory(5))
    assert halved["status"] == OK and halved["latency"]["throughput_batch"] == 4
    assert halved["nfe"] == plain["nfe"] == 2
    assert halved["metrics"]["fd_digits_cnn"] == pytest.approx(plain["metrics"]["fd_digits_cnn"], rel=1e-4)


def test_a_single_image_that_does_not_fit_fails_the_cell(store):
    record = evaluated(TASK, store, small_memory(0))
    assert record["status"] == "failed" and "not enough" in record["reason"]


def test_a_lost_device_ends_the_sweep_and_is_no_fault_of_the_cell(store, monkeypatch):
    def lose(evaluator):
        def fail(module, args):
            evaluator.device = torch.device("cuda:99")  # as dead as one that fell off the bus
            raise RuntimeError("CUDA error: unspecified launch failure")

        evaluator.teacher.network.register_forward_pre_hook(fail)

    with pytest.raises(FewstepError, match=r"was lost .* finished cells are kept"):
        evaluated(TASK, store, lose)
    assert store.cells() == []


def test_saved_images_are_the_samples_rounded(store, tmp_path):
    cells = plan(TASK, [("ddim", 2, 1.0)])
    run(cells, TASK, store, ["fd"], "cpu")
    folder = store.path(cells[1].id) / IMAGES
    assert not folder.exists()
    run(cells, TASK, store, ["fd"], "cpu", save_images=True)
    assert len(list(folder.iterdir())) == TASK.samples
    images = Evaluator(TASK, ["fd"], "cpu", "float32").student("ddim").sample(2, seeds=range(16, 20))
    saved = np.stack([np.asarray(Image.open(folder / f"{seed:07d}.png")) for seed in range(16, 20)])
    assert np.array_equal(saved, to_uint8(images)[:, 0].numpy())


def test_agreement_is_the_share_of_samples_seen_as_their_class(store):
    record = evaluated(replace(TASK, samples=200), store, metrics=("agreement",))
    assert 0.8 < record["metrics"]["agreement_digits_cnn"] <= 1
