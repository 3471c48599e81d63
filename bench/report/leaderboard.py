"""leaderboards/<task>.md: who is best within a budget of network evaluations."""

import math
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path

import pandas as pd

from bench.measure import extractor_columns
from bench.report.costs import RULE as COST_RULE
from bench.report.costs import training_table
from bench.report.files import markdown_table, write_atomically
from bench.report.quality import footnotes, grid_notes
from bench.report.tables import (
    REAL,
    TEACHER,
    aggregate,
    describe,
    plus_minus,
    protocols,
    within_budget,
    without_references,
)
from bench.report.uncertainty import difference

RULE = """\
Every number here is measured. Within a budget of N network evaluations a student enters with its **largest step count
whose measured NFE is at most N**, whether or not that is its best score. Rank is by {metric} ({better} is better);
`≈` joins students that cannot be told from the first of their rank: zero lies in the 95 % interval of the paired
difference, same seeds and classes for both{unknown}. `to the best` is that difference from the first of the table,
± is one standard error. `over training seeds` is the standard deviation of students trained alike from different
seeds, this one included, where that was measured. NFE is counted, per image; latency is the median for one image.\
"""
UNRANKED = "–"


def ranks(entries: pd.DataFrame, cells: pd.DataFrame, metric: str) -> list[int]:
    """Ranks of rows sorted best first; those that cannot be told from the first of a rank (`difference`) share it."""
    rows, first, result = entries[["student", "steps"]].to_dict("records"), 0, []
    for i, row in enumerate(rows):
        if i and not difference(cells, _key(row), _key(rows[first]), metric).is_zero:
            first = i
        result.append(first + 1)
    return result


def trained_for(entries: pd.DataFrame, cells: pd.DataFrame, metric: str) -> pd.Series:
    """Which rows were trained in the feature space that the metric is measured in, and so are not ranked by it."""
    extractor = cells["extractor"].iloc[0] if "extractor" in cells else None
    if "trained_in" not in entries or metric not in extractor_columns(extractor):
        return pd.Series(False, entries.index)
    return entries["trained_in"].map(lambda names: extractor in names.split(", "))


def _unranked_note(table: pd.DataFrame, cells: pd.DataFrame, metric: str) -> list[str]:
    """Who has no rank, and why."""
    names = ", ".join(sorted(set(table.loc[trained_for(table, cells, metric), "student"])))
    return [f"{names}: no rank, as trained in the feature space that {metric} is measured in"] if names else []


def _key(row) -> tuple[str, int]:
    return row["student"], row["steps"]


Part = tuple[pd.DataFrame, str, dict[str, str], dict[str, str]]


def leaderboard(parts: list[Part], below: Sequence[str] = ()) -> str:
    """Markdown: for each protocol, and for each NFE budget 1, 2, 4, ... that changes something, a ranking.

    parts: (cells, metric, better, about) of cells with one extractor and sample count; about holds more lines of the
    protocol, such as {"reference": ..., "extractor": ...}. below: lines at the end.
    """
    task = parts[0][0]["task"].iloc[0]
    lines = [f"# {task}", "", f"Written by `python -m bench leaderboard {task}` from the cells in `run/{task}`.", ""]
    for cells, metric, better, about in parts:
        for group in protocols(cells):
            lines += _section(group, metric, better, about)
    return "\n".join([*lines, *below])


def write_leaderboard(parts: list[Part], out_dir: Path, below: Sequence[str] = ()) -> Path:
    """Write `out_dir/leaderboards/<task>.md`, whole or not at all. Raises FewstepError if it cannot be written."""
    path = Path(out_dir) / "leaderboards" / f"{parts[0][0]['task'].iloc[0]}.md"
    return write_atomically(path, leaderboard(parts, below).encode())


