"""The sweep: skip the cells that are finished, run the rest."""

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from bench.measure import METRICS
from bench.plan import Cell
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
                steps = steps_for_budget(evaluator.student(name), budget, scale)
                if steps is None:
                    print(f"note: {name} has no step count within {budget} evaluations", file=sys.stderr)
                else:
                    runs.append((name, steps, scale))
    return runs


def run(
    cells: Sequence[Cell], task: Task, store: Store, metrics: Sequence[str], device: str = "cpu", dtype: str = "float32"
) -> list[dict]:
    """Compute the cells that the store lacks; returns the records of all of them, in the order given.

    Cells that another process is computing are waited for. A failed cell is tried again. Raises FewstepError,
    before the first cell, for a device that is not there, students that cannot be loaded, an unwritable store.
    """
    todo = [cell for cell in cells if not _complete(store.load(cell.id), metrics)]
    if todo:
        from bench.evaluate import Evaluator

        evaluator = Evaluator(task, metrics, device, dtype)
        evaluator.prepare(cell.student for cell in todo)
        store.open()
    with tqdm(total=len(todo), unit="cell", disable=not todo, dynamic_ncols=True) as bar:
        while todo:
            waiting = []
            for cell in todo:
                with store.claim(cell.id) as mine:
                    if not mine:
                        waiting.append(cell)
                        continue
                    bar.set_description(cell.title)
                    if not _complete(store.load(cell.id), metrics):
                        evaluator.complete(cell, store)
                    bar.update()
            if waiting:
                bar.set_description("waiting for cells of another run")
                time.sleep(POLL_SECONDS)
            todo = waiting
    return [store.load(cell.id) for cell in cells]


def _complete(record: dict | None, metrics: Sequence[str]) -> bool:
    """Whether a cell needs no more work: it is unsupported, or has every metric by the code as it is now."""
    if record is None or record["status"] == FAILED:
        return False
    return record["status"] == UNSUPPORTED or all(
        record["metric_code"].get(name) == METRICS[name].code() for name in metrics
    )
