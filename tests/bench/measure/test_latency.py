import mmap
import time

import pytest
import torch
from torch import nn

from bench.measure import latency
from bench.measure.latency import NetworkClock, PeakMemory, measure_latency, measure_throughput, summary


def test_summary():
    assert summary([0.003, 0.001, 0.002]) == pytest.approx({"median_ms": 2.0, "p90_ms": 2.8})
    assert summary([i / 1000 for i in range(101)]) == pytest.approx({"median_ms": 50.0, "p90_ms": 90.0})
    assert summary([0.5]) == {"median_ms": 500.0, "p90_ms": 500.0}


class FakeClock:
    """perf_counter that moves only when told."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

    def work(self, seconds):
        self.now += seconds


def test_warm_up_does_not_count(monkeypatch):
    clock = FakeClock(monkeypatch)
    durations = iter([9.0, 9.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    measured = measure_latency(lambda: clock.work(next(durations)), "cpu", repeats=5, warmup=2)
    assert measured == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert list(durations) == []


def test_what_is_slow_is_timed_less_often(monkeypatch):
    clock = FakeClock(monkeypatch)
    assert len(measure_latency(lambda: clock.work(1.0), "cpu", repeats=9, enough=0.5)) == 3
    assert len(measure_latency(lambda: clock.work(1.0), "cpu", repeats=9, enough=5.0)) == 5
    assert len(measure_latency(lambda: clock.work(1.0), "cpu", repeats=9)) == 9


class Working(nn.Module):
    def __init__(self, clock, seconds, inner=None):
        super().__init__()
        self.clock, self.seconds, self.inner = clock, seconds, inner

    def forward(self, x):
        self.clock.work(self.seconds)
        return x if self.inner is None else self.inner(x)


def test_network_share(monkeypatch):
    clock = FakeClock(monkeypatch)
    inner = Working(clock, 2.0)
    outer = Working(clock, 1.0, inner)
    with NetworkClock([outer, inner], "cpu") as networks:
        outer(torch.zeros(1))
        clock.work(100.0)  # the solver
        inner(torch.zeros(1))
    outer(torch.zeros(1))  # outside
    assert networks.seconds == pytest.approx(1 + 2 + 2)


def test_a_failing_network_leaves_the_clock_usable(monkeypatch):
    clock = FakeClock(monkeypatch)

    class Failing(nn.Module):
        def forward(self, x):
            clock.work(1.0)
            raise ValueError

    failing, fine = Failing(), Working(clock, 2.0)
    with NetworkClock([failing, fine], "cpu") as networks:
        with pytest.raises(ValueError):
            failing(torch.zeros(1))
        clock.work(100.0)
        fine(torch.zeros(1))
    assert networks.seconds == pytest.approx(3.0)
    assert not failing._forward_hooks and not fine._forward_pre_hooks


def test_the_device_is_waited_for(monkeypatch):
    clock = FakeClock(monkeypatch)
    queued = []

    def synchronise(device):
        assert device.type == "cuda"
        while queued:
            clock.work(queued.pop())

    monkeypatch.setattr(latency, "synchronise", synchronise)
    measured = measure_latency(lambda: queued.append(0.25), "cuda", repeats=3, warmup=1)
    assert measured == pytest.approx([0.25] * 3)


def test_peak_memory_sees_what_is_freed_again():
    with PeakMemory("cpu") as before:
        pass
    # mapped, not from a heap that may have room already
    with PeakMemory("cpu") as memory, mmap.mmap(-1, 64 * 2**20) as block:
        block[:: mmap.PAGESIZE] = bytes(len(block) // mmap.PAGESIZE)
    with PeakMemory("cpu") as after:
        pass
    assert memory.peak_mb >= 64
    if memory.kind == "resident":
        assert memory.peak_mb - before.peak_mb == pytest.approx(64, abs=4)
        assert memory.peak_mb - after.peak_mb == pytest.approx(64, abs=4)


def test_peak_memory_where_the_peak_cannot_be_reset(monkeypatch):
    monkeypatch.setattr(latency, "_reset_resident_peak", lambda: False)
    with PeakMemory("cpu") as memory:
        pass
    assert memory.kind == "process" and 10 < memory.peak_mb < 1e6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    with PeakMemory("cuda") as memory:
        torch.ones(64 * 2**20, dtype=torch.uint8, device="cuda")
    assert memory.kind == "cuda" and memory.peak_mb >= 64
    x = torch.randn(2048, 2048, device="cuda")
    start = time.perf_counter()
    measured = measure_latency(lambda: x @ x, "cuda", repeats=3)
    assert 0 < sum(measured) < time.perf_counter() - start


def throughput(batches, *later):
    """The milliseconds an image, and how many more batches were drawn for it."""
    more = iter(later)
    found = measure_throughput(batches, lambda size: next(more))
    return found["throughput_batch"], found["throughput_ms"], len(later) - len(list(more))


def test_the_first_batch_warms_up():
    assert throughput([(1000, 5.0), (1000, 0.005), (1000, 0.007)]) == pytest.approx((1000, 0.006, 0))
    assert throughput([(1000, 5.0), (1000, 0.005)], 0.007, 9.0) == pytest.approx((1000, 0.006, 1))
    assert throughput([(1000, 5.0)], 0.005, 0.007, 9.0) == pytest.approx((1000, 0.006, 2))


def test_a_slow_student_draws_no_more_than_it_must():
    assert throughput([(10, 90.0), (10, 80.0)], 1.0) == pytest.approx((10, 8000.0, 0))
    assert throughput([(10, 90.0)], 80.0, 1.0) == pytest.approx((10, 8000.0, 1))


def test_the_rest_is_no_full_batch_and_halved_batches_are_the_full_ones():
    assert throughput([(4, 9.0), (4, 0.4), (4, 0.8), (1, 0.3)]) == pytest.approx((4, 150.0, 0))
    assert throughput([(8, 9.0), (4, 9.0), (4, 0.4), (4, 0.8)]) == pytest.approx((4, 150.0, 0))
