"""Budgets of network evaluations: the steps that each student can take for so many."""

import bisect
import sys
from collections.abc import Iterable, Sequence

from bench.context import Context, context_of
from bench.draw import sample
from bench.plan import Setup
from bench.tasks import Task
from students.errors import FewstepError, UnsupportedSteps
from students.nfe import count_nfe
from students.student import MAX_STEPS, Student

PROBES = range(2**61, 2**61 + 8)  # seeds that no task evaluates


def runs_for_budgets(
    task: Task, students: Sequence[str], budgets: Sequence[int], guidance: Sequence[float], device: str, dtype: str
) -> list[tuple[str, int, float]]:
    """For each student and scale of guidance, the steps that each budget of network evaluations buys.

    A student that cannot spend so little is named on standard error and left out of that budget.
    """
    for budget in budgets:
        if budget < 1:
            raise FewstepError(f"--nfe must be whole numbers of at least 1, got {budget}")
    context = context_of(Setup(task, task.metrics, device, dtype))
    context.prepare(students)
    runs = []
    for name in students:
        for scale in guidance:
            for budget in budgets:
                try:
                    steps = steps_for_budget(context, name, budget, scale)
                except Exception:  # anybody's code: the cell of that many steps will say what is wrong
                    steps = budget
                if steps is None:
                    print(f"note: {name} has no step count within {budget} evaluations", file=sys.stderr)
                else:
                    runs.append((name, steps, scale))
    return runs


def steps_for_budget(context: Context, name: str, nfe: int, guidance: float) -> int | None:
    """The largest supported step count whose measured NFE is at most `nfe`, or None if there is none.

    By bisection; NFE must not fall as steps rise.
    """
    supported = getattr(context.student(name), "supported_steps", Student.supported_steps)
    candidates = supported if isinstance(supported, Iterable) else range(1, MAX_STEPS + 1)
    counts = sorted(n for n in candidates if n in supported and n <= nfe)
    affordable = bisect.bisect_right(counts, float(nfe), key=lambda n: _probe(context, name, n, guidance))
    return counts[affordable - 1] if affordable else None


def _probe(context: Context, name: str, n_steps: int, guidance: float) -> float:
    """Measured NFE; zero for a count that turns out to be too small for the student."""
    student = context.student(name)
    try:
        with count_nfe(student) as counted:
            sample(student, n_steps, PROBES, context.conditions(PROBES, PROBES), guidance)
    except UnsupportedSteps:
        return 0.0
    return counted.per_image
