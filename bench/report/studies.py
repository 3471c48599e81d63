"""Figures of studies (bench/study.py): samples in the plane side by side, and quality while a student learns."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.report.canvas import DPI, FAINT, GREY, dress, head

COLOURS = ("#0060a8", "#b8400a", "#007a56", "#8a3a86")
WIDTH = 3.4  # inches, of a panel
MARGINS = {"left": 0.05, "right": 0.98, "bottom": 0.11, "top": 0.83, "wspace": 0.08}


def panels(samples: dict[str, np.ndarray], data: np.ndarray, notes: dict[str, str]) -> Figure:
    """Samples (N, 2) by name, each above a note of its own and on data (N, 2)."""
    figure = Figure(figsize=(WIDTH * len(samples), WIDTH + 0.7), dpi=DPI)
    places = figure.subplots(1, len(samples), sharey=True, squeeze=False, gridspec_kw=MARGINS)[0]
    for axes, (name, found) in zip(places, samples.items(), strict=True):
        dress(axes)
        axes.set_aspect("equal")
        for rows, size, colour in ((data, 5, FAINT), (found, 3, COLOURS[0])):
            axes.scatter(*rows.T, s=size, color=colour, linewidths=0, zorder=2)
        axes.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9))
        head(axes, name, notes[name])
    return figure


def convergence(curves: pd.DataFrame) -> Figure:
    """Energy distance against the student's updates: the mean over the seeds of a training, and their range.

    curves: columns variant, seed, updates, energy_distance.
    """
    figure = Figure(figsize=(7.5, 4.8), dpi=DPI)
    axes = figure.subplots(gridspec_kw=MARGINS | {"left": 0.11})
    dress(axes)
    for colour, (variant, rows) in zip(COLOURS, curves.groupby("variant", sort=False), strict=False):
        points = rows.groupby("updates")["energy_distance"].agg(["mean", "min", "max"])
        axes.fill_between(points.index, points["min"], points["max"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(points.index, points["mean"], color=colour, linewidth=1.8, label=variant)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set(xlabel="updates of the generator", ylabel="energy distance to the data")
    axes.legend(frameon=False, fontsize=9)
    text = (
        f"energy distance of one-step samples: mean and range of {curves['seed'].nunique()} trainings, lower is better"
    )
    head(axes, "Quality while the generator learns", text)
    return figure
