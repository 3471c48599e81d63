"""Running a study (bench/studies.py): each variant is trained in full, and measured on the task's first block.

The table goes to reports/<task>/<study>.csv, with a figure beside it where the study has one; weights to run/trials.
Trainings that the table has are not made again, and one that was interrupted is continued.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from bench.context import Context
from bench.measure import metric_columns
from bench.plan import Setup
from bench.report.canvas import render
from bench.report.files import write_atomically
from bench.report.studies import convergence, panels
from bench.studies import CONVERGENCE, PANELS, STUDIES, Variant
from bench.tasks import Task
from bench.trials import append, checked, known, trained, trial_weights, trials_folder
from bench.tune import measured
from students.data import load_data
from students.errors import FewstepError, unknown
from students.samplers.load import load_trained
from students.samplers.record import read_records, weights_files
from students.training.checkpoint import check_folder

MEASURED = {"image": ("fd", "prc", "coverage"), "vector": ("swd", "modes")}
KEY = ["variant", "seed"]
SHOWN = 2000  # samples in a panel


def study(name: str, task: Task, device: str = "cpu") -> list[Path]:
    """Make the trainings of a study that its table does not have yet; returns the paths of what was written.

    A row: variant, seed, evaluations relative to the teacher's training, seconds, and the metrics of MEASURED in one
    step. Raises FewstepError for an unknown study, a task that no method is trained on, and panels of images.
    """
    if name not in STUDIES:
        raise unknown("study", name, list(STUDIES))
    plan = STUDIES[name]
    if plan.figure == PANELS and task.kind != "vector":
        raise FewstepError(f"study {name} draws samples in the plane: take gaussians, not {task.name}")
    checked(task, [variant.method for variant in plan.variants], ())
    metrics = MEASURED[task.kind]
    context = Context(Setup(replace(task, metrics=metrics), metrics, device))
    path, curves = _path(task, name), _path(task, name, "-curves")
    for folder in (path.parent, trials_folder(task)):
        check_folder(folder, "working folder")
    columns = [column for metric in metrics for column in metric_columns(metric, task.extractor)]
    context.prepare(())
    runs = [(variant, seed) for variant in plan.variants for seed in range(plan.seeds)]
    for variant, seed in tqdm(runs, unit="training"):
        if (variant.label, seed) in known(path, KEY):
            continue
        trial = _trial(name, variant, seed)
        student = trained(context, variant.method, trial, seed=seed, options=variant.options, settings=variant.settings)
        found, _ = measured(context, student, 1, range(task.samples))
        key, cost = dict(zip(KEY, (variant.label, seed), strict=True)), student.training  # type: ignore[attr-defined]
        if plan.figure == CONVERGENCE:
            rows = _curve(trial_weights(task, variant.method, trial), variant.method, task.teacher)
            append(curves, *(key | row for row in rows))
        costs = {column: cost[column] for column in ("relative", "seconds")}
        append(path, key | costs | {column: found.get(column) for column in columns})
    written = [path]
    if plan.figure:
        figure = DRAWN[plan.figure](task, name, pd.read_csv(path))
        written.append(write_atomically(path.with_suffix(".png"), render(figure, ".png", name)))
    return written


def _path(task: Task, study: str, part: str = "") -> Path:
    return Path("reports", task.name, f"{study}{part}.csv")


def _trial(study: str, variant: Variant, seed: int) -> str:
    words = "".join(c if c.isalnum() else " " for c in variant.label).split()
    return "-".join([study, *words, str(seed)])


def _curve(weights: Path, method: str, teacher: str) -> list[dict[str, float]]:
    """The quality curve of a training of one stage, by updates of the student."""
    (record,) = read_records(weights_files(weights, method, teacher), method, teacher).values()
    batch = record["settings"]["batch_size"]
    return [{"updates": images / batch, "energy_distance": value} for images, _, value in record["quality_curve"]]


def _panels(task: Task, name: str, table: pd.DataFrame) -> Figure:
    samples, notes = {}, {}
    for variant in STUDIES[name].variants:
        weights = trial_weights(task, variant.method, _trial(name, variant, 0))
        if not weights.is_dir():
            raise FewstepError(f"{weights} is missing: remove {_path(task, name)} to train all variants again")
        student = load_trained(variant.method, task.teacher, weights)
        samples[variant.label] = student.sample(1, seeds=range(SHOWN)).numpy()
        row = table.set_index(KEY).loc[(variant.label, 0)]
        notes[variant.label] = f"{row['mode_coverage']:.0%} of the modes; distance {row['swd']:.3f}"
    return panels(samples, load_data(task.data).train.samples[:SHOWN].numpy(), notes)


def _convergence(task: Task, name: str, table: pd.DataFrame) -> Figure:
    path = _path(task, name, "-curves")
    if not path.is_file():
        raise FewstepError(f"{path} is missing: remove {_path(task, name)} to train all variants again")
    curves = pd.read_csv(path)
    # a training that was stopped before its row was written is there twice
    return convergence(curves.drop_duplicates([*KEY, "updates"], keep="last"))


DRAWN = {PANELS: _panels, CONVERGENCE: _convergence}
