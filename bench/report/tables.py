"""Cells to tables: statistics over seed blocks, students x steps, and results.csv."""

import math
import statistics
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report.files import write_atomically
from bench.report.uncertainty import LEFT_OUT, REPEATS, bias, difference, estimate
from students.errors import FewstepError
from students.models.found_grids import BEST

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


def quality_table(cells: pd.DataFrame, metric: str, better: dict[str, str]) -> pd.DataFrame:
    """Students x steps for one protocol, as text: the metric with its standard error, and the measured NFE beside it.

    Best first at the largest step count that most students have. Where solvers have reached the teacher's own images
    (`saturated`) the distance to the teacher's image of the same noise stands beside it, if it was measured. The last
    rows, the same under every step count, are the teacher's images and the real-against-real floor. "–" is unsupported,
    "failed" is failed, "" was not asked for, "n/a" not measured.
    """
    table = aggregate(cells)
    order, _ = ranked(table, metric, better)
    label = "value ± se" if table[f"{metric}_se"].notna().any() else "value"
    shown = {"ok": plus_minus, "unsupported": lambda *_: "–", "failed": lambda *_: "failed"}
    failed = table["failed"] if "failed" in table else [""] * len(table)
    table["shown"] = [
        shown["failed" if metric in columns.split() else status](mean, error)
        for status, columns, mean, error in zip(
            table["status"], failed, table[metric], table[f"{metric}_se"], strict=True
        )
    ]
    table["evaluations"] = table["nfe"].map(lambda nfe: "" if math.isnan(nfe) else f"{nfe:.1f}".removesuffix(".0"))
    from_teacher = next((name for name in better if name.startswith("teacher") and name in table), None)
    beyond = saturated(cells, table, metric, better)
    columns = {}
    for steps, rows in without_references(table).groupby("steps"):
        rows = rows.set_index("student")
        heading = f"{steps} step{'s' * (steps > 1)}"
        columns[heading, label] = rows["shown"]
        columns[heading, "NFE"] = rows["evaluations"]
        if from_teacher and beyond and steps >= beyond:
            columns[heading, "off teacher"] = rows[from_teacher].map(lambda d: "" if math.isnan(d) else f"{d:.3f}")
    result = pd.DataFrame(columns).reindex(order).fillna("")
    for name, text in references(table, "shown").items():
        result.loc[name] = [text if column == label else "" for _, column in result.columns]
    return result.rename_axis(index=None)


def references(table: pd.DataFrame, column: str) -> dict[str, Any]:
    """A column of the teacher's own images and of real data, where the table has it."""
    rows = table[table["student"].isin([TEACHER, REAL]) & table[column].notna()].sort_values("student", ascending=False)
    return dict(zip(rows["student"], rows[column], strict=True))


def saturated(cells: pd.DataFrame, table: pd.DataFrame, metric: str, better: dict[str, str]) -> int | None:
    """The fewest steps at which the best solver is no worse than the teacher's own images, as far as can be told.

    From there on the metric no longer measures what solvers leave to be desired. None if there are no such steps.
    table: `aggregate` of the cells.
    """
    sign = 1 if better[metric] == "lower" else -1
    teacher = table[table["student"] == TEACHER]
    solvers = table[(table["family"] == "solver") & table[metric].notna()]
    if teacher.empty:
        return None
    for steps, rows in solvers.groupby("steps"):
        best = rows.loc[(sign * rows[metric]).idxmin()]
        gap = difference(cells, (best["student"], steps), (TEACHER, teacher["steps"].iloc[0]), metric)
        if sign * gap.value <= 0 or gap.is_zero:
            return int(steps)
    return None


def footnotes(cells: pd.DataFrame, metric: str, better: dict[str, str]) -> list[str]:
    """Why cells lack a number: `heun 1: ...`, one line a student and reason; and how the last rows are to be read."""
    table = aggregate(cells)
    missing = table[(table["status"] != "ok") | (table["reason"] != "")]
    notes = [
        f"{student} {', '.join(map(str, rows['steps']))}: {reason or rows['status'].iloc[0]}"
        for (student, reason), rows in missing.groupby(["student", "reason"])
    ]
    if (beyond := saturated(cells, table, metric, better)) is not None:
        notes.append(
            f"from {beyond} steps on the best solver is level with the teacher's own images in {metric}: what solvers "
            "leave to be desired shows in the distance to the teacher's image of the same noise (off teacher)"
        )
    return notes + _floor_note(table, metric)


def _floor_note(table: pd.DataFrame, metric: str) -> list[str]:
    """What the floor would be of as many samples as the students have, where it is of fewer: bias falls as 1 / n."""
    real, students = table[table["student"] == REAL], without_references(table)
    if real.empty or students.empty or real["samples"].iloc[0] >= students["samples"].iloc[0]:
        return []
    n, asked = real["samples"].iloc[0], students["samples"].iloc[0]
    note = f"{REAL}: of {n} held-out samples; with fewer samples the distances are larger"
    added = real[f"{metric}_bias"].iloc[0] if f"{metric}_bias" in real else math.nan
    if math.isnan(added):
        return [note]
    adjusted = real[metric].iloc[0] - added * (1 - n / asked)
    return [f"{note}: {plus_minus(adjusted, real[f'{metric}_se'].iloc[0])} of {asked}, by the jackknife"]


def grid_notes(cells: pd.DataFrame) -> list[str]:
    """Which grids were taken where the best of each step count was: `heun:grid=best: uniform at 2, 4; gits at 8`."""
    chosen = cells[cells["student"].str.contains(f"grid={BEST}", regex=False)]
    if chosen.empty or "grid" not in chosen:
        return []
    table = aggregate(chosen)
    table = table[table["grid"].fillna("") != ""]
    notes = []
    for student, rows in table.groupby("student"):
        taken = (f"{grid} at {', '.join(map(str, part['steps']))}" for grid, part in rows.groupby("grid", sort=False))
        notes.append(f"{student}: {'; '.join(taken)}")
    return notes


def to_text(cells: pd.DataFrame, metric: str, better: dict[str, str]) -> str:
    """The quality tables of all protocols, ready to print."""
    blocks = []
    for group in protocols(cells):
        _, steps = ranked(aggregate(group), metric, better)
        heading = f"{group['task'].iloc[0]}: {metric} ({better[metric]} is better), best first at {steps} steps"
        notes = [*grid_notes(group), *footnotes(group, metric, better)]
        notes = [textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="    ") for note in notes]
        blocks.append(
            "\n".join([heading, describe(group), "", quality_table(group, metric, better).to_string(), *notes])
        )
    return "\n\n".join(blocks) or "no cells"
