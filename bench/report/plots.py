"""Quality against cost: one line a student, the Pareto front marked, every line labelled where it ends."""

import math
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.report.canvas import (
    DPI,
    FRONT_LAYER,
    GREY,
    INK,
    LABEL_PITCH,
    LABEL_SIZE,
    LEADER,
    Style,
    dress,
    head,
    label_column,
)
from bench.report.tables import REAL, TEACHER, aggregate, describe, references, without_references

COSTS = {
    "nfe": "network evaluations per image (NFE)",
    "latency_ms": "latency of one image, median (ms)",
    "throughput_ms": "time per image in a batch of {batch}, median (ms)",
}
FRONT = "#f0cf7a"
COLOURS = ("#1a1a1a", "#0060a8", "#b8400a", "#007a56", "#8a3a86", "#6b5200")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
LINES = {
    REAL: ((0, (7, 4)), "real against real: {:.3g}"),
    TEACHER: ((0, (2, 2)), "the teacher's own images: {:.3g}"),
}
NAMED = 24  # students at most that a plot names


def dominators(cost, loss) -> np.ndarray:
    """How many others dominate each point: at most its cost and its loss, and less of one."""
    cost, loss = np.asarray(cost, float), np.asarray(loss, float)
    no_worse = (cost[None] <= cost[:, None]) & (loss[None] <= loss[:, None])
    less = (cost[None] < cost[:, None]) | (loss[None] < loss[:, None])
    return (no_worse & less).sum(axis=1)


def pareto_front(cost, loss) -> np.ndarray:
    """A mask of the points that no other point dominates."""
    return dominators(cost, loss) == 0


def _styles(students: list[str], leading: list[str]) -> dict[str, Style]:
    """Students that hold the front are dark and thick; each style differs by marker and dashes, not only in hue."""
    dark = zip(leading, cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False)
    light = zip((name for name in students if name not in leading), cycle(MARKERS), cycle(DASHES), strict=False)
    styles = {name: Style(colour, marker, dash, 1.7, 6.5, colour, FRONT_LAYER) for name, colour, marker, dash in dark}
    return styles | {name: Style(GREY, marker, dash, 0.7, 3.5, "#555555", 3) for name, marker, dash in light}


def quality_against(cells: pd.DataFrame, metric: str, x: str, better: dict[str, str], title: str) -> Figure:
    """The metric of one protocol's cells against a cost: "nfe", "latency_ms" or "throughput_ms".

    Points are means over seed blocks, bars their standard errors. The stepped band is the Pareto front of the
    means, filled markers its points; its colour does not hang on noise: losses equal to four digits and times equal
    to two count as equal. At most six students that hold the front, those with most of it, are drawn dark. Of more
    students than NAMED, those that come nearest to the front (whose best point the fewest dominate) have names.
    """
    table = aggregate(cells)
    lines = references(table, metric)
    points = without_references(table).dropna(subset=[metric, x]).sort_values("steps")
    sign = 1 if better[metric] == "lower" else -1
    points["loss"] = sign * points[metric].map(lambda value: float(f"{value:.4g}"))
    points["cost"] = points[x] if x == "nfe" else points[x].map(lambda value: float(f"{value:.2g}"))
    points["dominators"] = dominators(points["cost"], points["loss"])
    points["front"] = points["dominators"] == 0
    nearest = points.groupby("student")["dominators"].min().sort_values(kind="stable").index
    named, unnamed = sorted(nearest[:NAMED]), list(nearest[NAMED:])
    styles = _styles(named, _leading(points[points["front"]]))
    styles |= dict.fromkeys(unnamed, Style(LEADER, "o", "-", 0.5, 2, LEADER, 2))

    figure, axes = _canvas(len(named) + (1 if unnamed else 0))
    _frame(axes, points, lines, metric, x)
    _draw_front(axes, points[points["front"]], metric, x, better[metric] == "lower")
    for name, rows in points.groupby("student"):
        style = styles[name]
        axes.errorbar(
            rows[x], rows[metric], rows[f"{metric}_se"].fillna(0), color=style.colour, elinewidth=style.width * 0.7,
            capsize=style.size * 0.4, capthick=style.width * 0.7, linewidth=style.width, linestyle=style.dashes,
            marker=style.marker, markersize=style.size, markerfacecolor="white", markeredgewidth=style.width * 0.7,
            zorder=style.layer,
        )  # fmt: skip
    for name, rows in points[points["front"]].groupby("student"):
        style = styles[name]
        axes.plot(
            rows[x], rows[metric], style.marker, color=style.colour, markersize=style.size, zorder=style.layer + 1
        )
    for name, value in lines.items():
        n = references(table, "samples")[name]
        few = f" ({n} samples)" if n < points["samples"].max() else ""
        above = value == max(lines.values()) and len(lines) > 1
        axes.axhline(value, color=INK, linewidth=1, linestyle=LINES[name][0], zorder=2)
        axes.annotate(
            LINES[name][1].format(value) + few, (0, value), xycoords=("axes fraction", "data"), fontsize=LABEL_SIZE,
            xytext=(5, 4 if above else -4), textcoords="offset points", va="bottom" if above else "top", color=INK,
        )  # fmt: skip
    ends = points[points["student"].isin(named)].groupby("student").tail(1)
    label_column(axes, ends[["student", x, metric]], styles)
    if unnamed:
        axes.annotate(
            f"pale: {len(unnamed)} others, farther from the front", (1.045, 0), xycoords="axes fraction",
            xytext=(0, -14), textcoords="offset points", va="top", fontsize=LABEL_SIZE, style="italic", color=GREY,
        )  # fmt: skip
    axes.set_xlabel(COSTS[x].format(batch=f"{points['throughput_batch'].max():g}" if x == "throughput_ms" else ""))
    axes.set_ylabel(f"{metric} ({better[metric]} is better)")
    protocol = [describe(cells)] if x == "nfe" else [describe(cells), *sorted(set(points["device"]))]
    bars = "; bars: ± 1 standard error" if points[f"{metric}_se"].notna().any() else ""
    head(axes, title, ", ".join(protocol) + bars)
    return figure


