"""Samples that somebody brought, apart from all others: measured here, with a name, steps and NFE that are stated."""

import math
import textwrap
from pathlib import Path

import pandas as pd

from bench.identity import code_hash, digest
from bench.report.files import is_current, markdown_table, write_atomically
from bench.report.tables import WIDTH, plus_minus
from bench.report.uncertainty import variance

TITLE = "samples that were brought: name, steps and NFE are stated, not measured"
STEPS, NFE = "steps (stated)", "NFE (stated)"
RESULTS = ["name", STEPS, NFE, "samples", "protocol", "resize", "unmet", "content"]


def stated_frame(records: list[dict]) -> pd.DataFrame:
    """One row for each content under one name and protocol: what is stated, what is unmet, every column and its `_se`.

    Each reference is a column of its own.
    """
    rows: dict[tuple, dict] = {}
    for record in records:
        brought, said = record["brought"], record["stated"]
        unmet = "; ".join(brought["unmet"])
        key = (
            record["student"],
            said["steps"],
            said["nfe"],
            brought["hash"],
            record["protocol"],
            brought["resize"],
            unmet,
        )
        row = rows.setdefault(
            key,
            {
                "name": record["student"],
                STEPS: said["steps"],
                NFE: said["nfe"],
                "samples": record["samples"],
                "protocol": record["protocol"],
                "resize": brought["resize"],
                "unmet": unmet,
                "content": brought["hash"][:16],
            },
        )
        for column, value in record["metrics"].items():
            left_out = record["jackknife"].get(column)
            row |= {column: value, f"{column}_se": math.sqrt(variance(left_out)) if left_out else math.nan}
    frame = pd.DataFrame(list(rows.values()), columns=None if rows else RESULTS)
    return frame.sort_values([NFE, "name"], kind="stable", na_position="last").reset_index(drop=True)


def metric_names(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame if name not in RESULTS and not name.endswith("_se")]


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The same as text, to print or to write as Markdown."""
    table = frame[["name", STEPS, NFE, "samples", "protocol"]].copy()
    for column in (STEPS, NFE):
        table[column] = table[column].map(lambda value: "not stated" if pd.isna(value) else f"{value:g}")
    for name in metric_names(frame):
        pairs = zip(frame[name], frame[f"{name}_se"], strict=True)
        table[name] = ["" if math.isnan(value) else plus_minus(value, error) for value, error in pairs]
    return table


def notes(frame: pd.DataFrame) -> list[str]:
    """What of its protocol each row does not meet."""
    return [f"{row['name']}: {row['unmet']}" for row in frame.to_dict("records") if row["unmet"]]


def to_text(frame: pd.DataFrame, task: str) -> str:
    lines = [f"{task}: {TITLE}", "", shown(frame).to_string(index=False)]
    return "\n".join(
        [*lines, *(textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="    ") for note in notes(frame))]
    )


def to_markdown(frame: pd.DataFrame) -> list[str]:
    """A section of a leaderboard."""
    table = shown(frame)
    lines = markdown_table(list(table), table.to_numpy().tolist())
    said = [f"- {note}" for note in notes(frame)]
    return [f"## {TITLE[0].upper()}{TITLE[1:]}", "", *lines, "", *said, *([""] if said else [])]


def write_board(lines: list[str], task: str, out_dir: Path) -> Path:
    """Write `out_dir/leaderboards/<task>.md` of a store that has nothing else."""
    path = Path(out_dir) / "leaderboards" / f"{task}.md"
    return write_atomically(path, "\n".join([f"# {task}", "", *lines]).encode())


def write_stated(frame: pd.DataFrame, task: str, folder: Path, better: dict[str, str]) -> list[Path]:
    """Write stated.csv, stated.md and, of rows with a stated NFE, the picture stated.png and stated.svg."""
    text = to_text(frame, task)
    paths = [
        write_atomically(folder / "stated.csv", frame.to_csv(index=False, lineterminator="\n").encode()),
        write_atomically(folder / "stated.md", f"# {task}\n\n```\n{text}\n```\n".encode()),
    ]
    for name in metric_names(frame):
        drawn = frame[frame[NFE].notna() & frame[name].notna()]
        direction = better.get(name.partition("_to_")[0])
        if drawn.empty or direction is None:
            continue
        inputs = digest({"code": code_hash("bench.report.stated_plot"), "rows": drawn.to_csv(), "metric": name})
        pictures = [folder / f"stated{suffix}" for suffix in (".png", ".svg")]
        if not all(is_current(path, inputs) for path in pictures):
            from bench.report.canvas import render
            from bench.report.stated_plot import against_stated

            figure = against_stated(drawn, name, direction, NFE, f"{task}: {name}")
            for path in pictures:
                write_atomically(path, render(figure, path.suffix, inputs))
        return paths + pictures
    return paths
