"""The picture of fidelity against diversity: a panel a budget, a point a student, its marker that of its family."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.report.canvas import DPI, GREY, INK, LABEL_PITCH, LABEL_SIZE, LEADER, Style, dress, head, label_column
from bench.report.diversity import OTHER, SOLVERS, columns, points
from bench.report.tables import REAL, TEACHER, describe

LOOKS = {
    family: Style(colour, marker, "none", width, size, colour, layer, face)
    for family, colour, face, marker, width, size, layer in (
        (SOLVERS, "#555555", "white", "o", 1.3, 6, 4),
        ("trajectory", "#0060a8", "#0060a8", "s", 1, 6, 3),
        ("matching", "#b8400a", "#b8400a", "^", 1, 7.5, 3),
        ("adversarial", "#007a56", "#007a56", "D", 1, 6, 3),
        (OTHER, "#8a3a86", "#8a3a86", "X", 1, 7.5, 3),
        (TEACHER, INK, "white", "P", 1, 11, 6),
        (REAL, INK, INK, "*", 1, 9, 7),
    )
}
PALE = Style(LEADER, "o", "none", 0.8, 4, LEADER, 2)
PANEL = 6.4  # inches, with its labels
CROWDED = "; a density above that of real images: samples crowd where these are densest"


def fidelity_diversity(cells: pd.DataFrame, metric: str, better: dict[str, str], title: str) -> Figure | None:
    """Diversity to the right, fidelity upwards, of the `points` of one protocol's cells; None where there are none."""
    drawn, names = points(cells, metric, better), columns(cells, better)
    if drawn is None or names is None:
        return None
    panels = [rows for _, rows in drawn.groupby("budget")]
    labels = max((rows["label"] != "").sum() for rows in panels)
    height = max(5.4, 2 + labels * LABEL_PITCH / 72)
    figure = Figure(figsize=(PANEL * len(panels), height), dpi=DPI)
    for i, rows in enumerate(panels):
        place = ((i + 0.11) / len(panels), 0.95 / height, 0.53 / len(panels), 1 - 1.9 / height)
        axes = figure.add_axes(place)
        _draw(axes, rows, names, metric, better)
        if not i:
            head(axes, title, describe(cells) + CROWDED * (better[names[1]] == "higher"), lift=18)
    families = [name for name in LOOKS if name in set(drawn["family"]) - {REAL, TEACHER}]
    figure.legend(
        [_mark(LOOKS[name]) for name in families], families, loc="lower left", ncols=len(families), frameon=False,
        bbox_to_anchor=(0.1 / len(panels), 0), fontsize=9, handletextpad=0.2,
    )  # fmt: skip
    return figure


def _draw(axes, rows: pd.DataFrame, names: tuple[str, str], metric: str, better: dict[str, str]) -> None:
    """One panel."""
    dress(axes)
    axes.set_title(f"at most {rows['budget'].iloc[0]} NFE", loc="left", fontsize=10)
    for row in rows.itertuples():
        axes.add_line(_mark(LOOKS[row.family] if row.label else PALE, [row.x], [row.y]))
    axes.margins(0.06)
    axes.autoscale_view()
    diversity, fidelity = names
    axes.set_xlabel(f"diversity: {diversity} ({better[diversity]} is better)")
    axes.set_ylabel(f"fidelity: {fidelity} ({better[fidelity]} is better)")
    if better[fidelity] == "lower":
        axes.invert_yaxis()
        axes.set_ylabel(f"fidelity: {fidelity} (lower is better, axis upside down)")
    labelled = rows[rows["label"] != ""]
    styles = {row.label: LOOKS[row.family] for row in labelled.itertuples()}
    label_column(axes, labelled[["label", "x", "y"]], styles, leaders_from=0)
    if pale := len(rows) - len(labelled):
        axes.annotate(
            f"pale: {pale} other solvers,\nno better in {metric}", (1.045, 0), xycoords="axes fraction",
            xytext=(0, -14), textcoords="offset points", va="top", fontsize=LABEL_SIZE, style="italic", color=GREY,
        )  # fmt: skip


def _mark(style: Style, x: Sequence[float] = (), y: Sequence[float] = ()) -> Line2D:
    """A point, or nowhere the mark of a legend. Filled ones have a white edge, which parts neighbours."""
    edge, edge_width = (style.colour, style.width) if style.face == "white" else ("white", 0.6)
    return Line2D(
        x, y, color=style.colour, marker=style.marker, linestyle="none", markersize=style.size, zorder=style.layer,
        markerfacecolor=style.face, markeredgecolor=edge, markeredgewidth=edge_width,
    )  # fmt: skip
