"""Cells to tables: statistics over seed blocks, students x steps, and results.csv."""

import math
import textwrap
from pathlib import Path

import pandas as pd

from bench.report.files import write_atomically
from students.errors import FewstepError

REAL = "real"
WIDTH = 120
PROTOCOL = ["samples", "guidance", "dtype", "rounding"]
KEYS = ["task", "version", *PROTOCOL, "student", "steps"]
TIMES = ["latency_ms", "latency_p90_ms", "throughput_ms", "throughput_p90_ms", "network_ms"]
TIMED = [*TIMES, "throughput_batch", "peak_memory_mb"]  # what no two runs measure alike
ONCE = {
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

    Cells that differ in samples, guidance, dtype or rounding are never averaged. A row has numbers only if all its
    blocks are "ok", a `_std` only if there are at least two, and times only if one device took them. `failed` names the
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
    spread[table["status"] != "ok"] = math.nan
    failed = table["failed"] if "failed" in table else table["status"].map(lambda _: "")
    for name in sorted(set(_union(failed).split()) & set(numbers)):
        lacking = failed.map(lambda columns, name=name: name in columns.split())
        spread.loc[lacking, [name, f"{name}_std", f"{name}_min"]] = math.nan
    mixed = table["device"].str.contains(" + ", regex=False)
    spread.loc[mixed, [name for name in spread if name.removesuffix("_std").removesuffix("_min") in TIMES]] = math.nan
    return table.join(spread).reset_index()


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
    students = cells[cells["student"] != REAL]
    first = students.iloc[0]
    counts = students.groupby(["student", "steps"])["seed_block"].nunique()
    low, high = counts.min(), counts.max()
    blocks = f"{low}" if low == high else f"{low} to {high}"
    words = [f"{first['samples']} samples", f"{blocks} seed block{'s' if high > 1 else ''}"]
    words += [f"guidance {first['guidance']:g}", first["dtype"]]
    return ", ".join(words + [f"rounding {first[name]}" for name in _present(["rounding"], cells)])


def ranked(table: pd.DataFrame, metric: str, better: dict[str, str]) -> tuple[list[str], int]:
    """Students, best first, at the largest step count that most of them have; and that step count."""
    students = table[table["student"] != REAL]
    values = students.pivot(index="student", columns="steps", values=metric)
    counts = values.notna().sum()
    steps = counts[counts == counts.max()].index.max()
    order = values[steps].sort_values(ascending=better[metric] == "lower", kind="stable", na_position="last")
    return list(order.index), int(steps)


def plus_minus(mean: float, std: float = math.nan) -> str:
    """`14.8 ± 0.3`: three significant digits, one more where the deviation would show as zero."""
    if math.isnan(mean):
        return "n/a"
    decimals = _decimals(mean, 3)
    if math.isnan(std):
        return f"{mean:.{decimals}f}"
    if 0 < std < 0.5 * 10**-decimals:
        decimals += 1
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"


def _decimals(value: float, significant: int) -> int:
    return max(0, significant - 1 - math.floor(math.log10(abs(value)))) if value else 0


def quality_table(cells: pd.DataFrame, metric: str, better: dict[str, str]) -> pd.DataFrame:
    """Students x steps for one protocol, as text: the metric over seed blocks, and the measured NFE beside it.

    Best first at the largest step count that most students have; the real-against-real floor is the last row, the
    same under every step count. "–" is unsupported, "failed" is failed, "" was not asked for, "n/a" not measured.
    """
    table = aggregate(cells)
    order, _ = ranked(table, metric, better)
    label = "mean ± std" if (table["blocks"] > 1).any() else "mean"
    shown = {"ok": plus_minus, "unsupported": lambda *_: "–", "failed": lambda *_: "failed"}
    failed = table["failed"] if "failed" in table else [""] * len(table)
    table["value"] = [
        shown["failed" if metric in columns.split() else status](mean, std)
        for status, columns, mean, std in zip(
            table["status"], failed, table[metric], table[f"{metric}_std"], strict=True
        )
    ]
    table["evaluations"] = table["nfe"].map(lambda nfe: "" if math.isnan(nfe) else f"{nfe:.1f}".removesuffix(".0"))
    floor = table.loc[table["student"] == REAL, "value"]
    table = table[table["student"] != REAL]
    columns = {}
    for steps, rows in table.groupby("steps"):
        rows = rows.set_index("student")
        heading = f"{steps} step{'s' * (steps > 1)}"
        columns[heading, label] = rows["value"]
        columns[heading, "NFE"] = rows["evaluations"]
    result = pd.DataFrame(columns).reindex(order).fillna("")
    if len(floor):
        result.loc[REAL] = [floor.iloc[0] if name == label else "" for _, name in result.columns]
    return result.rename_axis(index=None)


def footnotes(cells: pd.DataFrame) -> list[str]:
    """Why cells lack a number: `heun 1: ...`, one line a student and reason; and a floor of fewer samples."""
    table = aggregate(cells)
    missing = table[(table["status"] != "ok") | (table["reason"] != "")]
    notes = [
        f"{student} {', '.join(map(str, rows['steps']))}: {reason or rows['status'].iloc[0]}"
        for (student, reason), rows in missing.groupby(["student", "reason"])
    ]
    real, students = (cells.loc[chosen, "samples"] for chosen in (cells["student"] == REAL, cells["student"] != REAL))
    if len(real) and len(students) and real.iloc[0] < students.iloc[0]:
        notes.append(f"{REAL}: of {real.iloc[0]} held-out samples; with fewer samples the distances are larger")
    return notes


def to_text(cells: pd.DataFrame, metric: str, better: dict[str, str]) -> str:
    """The quality tables of all protocols, ready to print."""
    blocks = []
    for group in protocols(cells):
        _, steps = ranked(aggregate(group), metric, better)
        heading = f"{group['task'].iloc[0]}: {metric} ({better[metric]} is better), best first at {steps} steps"
        notes = [textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="    ") for note in footnotes(group)]
        blocks.append(
            "\n".join([heading, describe(group), "", quality_table(group, metric, better).to_string(), *notes])
        )
    return "\n\n".join(blocks) or "no cells"
