"""Why a row of a paper's table is not measured here, and what would measure it."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from bench.papers import Ours
from bench.published import BENCHMARKS, Published
from students.models.cards import FILE, load_card
from students.spec import parse

NO_LOADER = "needs its authors' weights, for which there is no loader"


@dataclass(frozen=True)
class Measured:
    """A number with the half-width of its 95 % interval (NaN where nothing tells it), and `by` what; or `reason`.

    missing: (task, student, "--steps" or "--nfe" or "", how many, what else is lacking) of a cell that can be run.
    """

    value: float = math.nan
    margin: float = math.nan
    by: str = ""
    reason: str = ""
    missing: tuple[str, str, str, float, str] | None = None


def commands(rows: Iterable[dict[str, Measured]]) -> list[dict[str, Measured]]:
    """The same, with one command for all cells of a student that are missing as the reason of each."""
    rows = list(rows)
    wanted = defaultdict(set)
    for measured in (m for row in rows for m in row.values() if m.missing):
        task, spec, option, count, lacking = measured.missing  # type: ignore[misc]
        wanted[task, spec, option, lacking].add(count)

    def named(measured: Measured) -> Measured:
        if measured.missing is None:
            return measured
        task, spec, option, _, lacking = measured.missing
        counts = "".join(f" {count:g}" for count in sorted(wanted[task, spec, option, lacking])) if option else ""
        words = f"python -m bench run {task} --students {spec}{' ' * bool(option)}{option}{counts}"
        return replace(measured, reason=f"not run: {words}{lacking}")

    return [{metric: named(measured) for metric, measured in row.items()} for row in rows]


def asked(row: Published, ours: Ours) -> tuple[str, float]:
    """The option of `bench run` for the cells of a row, and its value."""
    steps = row.steps or (ours.steps if row.nfe is None else None)
    return ("--steps", steps) if steps else ("--nfe", row.nfe) if row.nfe else ("", 0)


def no_task(row: Published, ours: Ours) -> Measured:
    """Why nothing measures a benchmark that no task is of."""
    benchmark, public = BENCHMARKS[row.benchmark], ours.public.get(row.benchmark)
    weights = f"the weights {public}" if public else "its authors' weights, of which there is no card"
    return Measured(reason=f"no task here is of {benchmark.title}: needs {benchmark.needs}, and {weights}")


def lacking_weights(spec: str) -> str:
    """` (needs the weights edm:uncond-vp, see https://...)`, where a checkpoint is not there."""
    model = parse(spec).model
    if model is None or model.startswith(f"{FILE}:"):
        return ""
    card = load_card(model)
    missing = not all(file.path.is_file() for file in card.data_files())
    return f" (needs the weights {card.spec}, see {card.page})" if missing else ""
