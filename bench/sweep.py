"""The driver of a sweep: skips the cells that are finished, has the rest computed, and alone writes the store."""

import math
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait

from tqdm import tqdm

from bench.executors import choose
from bench.measure import METRICS
from bench.plan import REAL, TEACHER, Cell, Setup
from bench.store import FAILED, UNSUPPORTED, Store
from bench.tasks import Task
from students.errors import FewstepError
from students.spec import parse

POLL_SECONDS = 0.5


def run(
    cells: Sequence[Cell],
    task: Task,
    store: Store,
    metrics: Sequence[str],
    device: str = "cpu",
    dtype: str = "float32",
    save_images: bool = False,
    time_limit: float = math.inf,
    workers: int | None = 1,
) -> list[dict]:
    """Compute the cells that the store lacks; returns the records of all that are there then, in the order given.

    Cells that another process is computing are waited for. A failed cell is tried again. Raises FewstepError,
    before the first cell, for a device that is not there, students that cannot be loaded, an unwritable store; and if a
    worker is killed. save_images: also write every image as a PNG file into its cell. time_limit: seconds after which
    no cell is begun. workers: processes, see bench/executors; None for as many as are worth it, which wants a script
    that can be imported (`if __name__ == "__main__"`).
    """
    deadline = time.monotonic() + time_limit
    setup = Setup(task, tuple(metrics), device, dtype, save_images)
    todo = [cell for cell in cells if not _is_finished(store, cell, setup)]
    if todo:
        store.open()
        running: list[str] = []
        try:
            with choose(workers, todo, task, device) as executor:
                left = _Sweep(setup, store, executor, deadline, running).run(todo)
        except BrokenExecutor as error:
            raise FewstepError(
                "a worker process ended, by itself, by somebody or for want of memory (--workers 1 needs least), while "
                f"it computed one of these: {'; '.join(running)}. Finished cells are kept, and the same command goes "
                "on from them; leave a student out that ends its process"
            ) from error
        if left:
            print(f"time is up with {left} cells to go: the same command goes on with them", file=sys.stderr)
    return [record for cell in cells if (record := store.load(cell.id)) is not None]


def _is_finished(store: Store, cell: Cell, setup: Setup) -> bool:
    """Whether a cell needs no more work: it is unsupported, or has its pictures and each metric by today's code."""
    record = store.load(cell.id)
    if record is None or record["status"] == FAILED:
        return False
    if record["status"] == UNSUPPORTED:
        return True
    pictured = not setup.save_images or cell.student == REAL or store.has_images(cell.id)
    return pictured and all(record["metric_code"].get(name) == METRICS[name].code() for name in setup.metrics)


