"""Sweeps by worker processes: the same numbers, and what happens when processes are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.cli import main
from bench.store import Store

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def measured(root, task):
    """Everything in a store that must not depend on how the run went, the statistics' bytes included."""
    store = Store(root, task)
    keys = ("status", "nfe", "setup_nfe", "metrics", "samples", "failures")
    return {cell["id"]: ([repr(cell.get(key)) for key in keys], store.arrays(cell["id"])) for cell in store.cells()}


@pytest.mark.parametrize(
    ("task", "students", "shard"),
    [("gaussians", ["ddim", "ddpm", "rk45", "pndm"], 5000), ("digits", ["ddim", "adaptive_sde"], 64)],
)
def test_workers_give_the_same_bits(task, students, shard, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.plan.SHARD", shard)
    arguments = ["run", task, "--students", *students, "--steps", "1", "7", "--samples", "90", "--seed-blocks", "3"]
    arguments += ["--batch-size", "32"]
    for workers in ("1", "2"):
        assert main([*arguments, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
    one, two = (measured(tmp_path / workers, task) for workers in ("1", "2"))
    assert one == two and len(one) == 1 + 3 + 2 * 3 * len(students)


THIRD_PARTY = """
import torch
from students.student import Student

class Mine(Student):
    shape, classes = (2,), None
    def __init__(self):
        self.network = torch.nn.Identity()
    def sample(self, n_steps, seeds=range(16), guidance=1.0):
        return self.network(torch.tensor([[s % 7, s % 5] for s in seeds], dtype=torch.float32))
"""


def test_third_parties_of_the_current_folder_are_found_by_workers(tmp_path, monkeypatch):
    (tmp_path / "third_party_mine.py").write_text(THIRD_PARTY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["run", "gaussians", "--students", "third_party_mine:Mine", "--steps", "1", "--samples", "64"]
    assert main([*arguments, "--workers", "2"]) == 0
    assert {cell["status"] for cell in Store(tmp_path, "gaussians").cells()} == {"ok"}


def started(out, *arguments):
    """A run of the command line by two workers that has some cells."""
    command = [sys.executable, "-m", "bench", "run", "gaussians", "--students", "ddim", "heun", "ddpm"]
    command += ["--samples", "500", "--seed-blocks", "3", "--workers", "2", "--out", str(out), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while len(list((out / "run/gaussians").glob("[!.]*/cell.json"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return process, [child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline())]


def are_gone(processes) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            return True
        time.sleep(0.1)
    return False


def test_a_killed_worker_ends_the_sweep_in_one_line_and_the_same_command_goes_on(tmp_path):
    process, workers = started(tmp_path)
    workers[0].kill()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in error
    assert "a worker process ended" in error.splitlines()[-1] and ", block " in error.splitlines()[-1]
    assert are_gone(workers) and len(Store(tmp_path, "gaussians").cells()) >= 3
    arguments = ["run", "gaussians", "--students", "ddim", "heun", "ddpm", "--samples", "500", "--seed-blocks", "3"]
    arguments += ["--workers", "1"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert len(Store(tmp_path, "gaussians").cells()) == 49


def test_ctrl_c_ends_all_and_keeps_finished_cells(tmp_path):
    process, workers = started(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in error
    assert "interrupted: finished cells are kept" in error.splitlines()[-1]
    assert are_gone(workers) and len(Store(tmp_path, "gaussians").cells()) >= 3


def test_workers_end_with_a_killed_driver(tmp_path):
    process, workers = started(tmp_path)
    process.kill()
    assert len(workers) == 2 and are_gone(workers)
    process.communicate()


def test_two_runs_with_workers_share_the_cells(tmp_path):
    runs = [started(tmp_path, "--steps", "1", "2"), started(tmp_path, "--steps", "1", "2")]
    for process, _ in runs:
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
    assert len(Store(tmp_path, "gaussians").cells()) == 22
