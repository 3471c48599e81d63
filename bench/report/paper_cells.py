"""What measures a row of a paper's table here: cells of the store that meet the protocol, or why there are none."""

from collections import defaultdict
from pathlib import Path

import pandas as pd

from bench.measure import METRICS, metric_columns
from bench.papers import Ours, Protocol
from bench.plan import REAL
from bench.published import Published
from bench.report.paper_reasons import NO_LOADER, Measured, asked, lacking_weights
from bench.report.uncertainty import Estimate, estimate
from bench.store import OK, STATED, Store, latest
from bench.tasks import Task
from students.errors import FewstepError, WeightsError
from students.samplers.record import weights_files
from students.spec import TRAINED, parse

# Of columns of published.csv the metric and which of its numbers; FID stands for the task's primary one.
QUALITY = {
    "inception_score": ("is", 0),
    "precision": ("prc", 0),
    "recall": ("prc", 1),
}
MEASURABLE = ("fid", *QUALITY)


def column(task: Task, extractor: str | None, metric: str) -> str | None:
    """The column of cells that stands for a column of published figures; None if the task has none."""
    name, index = QUALITY.get(metric, (task.primary, 0))
    if metric not in MEASURABLE or METRICS[name].kind != task.kind:
        return None
    return metric_columns(name, extractor)[index]


