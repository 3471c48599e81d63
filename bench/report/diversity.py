"""Fidelity and diversity of students at 1 and at 4 network evaluations: the points of a plot. Functions of cells."""

import pandas as pd

from bench.report.tables import REAL, TEACHER, aggregate, within_budget, without_references
from students.errors import FewstepError
from students.spec import SCHEDULER, SOLVER, TRAINED, parse

BUDGETS = (1, 4)
DIVERSITY, FIDELITY = ("recall", "mode_coverage"), ("density", "outliers")  # how the columns begin
SOLVERS, OTHER = "solver", "other"
FAMILIES = (SOLVERS, "trajectory", "matching", "adversarial", OTHER)


def columns(cells: pd.DataFrame, better: dict[str, str]) -> tuple[str, str] | None:
    """Those of diversity and of fidelity: recall and density, of vectors mode coverage and outliers; None without.

    Not coverage: with several samples to each real image it is 1 for almost every student.
    """
    found = [name for starts in (DIVERSITY, FIDELITY) for name in better if name.startswith(starts) and name in cells]
    return (found[0], found[1]) if len(found) == 2 else None


def family(student: str) -> str:
    """One of FAMILIES: a solver of the task's teacher, the folder of a method, or other: checkpoints, others' code."""
    try:
        spec = parse(student)
    except FewstepError:
        return OTHER
    if spec.kind in (SOLVER, SCHEDULER) and not spec.model:
        return SOLVERS
    folder = spec.target.removeprefix("students.distillation.").partition(".")[0]
    return folder if spec.kind == TRAINED and folder in FAMILIES else OTHER


def points(cells: pd.DataFrame, metric: str, better: dict[str, str]) -> pd.DataFrame | None:
    """What to draw of one protocol's cells; None where no student has both columns within a budget.

    For each of BUDGETS a row a student that has a step count within it (see `within_budget`), real data and the
    teacher's samples, whose names are also their families. Of solvers only the best by the metric has a label.
    """
    if (named := columns(cells, better)) is None:
        return None
    table = aggregate(cells).dropna(subset=list(named))
    table["x"], table["y"] = (table[name] for name in named)
    table["family"] = table["student"].map(lambda name: name if name in (REAL, TEACHER) else family(name))
    students, references = without_references(table), table[table["student"].isin([REAL, TEACHER])]
    lower, parts = better[metric] == "lower", []
    for budget in BUDGETS:
        entries = within_budget(students, budget).sort_values([metric, "student"], ascending=[lower, True])
        if entries.empty:
            continue
        entries["label"] = [
            _with_note(row.student, f"{row.nfe:.3g} NFE", row.nfe < budget - 0.5) for row in entries.itertuples()
        ]
        entries.loc[entries.index[entries["family"] == SOLVERS][1:], "label"] = ""
        most = entries["samples"].max()
        known = [
            _with_note(row.student, f"{row.samples} samples", row.samples < most) for row in references.itertuples()
        ]
        parts += [entries.assign(budget=budget), references.assign(budget=budget, label=known)]
    return pd.concat(parts)[["budget", "student", "nfe", "family", "label", "x", "y"]] if parts else None


def _with_note(name: str, note: str, differs: bool) -> str:
    return f"{name} ({note})" if differs else name
