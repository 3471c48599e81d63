"""How many threads torch and BLAS compute with in this process."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """That many threads inside the block, as many as before after it; None changes nothing."""
    if count is None:
        yield
        return
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
