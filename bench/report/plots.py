"""Quality against cost: one line a student, the Pareto front marked, every line labelled where it ends."""

import io
import math
from dataclasses import dataclass
from itertools import cycle

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from scipy.optimize import isotonic_regression

from bench.report.tables import REAL, aggregate, describe

COSTS = {
    "nfe": "network evaluations per image (NFE)",
    "latency_ms": "latency of one image, median (ms)",
    "throughput_ms": "time per image in a batch of {batch}, median (ms)",
}
DPI = 160
FONT = {"font.family": "DejaVu Sans", "svg.hashsalt": "fewstep-bench"}
INK, GREY, FAINT = "#1a1a1a", "#8c8c8c", "#e4e4e4"
FRONT = "#f0cf7a"
COLOURS = ("#1a1a1a", "#0060a8", "#b8400a", "#007a56", "#8a3a86", "#6b5200")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
LABEL_SIZE, LABEL_PITCH = 8, 11  # points
LONGEST_LABEL = 36


def pareto_front(cost, loss) -> np.ndarray:
    """A mask of the points that no other point dominates: at most its cost and its loss, and less of one."""
    cost, loss = np.asarray(cost, float), np.asarray(loss, float)
    no_worse = (cost[None] <= cost[:, None]) & (loss[None] <= loss[:, None])
    less = (cost[None] < cost[:, None]) | (loss[None] < loss[:, None])
    return ~(no_worse & less).any(axis=1)


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    dashes: object
    width: float
    size: float
    text: str
    layer: int


def _styles(students: list[str], leading: list[str]) -> dict[str, _Style]:
    """Students that hold the front are dark and thick; each style differs by marker and dashes, not only in hue."""
    dark = zip(leading, cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False)
    light = zip((name for name in students if name not in leading), cycle(MARKERS), cycle(DASHES), strict=False)
    styles = {name: _Style(colour, marker, dash, 1.7, 6.5, colour, 5) for name, colour, marker, dash in dark}
    return styles | {name: _Style(GREY, marker, dash, 0.7, 3.5, "#555555", 3) for name, marker, dash in light}


def quality_against(cells: pd.DataFrame, metric: str, x: str, better: dict[str, str], title: str) -> Figure:
    """The metric of one protocol's cells against a cost: "nfe", "latency_ms" or "throughput_ms".

    Points are means over seed blocks, bars their standard deviations. The band is the Pareto front of the means;
    values equal to four digits share it, and of students that share a point the one with more of the front leads.
    """
    table = aggregate(cells)
    floor = table.loc[table["student"] == REAL, metric].dropna()
    points = table[table["student"] != REAL].dropna(subset=[metric, x])
    loss = points[metric].map(lambda value: float(f"{value:.4g}")) * (1 if better[metric] == "lower" else -1)
    points = points.assign(loss=loss, front=pareto_front(points[x], loss)).sort_values([x, "loss"])
    styles = _styles(sorted(set(points["student"])), _leading(points, x))

    height = max(6.25, 1.7 + len(styles) * LABEL_PITCH / 72)
    figure = Figure(figsize=(10, height), dpi=DPI)
    axes = figure.add_axes((0.075, 0.75 / height, 0.64, 1 - 1.5 / height))
    _frame(axes, points, floor, metric, x)
    _draw_front(axes, points[points["front"]], metric, x, better[metric] == "lower")
    for name, rows in points.groupby("student"):
        style = styles[name]
        axes.errorbar(
            rows[x], rows[metric], rows[f"{metric}_std"].fillna(0), color=style.colour, elinewidth=style.width * 0.7,
            capsize=style.size * 0.4, capthick=style.width * 0.7, linewidth=style.width, linestyle=style.dashes,
            marker=style.marker, markersize=style.size, markerfacecolor="white", markeredgewidth=style.width * 0.7,
            zorder=style.layer,
        )  # fmt: skip
    leading = points[points["front"] & points["student"].map(lambda name: styles[name].layer == 5)]
    for name, rows in leading.groupby("student"):
        style = styles[name]
        axes.plot(rows[x], rows[metric], style.marker, color=style.colour, markersize=style.size, zorder=6)
    if len(floor):
        axes.axhline(floor.iloc[0], color=INK, linewidth=1, linestyle=(0, (7, 4)), zorder=2)
        axes.annotate(
            f"real against real: {floor.iloc[0]:.3g}", (0, floor.iloc[0]), xycoords=("axes fraction", "data"),
            xytext=(5, -4), textcoords="offset points", va="top", fontsize=LABEL_SIZE, color=INK,
        )  # fmt: skip
    _label_ends(axes, points.groupby("student").tail(1), metric, x, styles)
    axes.set_xlabel(COSTS[x].format(batch=points["throughput_batch"].max() if x == "throughput_ms" else ""))
    axes.set_ylabel(f"{metric} ({better[metric]} is better)")
    devices = "" if x == "nfe" else ", " + " and ".join(sorted(set(points["device"])))
    axes.annotate(
        title, (0, 1), xycoords="axes fraction", xytext=(0, 24), textcoords="offset points", fontsize=12, weight="bold"
    )
    axes.annotate(
        f"{describe(cells)}{devices}", (0, 1), xycoords="axes fraction", xytext=(0, 9), textcoords="offset points",
        fontsize=9, color="#444444",
    )  # fmt: skip
    return figure


