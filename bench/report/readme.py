"""Tables in README.md and docs, between markers, written by the command that writes the leaderboards.

    <!-- table: digits of ddim unipc consistency -->
    ...
    <!-- end of table -->

`table: TASK` is students x steps, of all students or of those named; `against solvers: TASK` says which distilled
students beat the best solver at equal cost.
"""

import re
from pathlib import Path

import pandas as pd

from bench.report.files import markdown_table, write_atomically
from bench.report.quality import quality_table
from bench.report.tables import REAL, TEACHER, aggregate, describe, protocols, without_references
from bench.report.uncertainty import difference
from students.errors import FewstepError

MARKED = re.compile(
    r"(<!-- (?P<kind>[a-z ]+): (?P<task>[\w.-]+)(?: of (?P<names>[^>]*?))? -->\n).*?(?P<end><!-- end of table -->)",
    re.DOTALL,
)
VERDICTS = ("better", "level", "worse")


def update_all(folder: Path, *arguments) -> list[Path]:
    """`update` README.md and the pages below docs; returns the paths of those that have tables of the task."""
    pages = [folder / "README.md", *sorted(folder.glob("docs/**/*.md"))]
    return [page for page in pages if update(page, *arguments)]


def update(path: Path, cells: pd.DataFrame, task: str, metric: str, better: dict[str, str]) -> Path | None:
    """Rewrite the tables of a task in a file; None where it has no markers for that task.

    Raises FewstepError for a kind of table that is not known, or a file that cannot be written.
    """
    try:
        text = path.read_text()
    except OSError:
        return None
    kinds = {"table": _quality, "against solvers": _against_solvers}

    def drawn(match: re.Match) -> str:
        if match["task"] != task:
            return match[0]
        if match["kind"] not in kinds:
            raise FewstepError(f"{path}: no table {match['kind']!r}, only {', '.join(kinds)}")
        table = kinds[match["kind"]](cells, metric, better, (match["names"] or "").split())
        return f"{match[1]}{table}\n{match['end']}"

    found = any(match["task"] == task for match in MARKED.finditer(text))
    return write_atomically(path, MARKED.sub(drawn, text).encode()) if found else None


def _quality(cells: pd.DataFrame, metric: str, better: dict[str, str], names: list[str]) -> str:
    main = protocols(cells)[0]
    if names:
        main = main[main["student"].isin([*names, REAL, TEACHER])]
    heading = f"{main['task'].iloc[0]}: {metric} ({better[metric]} is better)"
    return "\n".join(["```", heading, describe(main), "", quality_table(main, metric, better).to_string(), "```"])


def _against_solvers(cells: pd.DataFrame, metric: str, better: dict[str, str], names: list[str]) -> str:
    """Markdown: for each NFE the best solver, and the distilled students that are better, level and worse than it."""
    main = protocols(cells)[0]
    table = aggregate(main)
    table = without_references(table)[lambda rows: rows[metric].notna()]
    sign = 1 if better[metric] == "lower" else -1
    lines = []
    for nfe in sorted(table.loc[table["family"] != "solver", "nfe"].unique()):
        rows = table[table["nfe"] == nfe]
        solvers, distilled = rows[rows["family"] == "solver"], rows[rows["family"] != "solver"]
        if solvers.empty or distilled.empty:
            continue
        least = f"{solvers[metric].min() if sign > 0 else solvers[metric].max():.3g}"
        best = solvers[solvers[metric].map("{:.3g}".format) == least].sort_values("student").iloc[0]
        places: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
        for row in distilled.sort_values(metric, ascending=sign > 0).to_dict("records"):
            places[_verdict(main, row, best, metric, sign)].append(f"`{row['student']}` {row[metric]:.3g}")
        named = (", ".join(names) for names in places.values())
        lines.append([f"{nfe:g}", f"`{best['student']}` {best[metric]:.3g}", *named])
    return "\n".join(markdown_table(["evaluations", "best solver", *VERDICTS], lines))


def _verdict(cells: pd.DataFrame, ours: dict, best: pd.Series, metric: str, sign: int) -> str:
    """By the 95 % interval of the difference, which is paired: all students share seeds and classes."""
    gap = difference(cells, (ours["student"], ours["steps"]), (best["student"], best["steps"]), metric)
    if gap.is_zero:
        return "level"
    return "better" if sign * gap.value < 0 else "worse"
