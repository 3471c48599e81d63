"""Work on one batch beside the drawing of the next, on a GPU."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def beside(work: Callable[..., None], device: torch.device, alone: int) -> Iterator[Callable[..., None]]:
    """A function that has `work` done with its arguments, one call after another, all of them when the block ends.

    On a GPU that is in a thread and a stream of its own, at most one call behind; the first `alone` calls are done
    before they return, so that what is timed between them is not slowed down. Elsewhere all calls are.
    """
    if device.type != "cuda":
        yield work
        return
    stream, calls = torch.cuda.Stream(device), itertools.count(1)
    pending: deque[Future] = deque()

    def in_stream(*arguments) -> None:
        with torch.cuda.stream(stream):
            work(*arguments)

    with ThreadPoolExecutor(max_workers=1) as thread:

        def submit(*arguments) -> None:
            pending.append(thread.submit(in_stream, *arguments))
            behind = 0 if next(calls) <= alone else 1
            while len(pending) > behind:
                pending.popleft().result()

        yield submit
        while pending:
            pending.popleft().result()
