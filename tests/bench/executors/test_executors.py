"""Executors: the same numbers from any, and nothing left behind however they end."""

import os
import signal
import time
from concurrent.futures import BrokenExecutor, wait
from dataclasses import replace

import psutil
import pytest
import torch

from bench import executors
from bench.executors import Inline, Workers, choose, estimated_seconds
from bench.plan import plan
from bench.tasks import load_task
from students.errors import FewstepError

DIGITS = replace(load_task("digits"), samples=899, seed_blocks=3, metrics=("fd",))


def threads_and_pid(seconds=0.0):
    from threadpoolctl import threadpool_info

    time.sleep(seconds)
    blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return torch.get_num_threads(), max(blas, default=1), os.getpid()


def fail(message):
    raise FewstepError(message)


def test_inline_computes_at_once_with_its_threads_and_gives_them_back():
    torch.set_num_threads(2)
    with Inline(1) as executor:
        assert executor.submit(threads_and_pid).result() == (1, 1, os.getpid())
        assert executor.submit(fail, "so").exception().args == ("so",)
    assert torch.get_num_threads() == 2
    with Inline() as executor:
        assert executor.submit(threads_and_pid).result()[0] == 2


def test_an_interrupt_is_not_an_error_of_the_job():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Inline() as executor:
        executor.submit(interrupted)


@pytest.mark.slow
def test_workers_are_processes_with_threads_of_their_own():
    with Workers([None, None], threads=1) as executor:
        found = [executor.submit(threads_and_pid, 0.5) for _ in range(4)]
        assert executor.workers == 2 and len({job.result()[2] for job in found} - {os.getpid()}) == 2
        assert {job.result()[:2] for job in found} == {(1, 1)}
        assert executor.submit(fail, "so").exception().args == ("so",)
        pids = {job.result()[2] for job in found}
    assert not any(map(psutil.pid_exists, pids))


@pytest.mark.slow
def test_a_killed_worker_breaks_the_executor_and_takes_the_others_along():
    with pytest.raises(BrokenExecutor), Workers([None, None], threads=1) as executor:
        pid = executor.submit(threads_and_pid).result()[2]
        jobs = [executor.submit(time.sleep, 60) for _ in range(2)]
        os.kill(pid, signal.SIGKILL)
        wait(jobs, timeout=60)
        assert all(isinstance(job.exception(), BrokenExecutor) for job in jobs)
        executor.submit(os.getpid)
    assert not any(process.is_running() for process in _workers_of(os.getpid()))


@pytest.mark.slow
def test_an_exception_ends_workers_at_once():
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Workers([None, None], threads=1) as executor:
        executor.submit(threads_and_pid).result()
        executor.submit(time.sleep, 600)
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 60 and not _workers_of(os.getpid())


def _workers_of(pid: int) -> list[psutil.Process]:
    return [process for process in psutil.Process(pid).children() if "spawn_main" in " ".join(process.cmdline())]


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(executors, "_cores", lambda: 4)
    monkeypatch.setattr(executors, "Workers", lambda gpus, threads: (gpus, threads))


def count(cells, task=DIGITS, workers=None):
    chosen = choose(workers, cells, task, "cpu")
    if isinstance(chosen, Inline):
        chosen.shutdown()
        return 1, task.threads
    return len(chosen[0]), chosen[1]


def test_the_default_grows_with_the_work_up_to_the_cores(four_cores):
    few = plan(DIGITS, [("ddim", 1, 1.0)])
    some = plan(DIGITS, [("ddim", 8, 1.0), ("heun", 8, 1.0), ("ddpm", 8, 1.0), ("unipc", 8, 1.0)])
    many = plan(DIGITS, [("ddim", n, 1.0) for n in range(1, 20)])
    assert count(few) == (1, 1) and count(some) == (2, 1) and count(many) == (4, 1)
    assert count(many, replace(DIGITS, threads=2)) == (2, 2) and count(many, replace(DIGITS, threads=8)) == (1, 8)
    assert count(few, workers=3) == (3, 1) and count(many, workers=1) == (1, 1)


def test_the_estimate_is_of_values_times_steps():
    cells = plan(replace(DIGITS, seed_blocks=1), [("ddim", 4, 1.0)])
    expected = 2 * executors.CELL_SECONDS + 899 * 64 * 4 / executors.VALUES_A_SECOND["cpu"]
    assert estimated_seconds(cells, DIGITS, "cpu") == pytest.approx(expected)


class Cuda:
    type = "cuda"


@pytest.mark.parametrize(
    ("device", "visible", "asked", "expected"),
    [
        ("cuda", None, None, (["0", "1"], 2)),
        ("cuda", "3,5", None, (["3", "5"], 2)),
        ("cuda", None, 2, (["0", "1"], 2)),
        ("cuda", None, 1, "inline"),
        ("cuda:1", None, None, "inline"),
        ("cuda", None, 3, "--workers 3 are more than the 2 GPUs of --device cuda"),
        ("cuda:1", None, 2, "--workers 2 are more than the 1 GPUs of --device cuda:1"),
    ],
)
def test_one_worker_a_gpu(device, visible, asked, expected, four_cores, monkeypatch):
    monkeypatch.setattr("students.devices.check_device", lambda name: Cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible) if visible else monkeypatch.delenv(
        "CUDA_VISIBLE_DEVICES", raising=False
    )
    cells = plan(replace(DIGITS, samples=50_000), [("ddim", n, 1.0) for n in range(1, 20)])
    if isinstance(expected, str) and expected != "inline":
        with pytest.raises(FewstepError, match=expected):
            choose(asked, cells, replace(DIGITS, samples=50_000), device)
        return
    chosen = choose(asked, cells, replace(DIGITS, samples=50_000), device)
    assert isinstance(chosen, Inline) if expected == "inline" else chosen == expected
