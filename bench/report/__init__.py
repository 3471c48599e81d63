"""Tables, plots, sample grids and leaderboards, from the store alone: no network runs here.

The files of this package are functions of a DataFrame of cells (bench/store.py `frame`); the three functions
below give them the cells of a task. Importing the package imports nothing heavy.
"""

from dataclasses import replace
from pathlib import Path

from bench.measure import METRICS, metric_columns
from bench.plan import REAL
from bench.report.files import safe_name
from bench.store import STATED, Store, frame, latest
from bench.tasks import Task
from students.errors import FewstepError


def print_table(records: list[dict], task: Task, store: Store) -> None:
    """Print students x steps for the given cells, and what their training or grids cost.

    That is compared with every solver that the store has cells of.
    """
    from bench.report.costs import training_text
    from bench.report.quality import to_text

    cells, metric = _cells(records, task, store)
    everything, _ = _cells(store.cells(), task, store)
    compared = everything[everything["student"].isin(cells["student"]) | (everything["family"] == "solver")]
    names = set(cells["student"])
    texts = [to_text(cells, metric, directions(task)), training_text(compared, metric, directions(task), names)]
    print("\n\n".join(filter(None, texts)))


def write(task: Task, store: Store, out: Path, folder: str) -> list[Path]:
    """Write `out/reports/<folder>`, and what there is of samples that were brought; returns the paths."""
    from bench.report.report import write_report

    records = store.cells()
    brought = write_stated(task, records, out)
    if brought and not _has_students(records):
        return brought
    cells, metric = _cells(records, task, store)
    return brought + write_report(cells, folder, metric, directions(task), out)


def stated_text(task: Task, records: list[dict]) -> str:
    """The table of samples that were brought, ready to print."""
    from bench.report import stated

    return stated.to_text(stated.stated_frame(_brought(task, records)), task.name)


def write_stated(task: Task, records: list[dict], out: Path) -> list[Path]:
    """Write the table and the picture of samples that were brought, if there are any, into `out/reports/<task>`."""
    if not (records := _brought(task, records)):
        return []
    from bench.report import stated

    better = {name: way for record in records for name, way in _directions(task, record["extractor"]).items()}
    return stated.write_stated(stated.stated_frame(records), task.name, Path(out) / "reports" / task.name, better)


def _brought(task: Task, records: list[dict]) -> list[dict]:
    """Of the task's version, the latest record of each."""
    return [each for each in latest(records) if each.get("family") == STATED and each["version"] == task.version]


def _has_students(records: list[dict]) -> bool:
    return any(record["student"] != REAL and record.get("family") != STATED for record in records)


def write_leaderboard(task: Task, store: Store, out: Path) -> list[Path]:
    """Write `out/leaderboards/<task>.md` with a part for each of the task's `variants`, and its tables in README.md
    and docs.

    Returns the paths of what was written.
    """
    from bench.report import leaderboard, readme, stated

    records = store.cells()
    brought = _brought(task, records)
    below = stated.to_markdown(stated.stated_frame(brought)) if brought else []
    if brought and not _has_students(records):
        return [stated.write_board(below, task.name, out)]
    parts = []
    for variant in variants(task, records):
        reference = "exact moments and samples" if variant.extractor is None else "training half"
        about = {
            "reference": f"{reference} of `{variant.data}`",
            "extractor": f"`{variant.extractor}`" if variant.extractor else "none",
        }
        if variant != task:
            about["not the task's protocol"] = f"which has {task.samples} samples, extractor `{task.extractor}`"
        cells, metric = _cells(records, variant, store)
        parts.append((cells, metric, directions(variant), about))
    cells, metric, better, _ = parts[0]
    board = leaderboard.write_leaderboard(parts, out, below)
    return [board, *readme.update_all(Path(out), cells, task.name, metric, better)]


def variants(task: Task, records: list[dict]) -> list[Task]:
    """The task with each (extractor, samples) that students' cells are of, most samples first.

    Only the task as it is, if there are cells of that.
    """
    found = {
        (record["extractor"], record["samples"])
        for record in records
        if record["student"] != REAL and record["version"] == task.version and "extractor" in record
        if record.get("family") != STATED
    }
    if (task.extractor, task.samples) in found or not found:
        return [task]
    ordered = sorted(found, key=lambda key: (-key[1], key[0] or ""))
    return [replace(task, extractor=extractor, samples=samples) for extractor, samples in ordered]


def variant_folder(task: Task, default: Task) -> str:
    """`cifar10`, or `cifar10/inception768-1000-samples`: what differs from the task as its file says."""
    parts = [task.extractor] if task.extractor != default.extractor else []
    parts += [f"{task.samples}-samples"] if task.samples != default.samples else []
    return f"{task.name}/{safe_name('-'.join(parts))}" if parts else task.name  # type: ignore[arg-type]


def directions(task: Task) -> dict[str, str]:
    """For every quality column of the task's kind: is "lower" or "higher" better?"""
    return _directions(task, task.extractor)


def _directions(task: Task, extractor: str | None) -> dict[str, str]:
    flipped = {"lower": "higher", "higher": "lower"}
    return {
        column: flipped[metric.better] if template in metric.opposite else metric.better
        for name, metric in METRICS.items()
        if metric.kind == task.kind
        for template, column in zip(metric.columns, metric_columns(name, extractor), strict=True)
    }


def _cells(records: list[dict], task: Task, store: Store):
    """The cells of the task's version and sample count, and the column to rank by: its primary, if measured."""
    protocol = [
        record
        for record in records
        if (record["version"], record.get("extractor")) == (task.version, task.extractor)
        and record.get("family") != STATED
        and (record["student"] == REAL or record["samples"] == task.samples)
    ]
    if all(record["student"] == REAL for record in protocol):
        raise FewstepError(
            f"{store.folder} has no cells of {task.name} version {task.version} with {task.samples} samples: "
            f"python -m bench run {task.name} makes them"
        )
    cells = frame(latest(protocol), store)
    primary = metric_columns(task.primary, task.extractor)[0]
    measured = [name for name in (primary, *directions(task)) if name in cells and cells[name].notna().any()]
    metric = measured[0] if measured else primary
    return (cells if metric in cells else cells.assign(**{metric: float("nan")})), metric
