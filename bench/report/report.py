"""reports/<task>: results.csv, the tables, plots and sample grids. A picture whose inputs are unchanged is kept."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from bench.identity import code_hash, digest
from bench.report.costs import training_text
from bench.report.differences import differences_text
from bench.report.diversity import points
from bench.report.files import is_current, png, safe_name, write_atomically
from bench.report.latencies import latency_text
from bench.report.quality import to_text
from bench.report.tables import (
    PROTOCOL,
    REAL,
    TIMED,
    aggregate,
    protocols,
    without_references,
    write_results,
)

TITLES = {"nfe": "network evaluations", "latency_ms": "latency"}


def write_report(cells: pd.DataFrame, name: str, metric: str, better: dict[str, str], out_dir: Path) -> list[Path]:
    """Write `out_dir/reports/<name>`; returns the paths of its files.

    What another run of the same machine measures again to the last digit lies in the folder itself, what does not in
    its folder `latency`: times and memory. The protocol with the most samples gives quality_nfe, quality_latency and
    diversity; others name in theirs what differs. Latencies of different devices are never in one plot. Raises
    FewstepError if the folder cannot be written.
    """
    folder = Path(out_dir) / "reports" / name
    times = folder / "latency"
    task_name = cells["task"].iloc[0]
    texts = [make(cells, metric, better) for make in (to_text, differences_text, training_text)]
    paths = [
        write_results(cells.drop(columns=TIMED, errors="ignore"), folder / "results.csv"),
        _write_text(folder / "table.md", name, texts),
    ]
    if text := latency_text(cells):
        paths += [write_results(cells, times / "results.csv"), _write_text(times / "table.md", name, [text])]
    groups = protocols(cells)
    for group in groups:
        picture = f"quality_nfe{_suffix(group, groups[0])}"
        paths += _write_plot(group, metric, "nfe", better, folder / picture, task_name)
        picture = f"diversity{_suffix(group, groups[0])}"
        paths += _write_diversity(group, metric, better, folder / picture, task_name)
        for i, (device, rows) in enumerate(_devices(group)):
            picture = f"quality_latency{_suffix(group, groups[0])}{f'-{safe_name(device)}' if i else ''}"
            paths += _write_plot(rows, metric, "latency_ms", better, times / picture, task_name)
    return paths + _write_training(cells, folder / "training", task_name) + _write_grids(cells, folder / "samples")


def _write_text(path: Path, title: str, texts: list[str]) -> Path:
    """A page of tables, as they are printed."""
    text = "\n\n".join(filter(None, texts))
    return write_atomically(path, f"# {title}\n\n```\n{text}\n```\n".encode())


def _suffix(group: pd.DataFrame, main: pd.DataFrame) -> str:
    """What sets a protocol apart from the main one, for a file name: `-200_samples-guidance_2`."""
    words = {"samples": "{}_samples", "guidance": "guidance_{:g}", "dtype": "{}", "rounding": "{}"}
    differing = [
        (words[name], group[name].iloc[0])
        for name in PROTOCOL
        if name in group and group[name].iloc[0] != main[name].iloc[0]
    ]
    return "".join(f"-{word.format(value)}" for word, value in differing)


def _devices(group: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The cells of each device with the floor, the device with the most cells first."""
    real = group["student"] == REAL
    devices = group.loc[~real, "device"].value_counts().index
    return [(device, group[(group["device"] == device) | real]) for device in devices]


def _write_plot(
    cells: pd.DataFrame, metric: str, x: str, better: dict[str, str], path: Path, task_name: str
) -> list[Path]:
    """The PNG and the SVG of one plot; none if no cell has both numbers."""
    if x not in cells or aggregate(without_references(cells)).dropna(subset=[metric, x]).empty:
        return []
    drawn = aggregate(cells)[["student", "steps", "blocks", "status", metric, f"{metric}_se", x, "device"]]
    inputs = digest({"code": code_hash("bench.report.plots"), "rows": drawn.to_csv(), "metric": metric, "x": x})

    def draw():
        from bench.report.plots import quality_against

        return quality_against(cells, metric, x, better, f"{task_name}: {metric} against {TITLES[x]}")

    return _write_figure(path, inputs, draw)


def _write_diversity(
    cells: pd.DataFrame, metric: str, better: dict[str, str], path: Path, task_name: str
) -> list[Path]:
    """The PNG and the SVG of fidelity against diversity; none if no cell has both."""
    drawn = points(cells, metric, better)
    if drawn is None:
        return []
    inputs = digest({"code": code_hash("bench.report.scatter"), "rows": drawn.to_csv(), "metric": metric})

    def draw():
        from bench.report.scatter import fidelity_diversity

        return fidelity_diversity(cells, metric, better, f"{task_name}: fidelity against diversity")

    return _write_figure(path, inputs, draw)


def _write_training(cells: pd.DataFrame, path: Path, task_name: str) -> list[Path]:
    """The PNG and the SVG of the distilled students' training curves; none if no cell has one."""
    if "training_curve" not in cells:
        return []
    known = cells.dropna(subset="training_curve").drop_duplicates("student").sort_values("student")
    curves = {row.student: row.training_curve for row in known.itertuples() if row.training_curve}
    if not curves:
        return []

    def draw():
        from bench.report.plots import training_curves

        return training_curves(curves, f"{task_name}: quality while training")

    return _write_figure(path, digest({"code": code_hash("bench.report.plots"), "curves": repr(curves)}), draw)


def _write_figure(path: Path, inputs: str, draw: Callable) -> list[Path]:
    """A figure as PNG and SVG, drawn only where the files are not of the same inputs."""
    paths = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
    if not all(is_current(file, inputs) for file in paths):
        from bench.report.canvas import render

        figure = draw()
        for file in paths:
            write_atomically(file, render(figure, file.suffix, inputs))
    return paths


def _write_grids(cells: pd.DataFrame, folder: Path) -> list[Path]:
    """One sample grid a student; real samples set the axes of vector tasks.

    A grid is of its samples, not of the cells that hold them: those of another code version are other cells.
    """
    from bench.report.grids import stored_samples

    def content(path: str) -> str:
        samples = stored_samples(path)
        return "" if samples is None else hashlib.sha256(samples.tobytes()).hexdigest()

    paths, code = [], code_hash("bench.report.grids")
    real = cells[(cells["student"] == REAL) & (cells["status"] == "ok")].nlargest(1, "samples")
    drawable = cells[(cells["status"] == "ok") & (cells["seed_block"] == 0)]
    for student, rows in drawable.groupby("student"):
        path = folder / f"{safe_name(student)}.png"
        drawn = pd.concat([rows, real])[["path", "steps", "nfe"]]
        drawn["path"] = drawn["path"].map(content)
        inputs = digest({"code": code, "rows": drawn.to_csv(index=False)})
        if not is_current(path, inputs):
            from bench.report.grids import sample_grid

            picture = sample_grid(rows, stored_samples(real["path"].iloc[0]) if len(real) else None)
            if picture is None:
                continue
            write_atomically(path, png(picture, inputs))
        paths.append(path)
    return paths
