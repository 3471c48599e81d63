"""leaderboards/<task>.md: who is best within a budget of network evaluations."""

import math
from itertools import count, takewhile
from pathlib import Path

import pandas as pd

from bench.report.costs import RULE as COST_RULE
from bench.report.costs import training_table
from bench.report.files import write_atomically
from bench.report.tables import REAL, aggregate, describe, footnotes, plus_minus, protocols

RULE = """\
Every number here is measured. Within a budget of N network evaluations a student enters with its **largest step count
whose measured NFE is at most N**, whether or not that is its best score. Rank is by {metric} ({better} is better);
`≈` joins students whose difference from the first of their rank is below the pooled standard deviation
sqrt((s1² + s2²) / 2) over seed blocks{single}. NFE is counted, per image; latency is the median for one image.\
"""


def within_budget(table: pd.DataFrame, budget: float) -> pd.DataFrame:
    """For each student its row with the most steps among those whose measured NFE is at most `budget`."""
    return table[table["nfe"] <= budget].sort_values("steps").groupby("student").tail(1)


def ranks(means: list[float], stds: list[float]) -> list[int]:
    """Ranks of means sorted best first; those within the pooled deviation of a rank's first share that rank."""
    first, result = 0, []
    for i, (mean, std) in enumerate(zip(means, stds, strict=True)):
        difference = abs(mean - means[first])
        if difference > 0 and not difference < math.sqrt((std**2 + stds[first] ** 2) / 2):
            first = i
        result.append(first + 1)
    return result


Part = tuple[pd.DataFrame, str, dict[str, str], dict[str, str]]


def leaderboard(parts: list[Part]) -> str:
    """Markdown: for each protocol, and for each NFE budget 1, 2, 4, ... that changes something, a ranking.

    parts: (cells, metric, better, about) of cells with one extractor and sample count; about holds more lines of the
    protocol, such as {"reference": ..., "extractor": ...}.
    """
    task = parts[0][0]["task"].iloc[0]
    lines = [f"# {task}", "", f"Written by `python -m bench leaderboard {task}` from the cells in `run/{task}`.", ""]
    for cells, metric, better, about in parts:
        for group in protocols(cells):
            lines += _section(group, metric, better, about)
    return "\n".join(lines)


def write_leaderboard(parts: list[Part], out_dir: Path) -> Path:
    """Write `out_dir/leaderboards/<task>.md`, whole or not at all. Raises FewstepError if it cannot be written."""
    path = Path(out_dir) / "leaderboards" / f"{parts[0][0]['task'].iloc[0]}.md"
    return write_atomically(path, leaderboard(parts).encode())


def _section(group: pd.DataFrame, metric: str, better: dict[str, str], about: dict[str, str]) -> list[str]:
    table = aggregate(group)
    floor = table[table["student"] == REAL]
    table = table[(table["student"] != REAL) & table[metric].notna()]
    single = "" if (table["blocks"] > 1).all() else "; one seed block gives no deviation, hence no ties but exact ones"
    about = about | {"device": ", ".join(sorted(set(table["device"])))}
    lines = [f"## {describe(group)}", "", *(f"- {name}: {text}" for name, text in about.items()), ""]
    lines += [RULE.format(metric=f"`{metric}`", better=better[metric], single=single), ""]
    if len(floor):
        values = (f"{name} {plus_minus(floor[name].iloc[0])}" for name in _columns(floor, metric, better))
        lines += [f"Real against real, the floor ({floor['samples'].iloc[0]} samples): {', '.join(values)}.", ""]
    previous = None
    for budget in _budgets(table["nfe"].max()):
        entries = within_budget(table, budget)
        if previous is not None and list(entries.index) == previous:
            continue
        previous = list(entries.index)
        if len(entries):
            lines += [f"### At most {budget} NFE", "", *_ranking(entries, metric, better), ""]
    if (costs := training_table(group, metric, better)) is not None:
        lines += ["### What training cost", "", COST_RULE.format(metric=f"`{metric}`"), ""]
        lines += [*_markdown(list(costs), costs.to_numpy().tolist()), ""]
    notes = footnotes(group)
    return [*lines, "### Without a number", "", *(f"- {note}" for note in notes), ""] if notes else lines


def _budgets(largest: float) -> list[int]:
    """1, 2, 4, ... up to the first that covers `largest`."""
    return list(takewhile(lambda budget: budget < 2 * largest, (2**i for i in count())))


def _columns(table: pd.DataFrame, metric: str, better: dict[str, str]) -> list[str]:
    return [metric, *(name for name in better if name != metric and name in table and table[name].notna().any())]


def _ranking(entries: pd.DataFrame, metric: str, better: dict[str, str]) -> list[str]:
    entries = entries.sort_values([metric, "student"], ascending=[better[metric] == "lower", True])
    columns = _columns(entries, metric, better)
    places = ranks(list(entries[metric]), list(entries[f"{metric}_std"]))
    header = ["rank", "student", "steps", "NFE", *columns, "blocks", "samples", "latency (ms)"]
    rows = []
    for place, (_, row) in zip(places, entries.iterrows(), strict=True):
        numbers = [plus_minus(row[name], row[f"{name}_std"]) for name in columns]
        rank = f"{place} ≈" if places.count(place) > 1 else f"{place}"
        spent = [row["student"], row["steps"], f"{row['nfe']:.4g}"]
        rows.append(
            [rank, *spent, *numbers, row["blocks"], row["samples"], plus_minus(row.get("latency_ms", math.nan))]
        )
    return _markdown(header, rows)


def _markdown(header: list[str], rows: list[list]) -> list[str]:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]