class _Sweep:
    """Cells on their way. The life of a cell is a generator of the futures it waits for, see `_life`."""

    def __init__(self, setup: Setup, store: Store, executor, deadline: float, running: list[str]):
        self.setup, self.store, self.executor, self.deadline = setup, store, executor, deadline
        self.running = running  # titles of the cells on their way, for whoever has to say what was lost
        self._todo: deque[Cell] = deque()
        self._held: list[Cell] = []  # by another run, just now
        self._lives: dict[Cell, tuple[Generator[list[Future], None, bool], list[Future]]] = {}
        self._teachers: dict[tuple, Future] = {}

    def run(self, cells: Sequence[Cell]) -> int:
        """Compute the cells; returns how many are left when time is up."""
        self._todo.extend(cells)
        self._prepare(cells)
        try:
            with tqdm(total=len(cells), unit="cell", dynamic_ncols=True) as bar:
                while self._lives or ((self._todo or self._held) and not self._late()):
                    self._begin(bar)
                    self._wait(bar)
        finally:
            self.running[:] = [cell.title for cell in self._lives]
            for life, _ in self._lives.values():
                life.close()  # gives its claim back
        return len(self._todo) + len(self._held)

    def _prepare(self, cells: Sequence[Cell]) -> None:
        """Have each worker load its part of the students, so that nothing is stored if one of them cannot be."""
        from bench import evaluate

        specs = list(dict.fromkeys(cell.student for cell in cells))
        parts = [specs[i :: self.executor.workers] for i in range(self.executor.workers)]
        for job in [self.executor.submit(evaluate.prepare, self.setup, part) for part in parts]:
            job.result()

    def _late(self) -> bool:
        return time.monotonic() >= self.deadline

    def _begin(self, bar: tqdm) -> None:
        """Begin cells while fewer jobs than two a worker are under way, and there is time."""
        while self._todo and not self._late():
            if max(len(self._pending()), len(self._lives) / 2) >= 2 * self.executor.workers:
                return
            cell = self._todo.popleft()
            bar.set_description(cell.title)
            self._lives[cell] = self._life(cell), []
            self._go_on(cell, bar)

    def _wait(self, bar: tqdm) -> None:
        """Wait until something happens, then go on with the cells that have all they waited for."""
        pending = self._pending()
        if pending:
            wait(pending, POLL_SECONDS if self._held else None, FIRST_COMPLETED)
        elif self._held and not self._todo:
            bar.set_description("waiting for cells of another run")
            time.sleep(POLL_SECONDS)
        for cell in [cell for cell, (_, jobs) in self._lives.items() if all(job.done() for job in jobs)]:
            self._go_on(cell, bar)
        if not self._todo:
            self._todo.extend(self._held)
            self._held.clear()

    def _pending(self) -> set[Future]:
        return {job for _, jobs in self._lives.values() for job in jobs if not job.done()}

    def _go_on(self, cell: Cell, bar: tqdm) -> None:
        """Go on with a cell until it has to wait, is done, or turns out to be held by another run."""
        life, jobs = self._lives[cell]
        try:
            while all(job.done() for job in jobs):
                jobs = next(life)
        except StopIteration as end:
            del self._lives[cell]
            if end.value:
                bar.update()
            else:
                self._held.append(cell)
        else:
            self._lives[cell] = life, jobs

    def _life(self, cell: Cell) -> Generator[list[Future], None, bool]:
        """Compute and store a cell; yields the futures to wait for, and returns whether it was free to be claimed."""
        with self.store.claim(cell.id) as mine:
            if mine and not _is_finished(self.store, cell, self.setup) and not (yield from self._remeasure(cell)):
                yield from self._compute(cell)
        return mine

    def _remeasure(self, cell: Cell) -> Generator[list[Future], None, bool]:
        """Compute the metrics that a stored cell lacks from its statistics; returns whether those were enough."""
        from bench import evaluate

        record, stored = self.store.load(cell.id), self.store.arrays(cell.id)
        if not stored or (self.setup.save_images and cell.student != REAL and not self.store.has_images(cell.id)):
            return False
        job = self.executor.submit(evaluate.remeasure, self.setup, cell, record, stored)
        yield [job]
        if job.result() is None:
            return False
        self.store.update(job.result())
        return True

    def _compute(self, cell: Cell) -> Iterator[list[Future]]:
        """Compute a cell from its shards."""
        from bench import evaluate

        shards = cell.shards(self.setup.task.batch_size)
        teachers = [self._teacher(cell, seeds) for seeds in shards] if self._has_teacher(cell) else []
        yield teachers
        rows = [job.result() for job in teachers] or [None] * len(shards)
        function = evaluate.compute_cell if len(shards) == 1 else evaluate.compute_shard
        jobs = [
            self.executor.submit(function, self.setup, cell, seeds, near)
            for seeds, near in zip(shards, rows, strict=True)
        ]
        yield jobs
        if len(shards) > 1:
            jobs = [self.executor.submit(evaluate.finish, self.setup, cell, [job.result() for job in jobs])]
            yield jobs
        outcome = jobs[0].result()
        self.store.save(outcome.record, outcome.files)

    def _has_teacher(self, cell: Cell) -> bool:
        """Whether it is compared with the teacher's samples; a student with a model of its own has another teacher."""
        if cell.student in (REAL, TEACHER):
            return cell.student == TEACHER
        return self.setup.needs("faithfulness") and not parse(cell.student).model

    def _teacher(self, cell: Cell, seeds: range) -> Future:
        """The teacher's samples for these seeds, drawn once for all cells and kept in memory.

        That is for small tasks: 50,000 images of 32x32 in colour take 600 MB.
        """
        from bench import evaluate

        key = seeds, cell.guidance
        if key not in self._teachers:
            self._teachers[key] = self.executor.submit(evaluate.teacher_samples, self.setup, cell, seeds)
        return self._teachers[key]
