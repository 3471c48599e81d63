"""What the plots of a report share: ink, axes, a title, a column of labels that do not overlap, files."""

import io
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from scipy.optimize import isotonic_regression

from bench.report.files import png

DPI, PALETTE = 160, 128
INK, GREY, LEADER, FAINT = "#1a1a1a", "#8c8c8c", "#c4c4c4", "#e4e4e4"
LABEL_SIZE, LABEL_PITCH = 8, 11  # points
LONGEST_LABEL = 33
FRONT_LAYER = 5


@dataclass(frozen=True)
class Style:
    """How a student is drawn; of those of the front layer the label is bold."""

    colour: str
    marker: str
    dashes: object
    width: float
    size: float
    text: str
    layer: int
    face: str = "white"


def dress(axes) -> None:
    """Two spines, a faint grid, small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#666666")
    axes.grid(color=FAINT, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color="#666666", length=3)


def head(axes, title: str, text: str, lift: float = 0) -> None:
    """A title and a line below it. lift: points of room below them."""
    looks = ((title, 24, {"fontsize": 12, "weight": "bold"}), (text, 9, {"fontsize": 9, "color": "#444444"}))
    for words, above, look in looks:
        place = (0, above + lift)
        axes.annotate(words, (0, 1), xycoords="axes fraction", xytext=place, textcoords="offset points", **look)


def label_column(axes, points: pd.DataFrame, styles: dict[str, Style], leaders_from: float = 0.4) -> None:
    """Names right of the axes of points (columns: name, x, y), moved apart where these are close.

    Leaders go from points further right than `leaders_from`, a fraction of the axes.
    """
    height = axes.get_window_extent().height / DPI * 72
    wanted = axes.transAxes.inverted().transform(axes.transData.transform(points.iloc[:, 1:]))
    order = np.argsort(wanted[:, 1], kind="stable")
    points, wanted = points.iloc[order], wanted[order]
    places = spread_out(wanted[:, 1], LABEL_PITCH / height)
    for (name, x, y), across, place in zip(points.itertuples(index=False), wanted[:, 0], places, strict=True):
        style = styles[name]
        if across > leaders_from:
            axes.annotate(
                "", (x, y), xytext=(1.045, place), textcoords="axes fraction", annotation_clip=False, zorder=2,
                arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": LEADER, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
        axes.plot(
            [1.045, 1.085], [place, place], color=style.colour, linewidth=style.width, linestyle=style.dashes,
            marker=style.marker, markevery=[1], markersize=min(style.size, 5), markerfacecolor=style.face,
            markeredgewidth=style.width * 0.7, transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        axes.annotate(
            _short(name), (1.085, place), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points",
            va="center_baseline", fontsize=LABEL_SIZE, color=style.text, annotation_clip=False,
            weight="bold" if style.layer == FRONT_LAYER else "normal",
        )  # fmt: skip


def spread_out(wanted: np.ndarray, pitch: float) -> np.ndarray:
    """Places in [0, 1] at least `pitch` apart and nearest to the sorted ones wanted, in least squares."""
    steps = pitch * np.arange(len(wanted))
    return np.clip(isotonic_regression(wanted - steps).x, 0, max(0, 1 - pitch * (len(wanted) - 1))) + steps


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else "…" + name[1 - LONGEST_LABEL :]


def render(figure: Figure, suffix: str, inputs: str) -> bytes:
    """A figure as ".png" or ".svg", the same bytes for the same figure, with `inputs` in its metadata."""
    content = io.BytesIO()
    if suffix == ".png":
        figure.savefig(content, format="png")
        return png(Image.open(content).convert("RGB").quantize(PALETTE), inputs)
    with matplotlib.rc_context({"svg.hashsalt": "fewstep-bench"}):
        figure.savefig(content, format="svg", metadata={"Identifier": inputs, "Date": None, "Creator": None})
    return content.getvalue()
