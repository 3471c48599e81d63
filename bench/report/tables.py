"""Cells to tables: statistics over seed blocks, students x steps, and results.csv."""

import math
import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report.files import write_atomically
from bench.report.uncertainty import LEFT_OUT, REPEATS, bias, estimate
from students.errors import FewstepError

REAL, TEACHER = "real", "teacher"  # the rows that are no student's
WIDTH = 120
PROTOCOL = ["samples", "guidance", "dtype", "rounding"]
KEYS = ["task", "version", *PROTOCOL, "student", "steps"]
TIMES = ["latency_ms", "latency_p90_ms", "throughput_ms", "throughput_p90_ms", "network_ms"]
SUFFIXES = ("_std", "_min", "_se", "_bias", "_seeds_std")
TIMED = [*TIMES, "throughput_batch", "peak_memory_mb"]  # what no two runs measure alike
ONCE = {
    "grid": "first",
    "setup_nfe": "mean",
    "throughput_batch": "first",
    "peak_memory_mb": "max",
    "own_model": "first",
    "training_evaluations": "first",
    "training_cost": "first",
    "training_seconds": "first",
    "straightness": "first",
    "trained_in": "first",
}


def _present(names, cells: pd.DataFrame) -> list[str]:
    return [name for name in names if name in cells]


def _union(column: pd.Series) -> str:
    """The words of all rows, each once."""
    return " ".join(sorted({word for words in column for word in words.split()}))


