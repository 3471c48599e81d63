"""Figures of papers' tables: quality against evaluations, published points hollow and measured ones filled."""

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.papers import Preset
from bench.published import BENCHMARKS, METRICS
from bench.report.canvas import DPI, dress, head
from bench.report.paper_cells import Bench
from bench.report.paper_table import DAGGER, Line
from bench.report.plots import COSTS
from bench.report.studies import COLOURS, MARGINS

MARKERS = ("o", "s", "^", "D")


def curve(preset: Preset, lines: list[Line], bench: Bench | None) -> Figure:
    """A panel for each benchmark with its published points, and those measured on it.

    bench: of a task with other data, which has a panel of its own instead: for every student that measures a method a
    line of all its step counts.
    """
    metric, benchmarks = preset.columns[0], list(dict.fromkeys(line.row.benchmark for line in lines))
    methods = list(dict.fromkeys(line.row.method for line in lines))
    looks = {method: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, method in enumerate(methods)}
    panels = len(benchmarks) + (bench is not None)
    figure = Figure(figsize=(max(7.5, 5 * panels), 4.8), dpi=DPI)
    places = figure.subplots(1, panels, squeeze=False, gridspec_kw=MARGINS | {"left": 0.09, "wspace": 0.25})[0]
    for axes, benchmark in zip(places, benchmarks, strict=False):
        own = [line for line in lines if line.row.benchmark == benchmark and line.row.nfe is not None]
        for method in dict.fromkeys(line.row.method for line in own):
            _published(axes, [line for line in own if line.row.method == method], metric, *looks[method])
            if bench is None:
                _measured(axes, [line for line in own if line.row.method == method], metric, *looks[method])
        _finish(axes, METRICS[metric])
        filled = "; filled: measured here" if bench is None else ""
        head(axes, BENCHMARKS[benchmark].title, f"published, arXiv {preset.arxiv}{filled}; bars: sources disagree")
    if bench is not None:
        axes = places[-1]
        for method in methods:
            _student(axes, bench, preset.measured_by(method).student, *looks[method])
        _finish(axes, bench.column(metric) or METRICS[metric])
        head(axes, bench.task.name, f"measured here, of {bench.protocol.samples} samples; bars: 95 % intervals")
    return figure


def _published(axes, lines: list[Line], metric: str, colour: str, marker: str) -> None:
    """The points of one method; a range is a bar between its ends."""
    points = pd.DataFrame(
        [
            (line.row.nfe, line.published[metric].low, line.published[metric].high, line.published[metric].confirmed)
            for line in lines
            if metric in line.published
        ],
        columns=["nfe", "low", "high", "confirmed"],
    ).sort_values("nfe")
    middle = (points["low"] * points["high"]) ** 0.5
    name = lines[0].row.method + ("" if points["confirmed"].all() else f" {DAGGER}")
    bars = [middle - points["low"], points["high"] - middle]
    axes.errorbar(
        points["nfe"], middle, bars, color=colour, marker=marker, markersize=6, markerfacecolor="white", linewidth=1.2,
        linestyle=(0, (4, 2)), capsize=2, label=name,
    )  # fmt: skip


def _measured(axes, lines: list[Line], metric: str, colour: str, marker: str) -> None:
    for line in lines:
        if (found := line.measured[metric]).by:
            _points(axes, [line.row.nfe], [(found.value, found.margin)], color=colour, marker=marker)


def _student(axes, bench: Bench, spec: str | None, colour: str, marker: str) -> None:
    if spec and (points := bench.curve(spec)):
        nfe, found = zip(*points, strict=True)
        _points(axes, nfe, [(each.value, each.margin) for each in found], color=colour, marker=marker, label=spec)


def _points(axes, nfe, found: list[tuple[float, float]], **style) -> None:
    """Measured values with their intervals, where these are known."""
    values, margins = zip(*found, strict=True)
    bars = [0 if math.isnan(margin) else margin for margin in margins]
    axes.errorbar(nfe, values, bars, markersize=6, capsize=2, **style)


def _finish(axes, name: str) -> None:
    dress(axes)
    axes.set(xscale="log", yscale="log", xlabel=COSTS["nfe"], ylabel=f"{name} (lower is better)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
