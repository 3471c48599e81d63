"""What training a student, or finding the grid of a solver, cost, and after how many images that is paid back.

Functions of cells, like tables.py.
"""

import math
import textwrap
from collections.abc import Collection

import numpy as np
import pandas as pd

from bench.report.tables import WIDTH, aggregate, describe, plus_minus, protocols

RULE = (
    "Break-even is the number of images after which training, or finding a grid, is paid back: its network "
    "evaluations, all step counts together, less those that finding the grid of the solver took, / (NFE of the solver "
    "- NFE of the student), where the solver is the other one of fewest NFE whose {metric} is equal or better."
)
NEVER, NONE_AS_GOOD, NONE_MEASURED = "never", "no solver as good", "no solver measured"


def rival(solvers: pd.DataFrame, value: float, metric: str, better: dict[str, str]) -> pd.Series | None:
    """Of the rows whose metric is `value` or better, the one of fewest NFE, of equals the best; None if none is."""
    lower = better[metric] == "lower"
    good = solvers[solvers[metric] <= value if lower else solvers[metric] >= value]
    return None if good.empty else good.sort_values(["nfe", metric, "student"], ascending=[True, lower, True]).iloc[0]


def break_even(evaluations: float, nfe: float, solver_nfe: float) -> float:
    """The images n for which n (NFE of the solver - NFE of the student) >= evaluations; infinite if none are saved.

    evaluations: what the student cost more than the solver, which may be less than nothing.
    """
    saved = solver_nfe - nfe
    return max(0, math.ceil(evaluations / saved)) if saved > 0 else math.inf


def training_table(
    cells: pd.DataFrame, metric: str, better: dict[str, str], names: Collection[str] | None = None
) -> pd.DataFrame | None:
    """A row for each (student, steps) of one protocol that cost something, as text; None where there are none with a
    number. names: of the students to show, by default all.

    Evaluations and seconds are of the training, with all that went before, or of finding a solver's grid; `x teacher`:
    relative to the evaluations of the teacher's own training; `over seeds`: the deviation of the metric over training
    seeds, where it was measured. Then break-even (see RULE), the solver compared with
    (none that samples from a model of its own, whose evaluations are of another size), and where they were measured the
    distances to the teacher's samples (bench/measure/faithfulness.py) and the straightness of the student's flow.
    """
    table = aggregate(cells)
    if not {"training_evaluations", metric} <= set(table):
        return None
    table = table[table[metric].notna()]
    students = table[table["training_evaluations"].notna()].sort_values(["student", "steps"])
    students = students if names is None else students[students["student"].isin(names)]
    solvers = table[(table["family"] == "solver") & ~table["own_model"].astype(bool)]
    faithful = [name for name in better if name.startswith("teacher") and name in table and table[name].notna().any()]
    rows = []
    for row in students.to_dict("records"):
        others = solvers[solvers["student"] != row["student"]]
        best = rival(others, row[metric], metric, better)
        if best is None:
            paid, against = NONE_MEASURED if others.empty else NONE_AS_GOOD, ""
        else:
            extra = row["training_evaluations"] - np.nan_to_num(best["training_evaluations"])
            images = break_even(extra, row["nfe"], best["nfe"])
            paid = NEVER if math.isinf(images) else f"{images:,}"
            against = f"{best['student']}, steps {best['steps']}, NFE {best['nfe']:.4g}"
        cost = row["training_cost"]
        rows.append(
            {
                "student": row["student"],
                "steps": f"{row['steps']}",
                "NFE": f"{row['nfe']:.4g}",
                metric: plus_minus(row[metric], row[f"{metric}_se"]),
                "over seeds": plus_minus(row.get(f"{metric}_seeds_std", math.nan)),
                "x teacher": "n/a" if math.isnan(cost) else f"{cost:.3g}",
                "evaluations": f"{row['training_evaluations']:,.0f}",
                "seconds": f"{row['training_seconds']:,.0f}",
                "break-even": paid,
                "against": against,
                **{name: plus_minus(row[name], row[f"{name}_se"]) for name in faithful},
                "straightness": plus_minus(row.get("straightness", math.nan)),
            }
        )
    shown = pd.DataFrame(rows)
    return None if shown.empty else shown.loc[:, (shown != "n/a").any()]


def training_text(
    cells: pd.DataFrame, metric: str, better: dict[str, str], names: Collection[str] | None = None
) -> str:
    """The training tables of all protocols, ready to print; empty where no student cost anything."""
    blocks = []
    for group in protocols(cells):
        if (table := training_table(group, metric, better, names)) is not None:
            heading = (
                f"{group['task'].iloc[0]}: what training or a grid cost, and after how many images it is paid back"
            )
            rule = textwrap.fill(RULE.format(metric=metric), WIDTH)
            blocks.append("\n".join([heading, describe(group), rule, "", _text(table)]))
    return "\n\n".join(blocks)


def _text(table: pd.DataFrame) -> str:
    """With the student in front, once, as the quality table has it."""
    return table.set_index(["student", "steps"]).rename_axis(index=[None, None], columns=None).to_string()