def aggregate(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per (student, steps, protocol): every measured column as mean, `_std` (ddof 1) and `_min` over blocks.

    `_se` is the standard error of the mean (uncertainty.py). Cells that differ in samples, guidance, dtype or rounding
    are never averaged. A row has numbers only if all its blocks are "ok", a `_std` only if there are at least two, and
    times only if one device took them. `failed` names the
    columns whose metric failed in a block, spaces between: of these there is no number either.
    Raises FewstepError for cells of the family "published": quoted numbers are never mixed with measured ones.
    """
    if (cells["family"] == "published").any():
        raise FewstepError(
            "published numbers cannot be aggregated with measured ones: keep them in a table of their own"
        )
    keys = _present(KEYS, cells)
    # in the order of the blocks, not of when they were done: a deviation is rounded by the order of its terms
    groups = cells.sort_values([*keys, "seed_block"], kind="stable").groupby(keys, dropna=False)
    table = groups.agg(
        family=("family", "first"),
        blocks=("seed_block", "nunique"),
        status=("status", lambda column: next((s for s in ("failed", "unsupported") if s in set(column)), "ok")),
        reason=("reason", lambda column: "; ".join(dict.fromkeys(filter(None, column)))),
        device=("device", lambda column: " + ".join(sorted(set(column)))),
        **{name: (name, _union) for name in _present(["failed"], cells)},
        **{name: (name, how) for name, how in ONCE.items() if name in cells},
    )
    numbers = [name for name in cells.select_dtypes("number") if name not in {*keys, "seed_block", *ONCE}]
    spread = groups[numbers].agg(["mean", "std", "min"])
    spread.columns = [name if how == "mean" else f"{name}_{how}" for name, how in spread.columns]
    spread = spread.join(_uncertainty(groups, numbers, spread, table["blocks"]))
    spread[table["status"] != "ok"] = math.nan
    failed = table["failed"] if "failed" in table else table["status"].map(lambda _: "")
    for name in sorted(set(_union(failed).split()) & set(numbers)):
        lacking = failed.map(lambda columns, name=name: name in columns.split())
        spread.loc[lacking, _present([f"{name}{suffix}" for suffix in ("", *SUFFIXES)], spread)] = math.nan
    mixed = table["device"].str.contains(" + ", regex=False)
    spread.loc[mixed, _present([f"{name}{suffix}" for name in TIMES for suffix in ("", *SUFFIXES)], spread)] = math.nan
    return table.join(spread).reset_index()


def _uncertainty(groups, numbers: list[str], spread: pd.DataFrame, blocks: pd.Series) -> pd.DataFrame:
    """`_se` of every number; `_bias` of those known without each group of samples, of so many samples; and `_seeds_std`
    of those known for other training seeds, the deviation over all seeds."""
    found = {f"{name}_se": spread[f"{name}_std"] / blocks**0.5 for name in numbers}
    for name in numbers:
        if name + LEFT_OUT in groups.obj:
            both = groups[[name, name + LEFT_OUT]]
            found[f"{name}_se"] = both.apply(lambda rows: estimate(*map(list, rows.values.T)).error)
            found[f"{name}_bias"] = both.apply(lambda rows: _mean_bias(*rows.values.T))
        if name + REPEATS in groups.obj:
            both = groups[[name, name + REPEATS]]
            found[f"{name}_seeds_std"] = both.apply(lambda rows: _over_seeds(*rows.values.T))
    return pd.DataFrame(found)


def _over_seeds(values, repeats) -> float:
    others = repeats[0]
    return statistics.stdev([math.fsum(values) / len(values), *others]) if isinstance(others, list) else math.nan


def _mean_bias(values, left_out) -> float:
    parts = [bias(part, value) for value, part in zip(values, left_out, strict=True) if isinstance(part, list)]
    return math.fsum(parts) / len(parts) if len(parts) == len(values) else math.nan


def write_results(cells: pd.DataFrame, path: Path) -> Path:
    """Write `aggregate(cells)` as CSV; every float reads back as it was."""
    return write_atomically(Path(path), aggregate(cells).to_csv(index=False, lineterminator="\n").encode())


def protocols(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """Groups of cells that may be compared: equal samples, guidance, dtype and rounding.

    The group with most samples is first, float32 before other dtypes. Each group ends with its floor: of the
    real-against-real cells with no more samples, the largest.
    """
    real = cells[cells["student"] == REAL]
    students = cells[cells["student"] != REAL]
    groups = [group for _, group in students.groupby(_present(PROTOCOL, cells))]
    groups.sort(key=lambda group: (-group["samples"].iloc[0], group["dtype"].iloc[0] != "float32"))
    return [
        pd.concat([group, real[real["samples"] <= group["samples"].iloc[0]].nlargest(1, "samples")]) for group in groups
    ]


def describe(cells: pd.DataFrame) -> str:
    """The protocol of a group in words: `899 samples, 3 seed blocks, guidance 1, float32, rounding round`."""
    students = without_references(cells)
    first = students.iloc[0]
    counts = students.groupby(["student", "steps"])["seed_block"].nunique()
    low, high = counts.min(), counts.max()
    blocks = f"{low}" if low == high else f"{low} to {high}"
    words = [f"{first['samples']} samples", f"{blocks} seed block{'s' if high > 1 else ''}"]
    words += [f"guidance {first['guidance']:g}", first["dtype"]]
    words += [f"rounding {first[name]}" for name in _present(["rounding"], cells)]
    return ", ".join(words)


def without_references(cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of students: neither real data nor the teacher's own images."""
    return cells[~cells["student"].isin([REAL, TEACHER])]


def within_budget(table: pd.DataFrame, budget: float) -> pd.DataFrame:
    """For each student its row with the most steps among those whose measured NFE is at most `budget`."""
    return table[table["nfe"] <= budget].sort_values("steps").groupby("student").tail(1)


def ranked(table: pd.DataFrame, metric: str, better: dict[str, str]) -> tuple[list[str], int]:
    """Students, best first, at the largest step count that most of them have; and that step count."""
    students = without_references(table)
    values = students.pivot(index="student", columns="steps", values=metric)
    counts = values.notna().sum()
    steps = counts[counts == counts.max()].index.max()
    order = values[steps].sort_values(ascending=better[metric] == "lower", kind="stable", na_position="last")
    return list(order.index), int(steps)


def plus_minus(mean: float, error: float = math.nan) -> str:
    """`14.8 ± 0.3`: three significant digits, one more where the standard error would show as zero."""
    if math.isnan(mean):
        return "n/a"
    decimals = _decimals(mean, 3)
    if math.isnan(error):
        return f"{mean:.{decimals}f}"
    if 0 < error < 0.5 * 10**-decimals:
        decimals += 1
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"


def _decimals(value: float, significant: int) -> int:
    return max(0, significant - 1 - math.floor(math.log10(abs(value)))) if value else 0


def references(table: pd.DataFrame, column: str) -> dict[str, Any]:
    """A column of the teacher's own images and of real data, where the table has it."""
    rows = table[table["student"].isin([TEACHER, REAL]) & table[column].notna()].sort_values("student", ascending=False)
    return dict(zip(rows["student"], rows[column], strict=True))
