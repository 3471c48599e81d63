"""How long students take, students x steps. Functions of cells, like tables.py."""

import math

import pandas as pd

from bench.report.tables import aggregate, describe, protocols, without_references


def latency_table(cells: pd.DataFrame) -> pd.DataFrame | None:
    """Students x steps for one protocol, as text: milliseconds for one image, and an image of the throughput batch.

    Medians over draws, means over seed blocks; None where nothing was timed on one device.
    """
    table = aggregate(without_references(cells))
    if not {"latency_ms", "throughput_ms"} <= set(table) or table["latency_ms"].isna().all():
        return None
    columns = {}
    for steps, rows in table.groupby("steps"):
        rows = rows.set_index("student")
        heading = f"{steps} step{'s' * (steps > 1)}"
        for name, label in (("latency_ms", "batch 1"), ("throughput_ms", "in batch")):
            columns[heading, label] = rows[name].map(lambda value: "" if math.isnan(value) else f"{value:.3g}")
    order = table.groupby("student")["latency_ms"].min().sort_values().index
    return pd.DataFrame(columns).reindex(order).fillna("").rename_axis(index=None)


def latency_text(cells: pd.DataFrame) -> str:
    """The latency tables of all protocols, ready to print; empty where nothing was timed."""
    blocks = []
    for group in protocols(cells):
        for device, rows in without_references(group).groupby("device"):
            if (table := latency_table(rows)) is not None:
                size = " or ".join(f"{n:.0f}" for n in sorted(rows["throughput_batch"].dropna().unique()))
                heading = f"{rows['task'].iloc[0]}: milliseconds an image on {device}, alone and in a batch of {size}"
                blocks.append("\n".join([heading, describe(rows), "", table.to_string()]))
    return "\n\n".join(blocks)