def _leading(points: pd.DataFrame, x: str) -> list[str]:
    """Who holds the front, cheapest point first."""
    front = points[points["front"]]
    held = front["student"].value_counts()
    holders = [max(sorted(rows["student"]), key=held.get) for _, rows in front.groupby([x, "loss"], sort=False)]
    return list(dict.fromkeys(holders))


def _frame(axes, points: pd.DataFrame, floor: pd.Series, metric: str, x: str) -> None:
    """Scales, limits, ticks and grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#666666")
    axes.grid(color=FAINT, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color="#666666", length=3)
    if (points[x] > 0).all():
        axes.set_xscale("log")
        axes.set_xlim(points[x].min() / 1.12, points[x].max() * 1.06)
        axes.xaxis.set_major_locator(FixedLocator(_nfe_ticks(points[x])) if x == "nfe" else LogLocator(10, (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    values = pd.concat([points[metric], floor])
    if (values > 0).all() and values.max() > 4 * values.min():
        axes.set_yscale("log")
        axes.set_ylim(values.min() / 1.25, values.max() * 1.15)
        axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _nfe_ticks(values: pd.Series) -> list[float]:
    """Measured NFE to label, the commonest first, as far as their labels have room."""
    ticks = []
    for value in values.round().value_counts(sort=True).index:
        if all(abs(math.log2(value / tick)) > 0.5 for tick in ticks):
            ticks.append(value)
    return sorted(ticks)


def _draw_front(axes, front: pd.DataFrame, metric: str, x: str, lower: bool) -> None:
    """A stepped band under the lines: the best value that a budget buys."""
    front = front.drop_duplicates([x, metric])
    costs, values = [*front[x], axes.get_xlim()[1]], [*front[metric], front[metric].iloc[-1]]
    axes.step(costs, values, where="post", color=FRONT, linewidth=6, solid_joinstyle="round", zorder=1)
    middle = len(front) // 2
    axes.annotate(
        "Pareto front", (costs[middle], values[middle]), xytext=(-8, -10 if lower else 10), textcoords="offset points",
        ha="right", va="center", fontsize=LABEL_SIZE, style="italic", color="#6b5200",
    )  # fmt: skip


def _label_ends(axes, ends: pd.DataFrame, metric: str, x: str, styles: dict[str, _Style]) -> None:
    """Each line's name right of the axes, moved apart where ends are close, with a leader from the line's end."""
    height = axes.get_window_extent().height / DPI * 72
    wanted = axes.transAxes.inverted().transform(axes.transData.transform(ends[[x, metric]]))[:, 1]
    ends = ends.iloc[np.argsort(wanted, kind="stable")]
    places = spread_out(np.sort(wanted), LABEL_PITCH / height)
    for (name, cost, value), place in zip(ends[["student", x, metric]].itertuples(index=False), places, strict=True):
        style = styles[name]
        axes.annotate(
            "", (cost, value), xytext=(1.045, place), textcoords="axes fraction", annotation_clip=False, zorder=2,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": style.colour, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        axes.plot(
            [1.045, 1.085], [place, place], color=style.colour, linewidth=style.width, linestyle=style.dashes,
            marker=style.marker, markevery=[1], markersize=min(style.size, 5), markerfacecolor="white",
            markeredgewidth=style.width * 0.7, transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        axes.annotate(
            _short(name), (1.085, place), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points",
            va="center_baseline", fontsize=LABEL_SIZE, color=style.text, annotation_clip=False,
            weight="bold" if style.layer == 5 else "normal",
        )  # fmt: skip


def spread_out(wanted: np.ndarray, pitch: float) -> np.ndarray:
    """Places in [0, 1] at least `pitch` apart and nearest to the sorted ones wanted, in least squares."""
    steps = pitch * np.arange(len(wanted))
    return np.clip(isotonic_regression(wanted - steps).x, 0, max(0, 1 - pitch * (len(wanted) - 1))) + steps


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else "…" + name[1 - LONGEST_LABEL :]


def render(figure: Figure, suffix: str, inputs: str) -> bytes:
    """A figure as ".png" or ".svg"; the same figure gives the same bytes. `inputs` goes into the metadata."""
    metadata = {"Inputs": inputs, "Software": None} if suffix == ".png" else {"Identifier": inputs, "Date": None}
    content = io.BytesIO()
    with matplotlib.rc_context(FONT):
        figure.savefig(content, format=suffix[1:], metadata=metadata)
    return content.getvalue()
