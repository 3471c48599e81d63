"""A paper's table: published figures, what was measured here beside them, and their difference; notes on both.

Published and measured are columns of their own. A difference is shown only where both are of one benchmark and
protocol.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bench.papers import Ours, Preset, load_protocol, task_protocol
from bench.published import BENCHMARKS, METRICS, Published, agree, read, sources
from bench.report.paper_cells import Bench, column
from bench.report.paper_reasons import Measured, commands, no_task
from bench.tasks import Task, load_task, task_names

DAGGER = "†"
SHORT = ("needs", "no task", "not run", "not trained", "other protocol", "unsupported", "failed")  # of reasons


@dataclass(frozen=True)
class Figure:
    """A published number: from `low` to `high` where sources disagree. confirmed: whether all of them were read."""

    low: float
    high: float
    confirmed: bool
    sources: tuple[Published, ...]

    @property
    def is_range(self) -> bool:
        return self.low != self.high


@dataclass(frozen=True)
class Line:
    """A row of the table: the row of published.csv, by metric its figure and what was measured."""

    row: Published
    published: dict[str, Figure]
    measured: dict[str, Measured]
    remark: str


@dataclass(frozen=True)
class Cell:
    """The text of a cell, whether it is of an unconfirmed figure, and the numbers of its notes."""

    text: str
    unconfirmed: bool = False
    notes: tuple[int, ...] = ()


@dataclass
class Notes:
    """Notes below a table, each once, numbered from 1 in the order in which they come up."""

    texts: list[str] = field(default_factory=list)

    def add(self, *texts: str) -> tuple[int, ...]:
        for text in texts:
            if text and text not in self.texts:
                self.texts.append(text)
        return tuple(self.texts.index(text) + 1 for text in texts if text)


@dataclass(frozen=True)
class Table:
    """What is printed: a title, lines about it, columns, rows of cells, numbered notes."""

    title: str
    about: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]


def lines(preset: Preset, task: Task | None, out: Path) -> list[Line]:
    """The rows of a table, measured on `task`, or on each row's own benchmark, from the cells below `out`."""
    known, benches = set(task_names()), {}

    def bench(name: str) -> Bench:
        if name not in benches:
            protocol = load_protocol(preset.protocol) if task is None else task_protocol(task)
            best_of = preset.best_of if task is None else 1
            benches[name] = Bench(task or load_task(name), protocol, out, best_of)
        return benches[name]

    def measured(row: Published, ours: Ours) -> dict[str, Measured]:
        name = BENCHMARKS[row.benchmark].task
        if task is None and name not in known:
            return dict.fromkeys(preset.columns, no_task(row, ours))
        return bench(task.name if task else str(name)).measured(ours, row, preset.columns, own=task is None)

    rows = preset.figures()
    ours = [preset.measured_by(row.method) for row in rows]
    return [
        Line(
            row,
            {metric: figure(row, metric) for metric in preset.columns if getattr(row, metric) is not None},
            found,
            entry.remark,
        )
        for row, entry, found in zip(rows, ours, commands(map(measured, rows, ours)), strict=True)
    ]


def figure(row: Published, metric: str) -> Figure:
    """A published figure; the range where another source has another one for the same."""
    value, alike = getattr(row, metric), sources(row, metric, read())
    values = [getattr(other, metric) for other in alike]
    if all(agree(value, other) for other in values):
        return Figure(value, value, row.confirmed, (row,))
    return Figure(min(values), max(values), all(other.confirmed for other in alike), tuple(alike))


def table(preset: Preset, task: Task | None, out: Path) -> Table:
    """A preset as it is printed. task: what to measure on instead of each row's own benchmark."""
    found, notes = lines(preset, task, out), Notes()
    rows = [line.row for line in found]
    first = preset.columns[0]
    shown = [m for m in preset.columns if m == first or any(line.measured[m].by for line in found)]
    columns: dict[str, list[Cell]] = {}
    if len({row.benchmark for row in rows}) > 1:
        columns["benchmark"] = [Cell(row.benchmark) for row in rows]
    columns["method"] = [Cell(row.method, notes=notes.add(row.note)) for row in rows]
    if preset.trained_in:
        columns["trained in the space of"] = [Cell(preset.space(row.method)) for row in rows]
    columns["NFE"] = [_count(row.nfe) for row in rows]
    if any(row.steps not in (None, row.nfe) for row in rows):
        columns["steps"] = [_count(row.steps) for row in rows]
    if any(row.guidance_scale for row in rows):
        columns["guidance"] = [_count(row.guidance_scale) for row in rows]
    if len({row.paper for row in rows}) > 1:
        columns["paper"] = [Cell(row.paper) for row in rows]
    columns["figure by"] = [Cell("another, quoted" if row.quoted else "the authors") for row in rows]
    for metric in preset.columns:
        columns[f"{METRICS[metric]} published"] = [_published(line, metric, notes) for line in found]
        if metric in shown:
            name = (
                f"{METRICS[metric]} measured" if task is None else f"measured on {task.name}: {_column(task, metric)}"
            )
            columns[name] = [_measured(line, metric, notes) for line in found]
            if task is None:
                columns[f"{METRICS[metric]} difference"] = [_difference(line, metric) for line in found]
    if any(measured.by for line in found for measured in line.measured.values()):
        columns["measured: student"] = [
            Cell(_student(line), notes=notes.add(line.remark if _student(line) else "")) for line in found
        ]
    about = tuple(_about(preset, task, found))
    return Table(preset.title, about, tuple(columns), tuple(zip(*columns.values(), strict=True)), tuple(notes.texts))