class Bench:
    """What is known here of one task under one protocol. best_of: a number is the minimum over so many seed blocks."""

    def __init__(self, task: Task, protocol: Protocol, out: Path, best_of: int = 1):
        self.task, self.protocol, self.out, self.best_of = task, protocol, out, best_of
        self._cells: dict[str, list[dict]] = defaultdict(list)
        for record in latest(Store(out, task.name).cells()):
            if record["student"] != REAL and record.get("family") != STATED:
                self._cells[record["student"]].append(record)

    def column(self, metric: str) -> str | None:
        return column(self.task, self.protocol.extractor, metric)

    def measured(self, ours: Ours, row: Published, metrics: tuple[str, ...], own: bool) -> dict[str, Measured]:
        """By metric what measures a row, in the same words for all where nothing does.

        own: whether the task is the row's benchmark. There a solver counts only on the paper's own network, and
        guidance is the paper's.
        """
        if ours.study and (found := self._studied(ours, metrics)):
            unmet = self._unmet([self._as_studied()], row if own else None)
            return dict.fromkeys(metrics, _other(unmet)) if unmet else found
        spec, lacking = self._spec(ours, row, own)
        if spec is None:
            return dict.fromkeys(metrics, Measured(reason=lacking))
        cells = self._at(self._cells[spec], row, ours)
        if not cells:
            return dict.fromkeys(metrics, Measured(missing=(self.task.name, spec, *asked(row, ours), lacking)))
        group, unmet = self._group(cells, row, own)
        if unmet:
            return dict.fromkeys(metrics, _other(unmet))
        return {metric: self._number(group, metric) for metric in metrics}

    def curve(self, spec: str) -> list[tuple[float, Estimate]]:
        """(NFE, the primary metric) of a student's cells that meet the protocol, fewest evaluations first."""
        name, points = metric_columns(self.task.primary, self.protocol.extractor)[0], []
        by_steps = defaultdict(list)
        for record in self._cells[spec]:
            by_steps[record["steps"]].append(record)
        for cells in by_steps.values():
            group, unmet = self._group(cells, None, own=False)
            if not unmet and group[0]["status"] == OK and name in group[0]["metrics"]:
                points.append((group[0]["nfe"], _estimate(group, name)))
        return sorted(points, key=lambda point: point[0])

    def _studied(self, ours: Ours, metrics: tuple[str, ...]) -> dict[str, Measured] | None:
        """What a study's table has of its variant; None if it has nothing."""
        path = self.out / "reports" / self.task.name / f"{ours.study}.csv"
        if not path.is_file():
            return None
        try:
            rows = pd.read_csv(path)[lambda table: table["variant"] == ours.variant]
        except (KeyError, ValueError) as error:  # pandas' own errors are ValueErrors
            raise FewstepError(f"{path} is no table of a study: move it away") from error
        if rows.empty:
            return None
        found = {}
        for metric in metrics:
            column = self.column(metric)
            values = list(rows[column].dropna()) if column in rows else []
            if values:
                known = estimate(values, [None] * len(values))
                trainings = "one training" if len(values) == 1 else f"{len(values)} trainings"
                found[metric] = Measured(known.value, known.margin, f"study {ours.study}, {trainings}")
            else:
                found[metric] = Measured(reason=f"study {ours.study} does not measure it")
        return found

    def _as_studied(self) -> dict:
        """What a cell would say of the protocol that a study of the task has, which is the task's."""
        task = self.task
        fields = {"version": task.version, "samples": task.samples, "rounding": task.rounding, "guidance": 1.0}
        return fields | {"extractor": self.protocol.extractor, "identity": {"reference": {"data": task.data}}}

    def _spec(self, ours: Ours, row: Published, own: bool) -> tuple[str | None, str]:
        """The student that measures a row, with what it lacks to be run; or None, and why there is none."""
        if own and (public := ours.public.get(row.benchmark)):
            return public, lacking_weights(public)
        if ours.student is None:
            study = f"not trained: python -m bench study {ours.study} {self.task.name}"
            return None, study if ours.study else f"needs {ours.needs}" if ours.needs else NO_LOADER
        if not own:
            return ours.student, ""
        if parse(ours.student).kind != TRAINED:
            return None, "needs the network that the paper samples, of which there is no card"
        try:
            weights_files(None, ours.student, self.task.teacher)
        except WeightsError as error:
            return None, str(error)
        return ours.student, ""

    def _at(self, cells: list[dict], row: Published, ours: Ours) -> list[dict]:
        """The cells at the row's steps, else at its NFE as measured, else at `ours.steps`, else at the most steps."""
        if row.steps is not None:
            return [cell for cell in cells if cell["steps"] == row.steps]
        if row.nfe is not None:
            return [
                cell
                for cell in cells
                if (cell["nfe"] if cell["status"] == OK else cell["steps"]) == row.nfe  # what cannot run has no NFE
            ]
        steps = ours.steps or max((cell["steps"] for cell in cells if cell["status"] == OK), default=None)
        return [cell for cell in cells if cell["steps"] == steps]

    def _group(self, cells: list[dict], row: Published | None, own: bool) -> tuple[list[dict], list[str]]:
        """Of the cells those that are comparable with one another and nearest to the protocol, and what is unmet."""
        groups = defaultdict(list)
        for cell in cells:
            alike = ("steps", "version", "samples", "rounding", "extractor", "guidance", "dtype")
            groups[tuple(cell.get(key) for key in alike), _reference(cell)].append(cell)
        ordered = sorted(groups.values(), key=lambda group: group[0]["dtype"] != "float32")
        unmet = [self._unmet(group, row if own else None) for group in ordered]
        nearest = min(range(len(ordered)), key=lambda i: len(unmet[i]))
        return ordered[nearest], unmet[nearest]

    def _unmet(self, group: list[dict], row: Published | None) -> list[str]:
        """`samples 5000, the protocol has 50000`: a field a line. row: the one whose benchmark the task is."""
        first, protocol = group[0], self.protocol
        references = protocol.references.get(row.benchmark) if row else None
        wanted = {
            "task version": (first["version"], [self.task.version]),
            "samples": (first["samples"], [protocol.samples]),
            "rounding": (first.get("rounding"), [protocol.rounding] if protocol.rounding else None),
            "extractor": (first.get("extractor"), [protocol.extractor] if protocol.extractor else None),
            "reference": (_reference(first), references),
            "guidance": (first["guidance"], [(row and row.guidance_scale) or 1.0]),
        }
        found = [
            f"{name} {_word(value)}, the protocol has {' or '.join(map(_word, allowed))}"
            for name, (value, allowed) in wanted.items()
            if allowed is not None and value not in allowed
        ]
        if len(group) < self.best_of:
            found.append(f"seed blocks {len(group)}, the protocol has the best of {self.best_of}")
        return found

    def _number(self, group: list[dict], metric: str) -> Measured:
        first, column = group[0], self.column(metric)
        if bad := next((cell for cell in group if cell["status"] != OK), None):
            return Measured(reason=f"{bad['status']}: {bad['reason']}")
        if column is None:
            return Measured(reason=f"task {self.task.name} does not measure it")
        if any(column not in cell.get("metrics", {}) for cell in group):
            name = QUALITY.get(metric, (self.task.primary, 0))[0]
            reason = next((cell["failures"][name] for cell in group if name in cell.get("failures", {})), "")
            return Measured(reason=reason or f"{column} not measured: run again with --metrics {name}")
        blocks = sorted(group, key=lambda cell: cell["seed_block"])
        if self.best_of > 1:
            blocks = [min(blocks[: self.best_of], key=lambda cell: cell["metrics"][column])]
        known = _estimate(blocks, column)
        nfe = "" if first["nfe"] == first["steps"] else f", NFE {first['nfe']:g}"
        best = f", best of {self.best_of}" if self.best_of > 1 else ""
        steps = f"{first['steps']} step{'s' * (first['steps'] > 1)}"
        return Measured(known.value, known.margin, f"{first['student']}, {steps}{nfe}{best}")


def _other(unmet: list[str]) -> Measured:
    return Measured(reason="other protocol: " + "; ".join(unmet))


def _estimate(cells: list[dict], column: str) -> Estimate:
    left_out = [cell.get("jackknife", {}).get(column) or None for cell in cells]
    return estimate([cell["metrics"][column] for cell in cells], left_out)


def _reference(cell: dict) -> str:
    """What a cell was compared with: what it names, else the training half of its task's data."""
    return cell.get("reference") or f"training images of {cell['identity']['reference']['data']}"


def _word(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