def training_curves(curves: dict[str, list[tuple[float, float]]], title: str) -> Figure:
    """One line a student: (network evaluations spent, energy distance to the training data then), stages joined.

    Distances that chance took to zero or below are drawn at the smallest that is above.
    """
    points = pd.DataFrame(
        [(name, *point) for name, curve in curves.items() for point in curve], columns=["student", "spent", "distance"]
    )
    above = points["distance"] > 0
    points["distance"] = points["distance"].where(above, points["distance"][above].min())
    styles = _styles(list(curves), list(curves))
    figure, axes = _canvas(len(styles))
    _scale_up(axes, points["distance"])
    axes.xaxis.set_major_formatter(EngFormatter())
    for name, rows in points.groupby("student"):
        style = styles[name]
        axes.plot(
            rows["spent"], rows["distance"], color=style.colour, linewidth=style.width, linestyle=style.dashes,
            marker=style.marker, markersize=3.5, zorder=style.layer,
        )  # fmt: skip
    axes.set_xlim(left=0)
    label_column(axes, points.groupby("student").tail(1)[["student", "spent", "distance"]], styles)
    axes.set_xlabel("network evaluations spent in training, teacher's and student's")
    axes.set_ylabel("energy distance to the training data (lower is better)")
    head(axes, title, "each point in the fewest steps that the student could take by then")
    return figure


def _canvas(lines: int):
    """A figure with room for so many labels right of its axes, and the axes."""
    height = max(6.25, 1.7 + lines * LABEL_PITCH / 72)
    figure = Figure(figsize=(10, height), dpi=DPI)
    axes = figure.add_axes((0.075, 0.75 / height, 0.6, 1 - 1.5 / height))
    dress(axes)
    return figure, axes


def _leading(front: pd.DataFrame) -> list[str]:
    """Who holds the front, cheapest point first; a point that several share goes to the one with most points."""
    held = front["student"].value_counts()
    holders = front.groupby(["cost", "loss"])["student"].agg(lambda students: max(sorted(students), key=held.get))
    most = holders.value_counts().index[: len(COLOURS)]
    return [name for name in holders.unique() if name in most]


def _frame(axes, points: pd.DataFrame, lines: dict[str, float], metric: str, x: str) -> None:
    """Scales, limits and ticks."""
    if (points[x] > 0).all():
        axes.set_xscale("log")
        axes.set_xlim(points[x].min() / 1.12, points[x].max() * 1.06)
        axes.xaxis.set_major_locator(FixedLocator(_nfe_ticks(points)) if x == "nfe" else LogLocator(10, (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _scale_up(axes, pd.concat([points[metric], pd.Series(lines, dtype=float)]))


def _scale_up(axes, values: pd.Series) -> None:
    """A logarithmic scale upwards, if the values are positive and spread enough."""
    if (values > 0).all() and values.max() > 4 * values.min():
        axes.set_yscale("log")
        axes.set_ylim(values.min() / 1.25, values.max() * 1.15)
        subs = (1, 2, 5) if values.max() > 10 * values.min() else (1, 1.5, 2, 3, 4, 5, 7)
        axes.yaxis.set_major_locator(LogLocator(10, subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _nfe_ticks(points: pd.DataFrame) -> list[float]:
    """Measured NFE to label as far as there is room: those that are also step counts first, then the commonest."""
    counts = points["nfe"].round().value_counts()
    ticks: list[float] = []
    for value in sorted(counts.index, key=lambda nfe: (nfe not in set(points["steps"]), -counts[nfe], nfe)):
        if all(abs(math.log2(value / tick)) > 0.5 for tick in ticks):
            ticks.append(value)
    return sorted(ticks)


def _draw_front(axes, front: pd.DataFrame, metric: str, x: str, lower: bool) -> None:
    """A stepped band under the lines: the best value that a budget buys."""
    front = front.sort_values(["cost", x]).drop_duplicates("cost")
    costs, values = [*front[x], axes.get_xlim()[1]], [*front[metric], front[metric].iloc[-1]]
    axes.step(costs, values, where="post", color=FRONT, linewidth=4.5, solid_joinstyle="round", zorder=1)
    axes.annotate(
        "Pareto front", (costs[-1], values[-1]), xytext=(-3, -10 if lower else 10), textcoords="offset points",
        ha="right", va="center", fontsize=LABEL_SIZE, style="italic", color="#6b5200", zorder=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
    )  # fmt: skip
