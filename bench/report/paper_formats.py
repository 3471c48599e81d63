"""A paper's table as text, Markdown, LaTeX or CSV."""

import csv
import io
import math
import re
import textwrap

from bench.report.files import markdown_table
from bench.report.paper_table import DAGGER, Cell, Line, Table
from bench.report.tables import WIDTH

LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    DAGGER: r"$^\dagger$",
    "–": "--",
}
RECORD = (
    "benchmark", "method", "nfe", "steps", "guidance_scale", "metric", "published_low", "published_high", "confirmed",
    "quoted", "sources", "measured", "measured_low", "measured_high", "measured_on", "student", "reason",
)  # fmt: skip


def to_text(table: Table) -> str:
    """Columns side by side; † after a figure that is not confirmed; the numbers of notes in brackets."""
    shown = [[_plain(cell) for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *shown, strict=True)]
    rows = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in (table.columns, *shown)
    ]
    notes = [_wrapped(f"({i}) {note}") for i, note in enumerate(table.notes, 1)]
    return "\n".join([table.title, *map(_wrapped, table.about), "", *rows, *([""] if notes else []), *notes])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)


def _plain(cell: Cell) -> str:
    marks = f" ({', '.join(map(str, cell.notes))})" if cell.notes else ""
    return f"{cell.text}{DAGGER * cell.unconfirmed}{marks}"


def to_markdown(table: Table) -> str:
    """A GitHub table; figures that are not confirmed in italics, with a dagger."""

    def shown(cell: Cell) -> str:
        text = _escaped(cell.text)
        text = f"*{text}*{DAGGER}" if cell.unconfirmed else text
        return f"{text} <sup>{', '.join(map(str, cell.notes))}</sup>" if cell.notes else text

    body = markdown_table(table.columns, ([shown(cell) for cell in row] for row in table.rows))
    about = [f"- {_escaped(text)}" for text in table.about]
    notes = [f"{i}. {_escaped(note)}" for i, note in enumerate(table.notes, 1)]
    return "\n".join([f"## {_escaped(table.title)}", "", *about, "", *body, *([""] if notes else []), *notes])


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_|<>])", r"\\\1", text)


def to_latex(table: Table) -> str:
    """A `table` with the rules of booktabs; figures that are not confirmed in italics, with a dagger."""

    def shown(cell: Cell) -> str:
        text = rf"\textit{{{_latex(cell.text)}}}$^\dagger$" if cell.unconfirmed else _latex(cell.text)
        return text + (f"$^{{{','.join(map(str, cell.notes))}}}$" if cell.notes else "")

    rows = [" & ".join(map(shown, row)) + r" \\" for row in table.rows]
    notes = [rf"{_latex(text)} \\" for text in table.about]
    notes += [rf"$^{{{i}}}$ {_latex(note)} \\" for i, note in enumerate(table.notes, 1)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_latex(table.title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(map(_latex, table.columns)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\footnotesize",
            *notes,
            r"\end{table}",
        ]
    )


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def to_csv(lines: list[Line], task_name: str | None) -> str:
    """One record a row and metric, numbers as they are; `sources` and `reason` in full.

    task_name: what was measured on; None where that is the record's own benchmark.
    """
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(RECORD)
    for line in lines:
        row = line.row
        for metric, measured in line.measured.items():
            known = line.published.get(metric)
            published = [known.low, known.high, known.confirmed] if known else [None, None, None]
            said = "; ".join(f"{getattr(s, metric)} in {s.source}" for s in known.sources) if known else ""
            bounds = [measured.value, measured.value - measured.margin, measured.value + measured.margin]
            writer.writerow(
                [
                    row.benchmark, row.method, row.nfe, row.steps, row.guidance_scale, metric, *published, row.quoted,
                    said, *("" if math.isnan(value) else value for value in bounds),
                    (task_name or row.benchmark) if measured.by else "", measured.by, measured.reason,
                ]
            )  # fmt: skip
    return content.getvalue().rstrip("\n")
