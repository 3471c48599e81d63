"""A paper's table as it is asked for: in one of the formats, and its figure."""

from pathlib import Path

from bench.papers import CURVE, Preset, task_protocol
from bench.report import paper_formats
from bench.report.files import write_atomically
from bench.report.paper_cells import Bench
from bench.report.paper_table import lines, table
from bench.tasks import Task

FORMATS = {"text": paper_formats.to_text, "markdown": paper_formats.to_markdown, "latex": paper_formats.to_latex}
CSV = "csv"


def shown(preset: Preset, task: Task | None, out: Path, form: str) -> str:
    """The table as "text", "markdown", "latex" or "csv". task: what to measure on instead of each row's benchmark."""
    if form == CSV:
        return paper_formats.to_csv(lines(preset, task, out), task.name if task else None)
    return FORMATS[form](table(preset, task, out))


def write_figure(preset: Preset, task: Task | None, out: Path) -> list[str]:
    """Draw the figure of a preset that has one, below `out/reports/papers`; what to say of it, a line a file.

    A convergence is drawn of the curves that a study left on `task`.
    """
    if preset.figure is None:
        return []
    from bench.report.canvas import render

    if preset.figure == CURVE:
        from bench.report.paper_figure import curve

        bench = Bench(task, task_protocol(task), out) if task else None
        figure = curve(preset, lines(preset, task, out), bench)
    else:
        import pandas as pd

        from bench.report.studies import convergence

        path = out / "reports" / (task.name if task else "TASK") / f"{preset.name}-curves.csv"
        if task is None or not path.is_file():
            command = f"python -m bench study {preset.name} {task.name if task else 'TASK'}"
            return [f"no figure: {path} is missing, {command} makes it, and --task names the task"]
        figure = convergence(pd.read_csv(path))
    name = f"{preset.name}-{task.name}" if task else preset.name
    folder = out / "reports" / "papers"
    paths = [write_atomically(folder / f"{name}{suffix}", render(figure, suffix, name)) for suffix in (".png", ".svg")]
    return [f"wrote {path}" for path in paths]
