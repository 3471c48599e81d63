"""The quality table: students x steps for one protocol, and the notes that belong below it. Functions of cells."""

import math
import textwrap
from itertools import pairwise

import pandas as pd

from bench.report.tables import (
    REAL,
    TEACHER,
    WIDTH,
    aggregate,
    describe,
    plus_minus,
    protocols,
    ranked,
    references,
    without_references,
)
from bench.report.uncertainty import difference
from students.conventions import CONVENTIONS
from students.models.found_grids import BEST


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


UNSUPPORTED = r"^.* cannot run in \d+ steps; (it supports .*)$"  # which is the same for each step count


def footnotes(cells: pd.DataFrame, metric: str, better: dict[str, str]) -> list[str]:
    """Why cells lack a number: `heun 1: ...`, one line a student and reason; and how the last rows are to be read."""
    table = aggregate(cells)
    missing = table[(table["status"] != "ok") | (table["reason"] != "")]
    missing = missing.assign(reason=missing["reason"].str.replace(UNSUPPORTED, r"\1", regex=True))
    notes = [
        f"{student} {', '.join(map(str, rows['steps']))}: {reason or rows['status'].iloc[0]}"
        for (student, reason), rows in missing.groupby(["student", "reason"])
    ]
    if (beyond := saturated(cells, table, metric, better)) is not None:
        notes.append(
            f"from {beyond} steps on the best solver is level with the teacher's own images in {metric}: what solvers "
            "leave to be desired shows in the distance to the teacher's image of the same noise (off teacher)"
        )
    return [
        *notes,
        *_setbacks(cells, table, metric, better),
        *convention_notes(cells),
        *_floor_note(table, metric),
    ]


def _setbacks(cells: pd.DataFrame, table: pd.DataFrame, metric: str, better: dict[str, str]) -> list[str]:
    """Which distilled students a further step makes worse, and by how much, as far as can be told."""
    sign, found = 1 if better[metric] == "lower" else -1, []
    known = table[(table["family"] == "distilled") & table[metric].notna()].sort_values("steps")
    for student, rows in known.groupby("student"):
        for fewer, more in pairwise(rows["steps"]):
            gap = difference(cells, (student, more), (student, fewer), metric)
            if sign * gap.value > 0 and not gap.is_zero:
                found.append(f"{student} at {more} than at {fewer} ({plus_minus(gap.value, gap.error)})")
    return [f"worse in more steps: {', '.join(found)}"] if found else []


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


def convention_notes(cells: pd.DataFrame) -> list[str]:
    """The published conventions that students take their steps by, and where these are to be read."""
    named = cells["student"].str.extract(r"[:,]convention=(\w+)", expand=False)
    return [
        f"convention={name}: {rules.summary} ({rules.source})"
        for name, rules in CONVENTIONS.items()
        if (named == name).any()
    ]


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
