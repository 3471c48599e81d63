"""Who is better than whom: paired differences from the best of equal steps. Functions of cells, like tables.py."""

import pandas as pd

from bench.report.tables import aggregate, describe, plus_minus, protocols, ranked, without_references
from bench.report.uncertainty import difference


def difference_table(cells: pd.DataFrame, metric: str, better: dict[str, str]) -> pd.DataFrame:
    """Students x steps for one protocol, as text: the paired difference from the best student of equal steps.

    `≈` where zero lies in its 95 % interval, `best` where there is none; in the order of the quality table.
    """
    table, sign = aggregate(cells), 1 if better[metric] == "lower" else -1
    order, _ = ranked(table, metric, better)
    columns = {}
    for steps, rows in without_references(table).dropna(subset=metric).groupby("steps"):
        best = rows.loc[(sign * rows[metric]).idxmin(), "student"]
        gaps = {name: difference(cells, (name, steps), (best, steps), metric) for name in rows["student"]}
        columns[f"{steps} step{'s' * (steps > 1)}"] = pd.Series(
            {
                name: "best" if name == best else f"{'≈ ' * gap.is_zero}{plus_minus(gap.value, gap.error)}"
                for name, gap in gaps.items()
            }
        )
    return pd.DataFrame(columns).reindex(order).dropna(how="all").fillna("").rename_axis(index=None)


def differences_text(cells: pd.DataFrame, metric: str, better: dict[str, str]) -> str:
    """The difference tables of all protocols, ready to print."""
    return "\n\n".join(
        "\n".join(
            [
                f"{group['task'].iloc[0]}: {metric}, difference from the best of equal steps, ± standard error",
                f"{describe(group)}; paired: same seeds and classes; ≈ zero lies in the 95 % interval",
                "",
                difference_table(group, metric, better).to_string(),
            ]
        )
        for group in protocols(cells)
    )
