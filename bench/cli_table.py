"""The command `table`: a paper's table. Nothing heavy is imported before it runs."""

import argparse
import sys
from pathlib import Path

FORMATS = ("text", "markdown", "csv", "latex")


def add_command(command) -> argparse.ArgumentParser:
    """Add it by `command(name, function, text)`; returns its parser."""
    sub = command("table", _table, "a paper's table: what it prints, beside what was measured here")
    sub.add_argument("table", metavar="NAME", help="python -m bench list tables")
    sub.add_argument("--task", metavar="TASK", help="measure on this task, not on the benchmark of each row")
    sub.add_argument("--format", choices=FORMATS, default="text", help="of what is printed (default: text)")
    sub.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="parent of run/ and reports/ (default: .)")
    return sub


def _table(arguments) -> int:
    from bench.papers import load_preset
    from bench.plan import resolve_extractor
    from bench.report import papers
    from bench.tasks import load_task

    preset = load_preset(arguments.table)
    task = resolve_extractor(load_task(arguments.task)) if arguments.task else None
    print(papers.shown(preset, task, arguments.out, arguments.format))
    for line in papers.write_figure(preset, task, arguments.out):
        print(line, file=sys.stderr)
    return 0
