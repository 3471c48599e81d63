"""Jobs done at once, in this process."""

from concurrent.futures import Executor, Future

from bench.executors.threads import limited_threads


class Inline(Executor):
    """Does a job when it is submitted. threads: of torch and BLAS until it is shut down, None to leave them alone."""

    workers = 1

    def __init__(self, threads: int | None = None):
        self._threads = limited_threads(threads)
        self._threads.__enter__()

    def submit(self, function, /, *arguments) -> Future:  # type: ignore[override]
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.__exit__(None, None, None)