def _section(group: pd.DataFrame, metric: str, better: dict[str, str], about: dict[str, str]) -> list[str]:
    table = aggregate(group)
    references = table[table["student"].isin([REAL, TEACHER])]
    table = without_references(table)[lambda rows: rows[metric].notna()]
    unknown = "" if table[f"{metric}_se"].notna().all() else "; a single block without kept features tells no ties"
    about = about | {"device": ", ".join(sorted(set(table["device"])))}
    lines = [f"## {describe(group)}", "", *(f"- {name}: {text}" for name, text in about.items()), ""]
    lines += [RULE.format(metric=f"`{metric}`", better=better[metric], unknown=unknown), ""]
    for row in references.to_dict("records"):
        title = (
            "Real against real, the floor" if row["student"] == REAL else f"The teacher in {row['nfe']:g} evaluations"
        )
        columns = _columns(references[references["student"] == row["student"]], metric, better)
        values = (f"{name} {plus_minus(row[name], row[f'{name}_se'])}" for name in columns)
        lines += [f"{title} ({row['samples']} samples): {', '.join(values)}.", ""]
    previous = None
    for budget in _budgets(table["nfe"].max()):
        entries = within_budget(table, budget)
        if previous is not None and list(entries.index) == previous:
            continue
        previous = list(entries.index)
        if len(entries):
            lines += [f"### At most {budget} NFE", "", *_ranking(entries, group, metric, better), ""]
    if (costs := training_table(group, metric, better)) is not None:
        lines += ["### What training or a grid cost", "", COST_RULE.format(metric=f"`{metric}`"), ""]
        lines += [*markdown_table(list(costs), costs.to_numpy().tolist()), ""]
    if grids := grid_notes(group):
        lines += ["### Which grids were best", "", *(f"- {note}" for note in grids), ""]
    notes = footnotes(group, metric, better) + _unranked_note(table, group, metric)
    return [*lines, "### Notes", "", *(f"- {note}" for note in notes), ""] if notes else lines


def _budgets(largest: float) -> list[int]:
    """1, 2, 4, ... up to the first that covers `largest`."""
    return list(takewhile(lambda budget: budget < 2 * largest, (2**i for i in count())))


def _columns(table: pd.DataFrame, metric: str, better: dict[str, str]) -> list[str]:
    return [metric, *(name for name in better if name != metric and name in table and table[name].notna().any())]


def _ranking(entries: pd.DataFrame, cells: pd.DataFrame, metric: str, better: dict[str, str]) -> list[str]:
    entries = entries.assign(unranked=trained_for(entries, cells, metric))
    entries = entries.sort_values(["unranked", metric, "student"], ascending=[True, better[metric] == "lower", True])
    columns, first = _columns(entries, metric, better), _key(entries.iloc[0])
    places = [*ranks(entries[~entries["unranked"]], cells, metric), *[None] * entries["unranked"].sum()]
    seeds = f"{metric}_seeds_std"
    over_seeds = ["over training seeds"] if seeds in entries and entries[seeds].notna().any() else []
    trained = ["trained in"] if "trained_in" in entries and entries["trained_in"].any() else []
    header = [
        "rank",
        "student",
        "steps",
        "NFE",
        metric,
        *over_seeds,
        "to the best",
        *columns[1:],
        *trained,
        "blocks",
        "latency (ms)",
    ]
    rows = []
    for place, (_, row) in zip(places, entries.iterrows(), strict=True):
        numbers = [plus_minus(row[name], row[f"{name}_se"]) for name in columns]
        gap = difference(cells, _key(row), first, metric)
        numbers.insert(1, "" if place is None or _key(row) == first else plus_minus(gap.value, gap.error))
        if over_seeds:
            numbers.insert(1, "" if math.isnan(row[seeds]) else plus_minus(row[seeds]))
        rank = UNRANKED if place is None else f"{place} ≈" if places.count(place) > 1 else f"{place}"
        numbers += [row["trained_in"]] if trained else []
        spent = [row["student"], row["steps"], f"{row['nfe']:.4g}"]
        rows.append([rank, *spent, *numbers, row["blocks"], plus_minus(row.get("latency_ms", math.nan))])
    return markdown_table(header, rows)