def _column(task: Task, metric: str) -> str:
    return column(task, task.extractor, metric) or METRICS[metric]


def _about(preset: Preset, task: Task | None, found: list[Line]) -> Iterable[str]:
    protocol = load_protocol(preset.protocol)
    taken = [f"the minimum of {preset.best_of} runs"] if preset.best_of > 1 else []
    taken += [preset.statistic] if preset.statistic else []
    yield "published: " + "; ".join([*([f"arXiv {preset.arxiv}"] if preset.arxiv else []), protocol.summary, *taken])
    if task is not None:
        own = task_protocol(task)
        measured = f"{own.summary}: {own.samples} samples, extractor {own.extractor or 'none'}, rounding {own.rounding}"
        yield f"measured on {task.name}, other data than the published figures, so no difference is shown; {measured}"
    elif any(measured.by for line in found for measured in line.measured.values()):
        yield "difference: measured less published; its interval is that of the measured number"
    if any(not math.isnan(m.margin) for line in found for m in line.measured.values()):
        yield "[low, high] is the 95 % interval of a measured number"
    if any(not f.confirmed for line in found for f in line.published.values()):
        yield f"{DAGGER} not confirmed at a source"
    if any(f.is_range for line in found for f in line.published.values()):
        yield "a range: sources disagree; the note names them"
    if preset.note:
        yield f"note: {preset.note}"


def _count(value: float | None) -> Cell:
    return Cell("" if value is None else f"{value:g}")


def _published(line: Line, metric: str, notes: Notes) -> Cell:
    if metric not in line.published:
        return Cell("")
    known = line.published[metric]
    if not known.is_range:
        return Cell(_number(known.low), not known.confirmed)
    said = ", ".join(f"{_number(getattr(row, metric))} in {row.source}" for row in known.sources)
    text = f"{METRICS[metric]} of {line.row.method} at NFE {line.row.nfe:g}: {said}"
    return Cell(f"{_number(known.low)}–{_number(known.high)}", not known.confirmed, notes.add(text))


def _measured(line: Line, metric: str, notes: Notes) -> Cell:
    known = line.measured[metric]
    if known.reason:
        short = next((words for words in SHORT if known.reason.startswith(words)), "none")
        return Cell(short, notes=notes.add(known.reason))
    return Cell(interval(known.value, known.margin))


def _difference(line: Line, metric: str) -> Cell:
    known, published = line.measured[metric], line.published.get(metric)
    if known.reason or published is None:
        return Cell("")
    decimals = _decimals(known.value)
    if published.is_range:
        low, high = known.value - published.high, known.value - published.low
        return Cell(f"{low:+.{decimals}f} to {high:+.{decimals}f}")
    return Cell(interval(known.value - published.low, known.margin, decimals, "+"))


def _student(line: Line) -> str:
    return next((measured.by for measured in line.measured.values() if measured.by), "")


def interval(value: float, margin: float, decimals: int | None = None, sign: str = "") -> str:
    """`2.03 [1.98, 2.08]`, by default with three significant digits."""
    form = f"{sign}.{_decimals(value) if decimals is None else decimals}f"
    bounds = "" if math.isnan(margin) else f" [{value - margin:{form}}, {value + margin:{form}}]"
    return f"{value:{form}}{bounds}"


def _decimals(value: float) -> int:
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2


def _number(value: float) -> str:
    """As in the file, which has lost the zeros at the end: at least one decimal below 100."""
    return f"{value:.10g}" if value >= 100 or value % 1 else f"{value:.1f}"
