"""Jobs done in processes of this machine.

Workers share nothing: each loads what it needs once. They go with the driver, however that ends, and Ctrl-C is the
driver's to answer.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager

from bench.executors.threads import limited_threads


class Workers:
    """A process for each entry of `gpus`, which names its GPU or is None.

    threads: of torch and BLAS in each. Leaving the block with an exception kills the processes. A job whose process was
    killed raises concurrent.futures.BrokenExecutor, and so do all that are left then.
    """

    def __init__(self, gpus: Sequence[str | None], threads: int):
        self.workers = len(gpus)
        context = multiprocessing.get_context("spawn")
        waiting = context.Queue()
        for gpu in gpus:
            waiting.put(gpu)
        others = multiprocessing.active_children()
        self._pool = ProcessPoolExecutor(self.workers, context, _begin, (waiting, threads))
        with _interrupts_held():
            for _ in gpus:  # each starts one process, as none is idle yet
                self._pool.submit(os.getpid)
        self._processes = [process for process in multiprocessing.active_children() if process not in others]

    def submit(self, function, /, *arguments) -> Future:
        return self._pool.submit(function, *arguments)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            for process in self._processes:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C back inside the block, and from processes started there for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(waiting, threads: int) -> None:
    """Make a new process a worker: on its GPU, with its threads, ending with the driver."""
    threading.Thread(target=_end_with_driver, daemon=True).start()
    gpu = waiting.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    limits = limited_threads(threads)
    limits.__enter__()
    globals()["_limits"] = limits  # for as long as the process lives


def _end_with_driver() -> None:
    multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)
