"""The picture of samples that somebody brought, against the network evaluations that they stated."""

from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.report.canvas import DPI, INK, LABEL_PITCH, Style, dress, head, label_column

MARKERS = "osD^vPX<>p"


def against_stated(rows: pd.DataFrame, metric: str, direction: str, nfe: str, title: str) -> Figure:
    """A hollow point for each row at its stated NFE, with ± 1 standard error where that is known."""
    height = max(4.5, 1.9 + len(rows) * LABEL_PITCH / 72)
    figure = Figure(figsize=(10, height), dpi=DPI)
    axes = figure.add_axes((0.075, 0.8 / height, 0.6, 1 - 1.6 / height))
    dress(axes)
    labels = [f"{_plain(name)} ({count})" for name, count in zip(rows["name"], rows["samples"], strict=True)]
    styles = {
        label: Style(INK, marker, "none", 1.2, 6.5, INK, 3)
        for label, marker in zip(labels, cycle(MARKERS), strict=False)
    }
    for label, x, y, error in zip(labels, rows[nfe], rows[metric], rows[f"{metric}_se"].fillna(0), strict=True):
        axes.errorbar(
            x, y, error, color=INK, marker=styles[label].marker, markerfacecolor="white", markersize=6.5, capsize=2.5,
            zorder=3,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(rows[nfe].min() / 1.5, rows[nfe].max() * 1.5)
    axes.set_xticks(sorted(set(rows[nfe])))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if (rows[metric] > 0).all() and rows[metric].max() > 4 * rows[metric].min():
        axes.set_yscale("log")
    axes.margins(y=0.15)
    points = pd.DataFrame({"label": labels, "x": rows[nfe].to_numpy(), "y": rows[metric].to_numpy()})
    label_column(axes, points, styles)
    axes.set_xlabel("network evaluations per image (NFE), stated and not measured")
    axes.set_ylabel(f"{_plain(metric)} ({direction} is better)")
    head(axes, _plain(title), "samples that were brought, with how many images; bars: ± 1 standard error")
    return figure


def _plain(text: str) -> str:
    """Text of a stranger, in which matplotlib is to see no mathematics."""
    return text.replace("$", r"\$")
