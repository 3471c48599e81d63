"""Where cells are computed: in this process, or in workers on this machine.

An executor is used as `with executor: executor.submit(function, *arguments) -> Future`, like those of
concurrent.futures, and says by `workers` how many jobs it does at a time. Jobs are functions of modules and take plain
arguments, so that a cluster can be one more file here. Importing this package imports no torch.
"""

import math
import os
from collections.abc import Sequence

from bench.executors.inline import Inline
from bench.executors.workers import Workers
from bench.plan import REAL, Cell
from bench.tasks import Task
from students.errors import FewstepError

CELL_SECONDS = 0.3  # a cell's metrics, latency and writing
VALUES_A_SECOND = {"cpu": 3e5, "cuda": 3e7}  # values x steps that a core draws, or a GPU: digits, roughly
LEAST_SECONDS = 10  # of work for each worker, with which it is worth its start


def estimated_seconds(cells: Sequence[Cell], task: Task, kind: str) -> float:
    """What cells take on one core or GPU, roughly: values of a sample x samples x steps, and a constant for each."""
    values = task.samples * math.prod(task.shape)
    steps = sum(cell.steps for cell in cells if cell.student != REAL)
    return len(cells) * CELL_SECONDS + values * steps / VALUES_A_SECOND[kind]


def choose(workers: int | None, cells: Sequence[Cell], task: Task, device: str):
    """The executor with so many workers, None for as many as promise to be fastest here.

    On a CPU those are one a core, or fewer where a task asks for more threads, as a thread that waits for another core
    at OpenMP's barriers takes time from all; on GPUs one a GPU. In either case no more than the work is enough for (see
    `estimated_seconds`), and with a single one the work is done in this process. Raises FewstepError for more workers
    than GPUs.
    """
    from students.devices import check_device

    kind = check_device(device).type
    if kind == "cpu":
        count = workers or _worthwhile(cells, task, kind, _cores() // task.threads)
        return Inline(task.threads) if count == 1 else Workers([None] * count, task.threads)
    gpus = _gpus() if device in ("auto", "cuda") else [device]
    if workers and workers > len(gpus):
        raise FewstepError(f"--workers {workers} are more than the {len(gpus)} GPUs of --device {device}")
    count = workers or _worthwhile(cells, task, "cuda", len(gpus))
    return Inline() if count == 1 else Workers(gpus[:count], max(1, _cores() // count))


def _worthwhile(cells: Sequence[Cell], task: Task, kind: str, most: int) -> int:
    """One worker for each LEAST_SECONDS of work, at least one and at most `most`."""
    return max(1, min(most, int(estimated_seconds(cells, task, kind) / LEAST_SECONDS)))


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
