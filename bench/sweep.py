"""The sweep: skip the cells that are finished, run the rest."""

import math
import sys
import time
from collections import deque
from collections.abc import Sequence

from tqdm import tqdm

from bench.measure import METRICS
from bench.plan import REAL, Cell
from bench.results import FAILED, UNSUPPORTED, Store
from bench.tasks import Task
from students.errors import FewstepError

POLL_SECONDS = 0.5


def runs_for_budgets(
    task: Task, students: Sequence[str], budgets: Sequence[int], guidance: Sequence[float], device: str, dtype: str
) -> list[tuple[str, int, float]]:
    """For each student and scale of guidance, the steps that each budget of network evaluations buys.

    A student that cannot spend so little is named on standard error and left out of that budget.
    """
    from bench.evaluate import Evaluator, steps_for_budget

    for budget in budgets:
        if budget < 1:
            raise FewstepError(f"--nfe must be whole numbers of at least 1, got {budget}")
    evaluator = Evaluator(task, task.metrics, device, dtype)
    evaluator.prepare(students)
    runs = []
    for name in students:
        for scale in guidance:
            for budget in budgets:
                try:
                    steps = steps_for_budget(evaluator.student(name), budget, scale)
                except Exception:  # anybody's code: the cell of that many steps will say what is wrong
                    steps = budget
                if steps is None:
                    print(f"note: {name} has no step count within {budget} evaluations", file=sys.stderr)
                else:
                    runs.append((name, steps, scale))
    return runs


def run(
    cells: Sequence[Cell],
    task: Task,
    store: Store,
    metrics: Sequence[str],
    device: str = "cpu",
    dtype: str = "float32",
    save_images: bool = False,
    time_limit: float = math.inf,
) -> list[dict]:
    """Compute the cells that the store lacks; returns the records of all that are there then, in the order given.

    Cells that another process is computing are waited for. A failed cell is tried again. Raises FewstepError,
    before the first cell, for a device that is not there, students that cannot be loaded, an unwritable store.
    save_images: also write every image as a PNG file into its cell. time_limit: seconds after which no cell is begun.
    """
    deadline = time.monotonic() + time_limit

    def finished(cell: Cell) -> bool:
        pictured = not save_images or cell.student == REAL or store.has_images(cell.id)
        return _complete(store.load(cell.id), metrics, pictured)

    todo = deque(cell for cell in cells if not finished(cell))
    if todo:
        from bench.evaluate import Evaluator

        store.open()
        evaluator = Evaluator(task, metrics, device, dtype, save_images)
        evaluator.prepare(cell.student for cell in todo)
    held = 0  # cells in a row that another process holds
    with tqdm(total=len(todo), unit="cell", disable=not todo, dynamic_ncols=True) as bar:
        while todo and time.monotonic() < deadline:
            cell = todo.popleft()
            with store.claim(cell.id) as mine:
                if mine:
                    bar.set_description(cell.title)
                    if not finished(cell):
                        evaluator.complete(cell, store)
                    bar.update()
                    held = 0
                    continue
            todo.append(cell)
            held += 1
            if held == len(todo):
                bar.set_description("waiting for cells of another run")
                time.sleep(POLL_SECONDS)
                held = 0
    if todo:
        print(f"time is up with {len(todo)} cells to go: the same command goes on with them", file=sys.stderr)
    return [record for cell in cells if (record := store.load(cell.id)) is not None]


def _complete(record: dict | None, metrics: Sequence[str], pictured: bool) -> bool:
    """Whether a cell needs no more work: it is unsupported, or has its pictures and each metric by today's code."""
    if record is None or record["status"] == FAILED:
        return False
    if record["status"] == UNSUPPORTED:
        return True
    return pictured and all(record["metric_code"].get(name) == METRICS[name].code() for name in metrics)
