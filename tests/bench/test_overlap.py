"""Work beside the drawing: in order, all of it, and beside only on a GPU and after what is timed."""

import threading
from contextlib import nullcontext

import pytest
import torch

from bench.overlap import beside


def test_elsewhere_work_is_done_in_place():
    with beside(list.append, torch.device("cpu"), alone=1) as submit:
        assert submit is list.append


@pytest.fixture
def streams(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())


def test_on_a_gpu_later_calls_run_behind_in_order(streams):
    go, done = threading.Event(), []

    def work(i):
        if i == 2:
            assert go.wait(60)
        done.append((i, threading.current_thread() is threading.main_thread()))

    with beside(work, torch.device("cuda"), alone=2) as submit:
        submit(0), submit(1)
        assert done == [(0, False), (1, False)], "those that come first are done when they return"
        submit(2)
        assert len(done) == 2
        go.set()
        submit(3), submit(4)
    assert [i for i, _ in done] == [0, 1, 2, 3, 4]


def test_what_fails_beside_is_raised(streams):
    def fail():
        raise ValueError("in the thread")

    with pytest.raises(ValueError, match="in the thread"), beside(fail, torch.device("cuda"), alone=0) as submit:
        submit()
