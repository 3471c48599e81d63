"""What one process has loaded for the cells of a run: teacher, students, extractor, real data's statistics."""

import copy
import functools
from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from bench.conditions import Conditions
from bench.measure import METRICS, TEACHER_SOLVER
from bench.measure.extractors import extractor_identity
from bench.measure.reference import SHARD, cached_statistics
from bench.measure.representations import View, represent
from bench.measure.statistics import FeatureStats, Reference
from bench.plan import REAL, TEACHER, Cell, Setup
from bench.subjects import data_code
from bench.third_party import load_student
from students.data import Dataset, Split, load_data
from students.datafiles import reference_folder
from students.devices import check_device
from students.errors import FewstepError, one_line
from students.loading import DTYPES
from students.models.load import load_teacher
from students.models.teacher import Teacher
from students.spec import OBJECT, parse


@functools.lru_cache(maxsize=1)
def context_of(setup: Setup) -> "Context":
    """The context of this process, made when it is first asked for."""
    return Context(setup)


class Context:
    """Loads each thing when it is first needed, and once. Raises FewstepError for a device that is not there."""

    def __init__(self, setup: Setup):
        self.setup, self.task = setup, setup.task
        self.device = check_device(setup.device)
        self._setup_rows: dict[tuple, float] = {}
        self._students: dict[str, object] = {}

    @cached_property
    def extractor(self):
        """Of images, the task's; None for vectors."""
        if self.task.kind == "vector":
            return None
        from bench.measure.features import load_extractor

        return load_extractor(self.task.extractor, self.device)  # type: ignore[arg-type]

    @cached_property
    def teacher(self) -> Teacher:
        teacher = load_teacher(self.task.teacher, device=self.device, dtype=DTYPES[self.setup.dtype])
        self._check_fits(f"teacher {self.task.teacher!r}", teacher, "take another teacher")
        return teacher

    @cached_property
    def trajectories(self):
        """The teacher's sampler that faithfulness compares with, loaded apart so that no student's NFE counts it."""
        spec, teacher = f"{TEACHER_SOLVER}:grid={self.task.grid}", load_teacher(self.task.teacher, device=self.device)
        return load_student(spec, self.task, teacher, self.device)

    def student(self, spec: str):
        """A student by spec, on the task's teacher; a third party's on a copy, as it may change what it is given."""
        if spec not in self._students:
            parsed = parse(spec)
            teacher = None if parsed.model else self.teacher
            if parsed.kind == OBJECT:
                teacher = copy.deepcopy(teacher)
            student = load_student(spec, self.task, teacher, self.device, self.setup.dtype)
            if parsed.model:
                self._check_fits(spec, student, "take another task")
            self._students[spec] = student
        return self._students[spec]

    def _check_fits(self, name: str, found, advice: str) -> None:
        made, asked = (tuple(found.shape), getattr(found, "classes", None)), (self.task.shape, self.task.classes)
        if made != asked:
            raise FewstepError(f"{name} has (shape, classes) {made}, the task asks for {asked}: {advice}")

    def data(self) -> Dataset:
        """The task's data, loaded when called and kept by nobody: once there are statistics of it, only memory."""
        data = load_data(self.task.data)
        if tuple(data.train.samples.shape[1:]) != self.task.shape:
            raise FewstepError(f"data {self.task.data!r} has shape {tuple(data.train.samples.shape[1:])}, "
                               f"task {self.task.name!r} says {self.task.shape}")  # fmt: skip
        if self.task.classes not in (None, data.classes):
            raise FewstepError(f"data {self.task.data!r} has {data.classes or 'no'} classes, "
                               f"task {self.task.name!r} says {self.task.classes}")  # fmt: skip
        return data

    @property
    def reference(self) -> Reference:
        """What samples are compared with."""
        return self._of_data[0]

    def conditions(self, seeds: range, block: range) -> Tensor | None:
        """The class that each seed of a block is asked to show; None where the task has none."""
        return None if self._of_data[1] is None else self._of_data[1](seeds, block).to(self.device)

    def classes_of(self, cell: Cell) -> Tensor | None:
        """The classes of all samples of a cell, in their order."""
        if cell.student == REAL:
            labels = self.data().heldout.labels
            return None if labels is None else labels[: self.task.samples]
        return self.conditions(cell.block, cell.block)

    @cached_property
    def _of_data(self) -> tuple[Reference, Conditions | None]:
        """The reference, and what samples are to show, from one reading of the data."""
        data, with_heldout = self.data(), any(METRICS[name].heldout for name in self.kept_for())
        reference = Reference(
            train=self._real_statistics("train", data.train),
            heldout=self._real_statistics("heldout", data.heldout) if with_heldout else {},
            mixture=data.mixture,
            device=self.device,
        )
        if self.task.classes is None:
            return reference, None
        return reference, Conditions(torch.ones(self.task.classes) if data.prior is None else data.prior)

    def kept_for(self) -> set[str]:
        """The metrics that statistics are kept for: those asked for, and the task's that the extractor can serve."""
        names = {*self.task.metrics, *self.setup.metrics}
        return {name for name in names if not _needs_classes(name) or self.extractor.has_classes}

    def collectors(self) -> dict[str, FeatureStats]:
        """Empty statistics of every representation needed; rows are kept only where a metric needs rows."""
        needs: dict[str, bool] = {}
        for name in sorted(self.kept_for()):
            for representation, form in METRICS[name].needs.items():
                needs[representation] = needs.get(representation, False) or form == "rows"
        return {representation: FeatureStats(keep_rows=rows) for representation, rows in needs.items()}

    def rows(self, samples: Tensor, conditions: Tensor | None = None, teachers=None) -> dict[str, Tensor]:
        """A batch of samples in every representation needed (see View)."""
        return represent(View(samples, self.task, self.extractor, conditions, teachers), self.collectors())

    def statistics_of(self, split: Split) -> dict[str, FeatureStats]:
        """Statistics of real samples."""
        statistics = self.collectors()
        for start in range(0, len(split.samples), self.task.batch_size):
            for name, rows in self._split_rows(split, slice(start, start + self.task.batch_size)).items():
                statistics[name].update(rows)
        return statistics

    def _split_rows(self, split: Split, part: slice) -> dict[str, Tensor]:
        labels = None if split.labels is None else split.labels[part]
        return self.rows(split.samples[part].to(self.device), labels)

    def _real_statistics(self, half: str, split: Split) -> dict[str, FeatureStats]:
        """Statistics of a half of the data; of a large set of images computed once and kept in the user's cache."""
        if self.task.kind == "vector" or len(split.samples) <= SHARD:
            return self.statistics_of(split)
        key = {"data": self.task.data, "half": half, "code": data_code(self.task.data)}
        return cached_statistics(
            reference_folder(),
            key | {"extractor": extractor_identity(self.task.extractor)},  # type: ignore[arg-type]
            len(split.samples),
            self.task.batch_size,
            lambda start, stop: self._split_rows(split, slice(start, stop)),
            self.collectors,
            f"reference statistics of {self.task.data} ({half})",
        )

    def once(self, cell, rows: int) -> float:
        """Network evaluations that set a student up for the steps and guidance of a cell.

        Only the first cell of a process spends them, so they are remembered: every cell says the same.
        """
        key = cell.student, cell.steps, cell.guidance
        self._setup_rows[key] = max(float(rows), self._setup_rows.get(key, 0.0))
        return self._setup_rows[key]

    def check_device_is_alive(self, reason: str) -> None:
        """Raise FewstepError if the device no longer computes: then it is not the cell that failed."""
        try:
            torch.zeros(1, device=self.device).add(1).item()
        except RuntimeError as error:
            raise FewstepError(
                f"device {self.device} was lost ({reason}): finished cells are kept; "
                "when it is back, the same command goes on from them"
            ) from error

    def prepare(self, specs: Iterable[str]) -> None:
        """Load students, data and extractor, so that what is wrong with them shows before the first cell."""
        for spec in specs:
            if spec not in (REAL, TEACHER):
                self.student(spec)
        asked = [name for name in self.setup.metrics if _needs_classes(name)]
        if asked and not self.extractor.has_classes:
            raise FewstepError(f"extractor {self.task.extractor!r} has no classes: leave {' and '.join(asked)} out")
        try:
            self.reference  # noqa: B018
        except (FewstepError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if ":" not in (self.task.extractor or ""):
                raise
            raise FewstepError(f"extractor {self.task.extractor!r} failed: {one_line(error)}") from error


def _needs_classes(metric: str) -> bool:
    return not METRICS[metric].needs.keys().isdisjoint(("logits", "agreement"))
