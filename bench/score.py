"""Scoring samples that somebody brings: a cell like any other, whose name, steps and NFE are stated and not measured.

What is measured here are the images: by a task's protocol or a named one, against the task's data or a file of
reference statistics. What the protocol asks for and the images do not meet is said, recorded, and shown in every table.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.brought import BroughtContext, file_reference
from bench.images import FileImages, Images, Rule, open_images
from bench.measure import METRICS, metric_columns
from bench.measure.extractors import extractor_identity
from bench.measure.references import ReferenceFile, find_reference, reference_of
from bench.plan import Cell, Setup, check_metrics, resolve_extractor
from bench.protocols import FILTERS, Protocol, load_protocol, of_task
from bench.record import Outcome, make_outcome
from bench.shard import Shard
from bench.store import OK, STATED, Store
from bench.subjects import data_code
from bench.tasks import Task
from students.errors import FewstepError, unknown

KEPT = 16  # images of a cell
MOST = 10**9  # steps or NFE that can be stated
OF_SAMPLES = ("is", "vendi")  # what is known of samples alone
OF_MOMENTS = (*OF_SAMPLES, "fd")
OF_IMAGES = (*OF_MOMENTS, "kid", "prc", "coverage")
OF_STUDENTS = {"faithfulness", "agreement"}  # what compares with noise or with classes that were asked for
MEASURED_OF_STUDENTS = ("nfe", "setup_nfe", "peak_memory_mb", "latency")


@dataclass(frozen=True)
class Stated:
    """What whoever brings samples says of them; steps and nfe are None where nothing is said."""

    name: str
    steps: int | None = None
    nfe: float | None = None

    def __post_init__(self):
        if not self.name.strip():
            raise FewstepError("--name must not be empty")
        if not self.name.isprintable():
            raise FewstepError("--name must be one line of printable characters: state another")
        for key in ("steps", "nfe"):
            value = getattr(self, key)
            if value is not None and value > MOST:
                raise FewstepError(f"--{key} must be a number up to {MOST:,}")
            if value is not None and not value > 0:
                raise FewstepError(f"--{key} must be above 0, got {value:g}")


@dataclass(frozen=True)
class Asked:
    """The options of `score`; None and () leave a choice to the protocol."""

    protocol: str | None = None
    reference: str | None = None
    extractor: str | None = None
    metrics: tuple[str, ...] = ()
    resize: str | None = None
    limits: tuple[float, float] | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Subject:
    """What is scored: images, by which task with the protocol's extractor and rounding, against what."""

    task: Task
    protocol: Protocol
    reference: ReferenceFile | None
    metrics: tuple[str, ...]
    images: Images

    def identity(self, name: str) -> dict:
        """All that the numbers depend on, and the name."""
        task, reference, content = self.task, self.reference, self.images.content
        data = {"data": task.data, "code": data_code(task.data)} if reference is None else None
        return {
            "task": task.name,
            "version": task.version,
            "shape": list(task.shape),
            "student": {"brought": content.hash, "samples": content.count, "name": name},
            "protocol": {key: value for key, value in self.protocol.recorded().items() if key != "metrics"},
            "resize": self.images.rule.filter,
            "reference": data or {"file": reference.sha256, "name": reference.name},  # type: ignore[union-attr]
            "extractor": extractor_identity(task.extractor),  # type: ignore[arg-type]
        }

    def unmet(self) -> list[str]:
        """In words, what the protocol asks for and is not so."""
        protocol, count = self.protocol, self.images.content.count
        by, lines = f"where protocol {protocol.name} asks for", []
        if count != protocol.samples:
            effect = "distances of fewer images are larger" if count < protocol.samples else "all of them are measured"
            lines.append(f"{count} images, {by} {protocol.samples}: {effect}")
        if self.task.extractor != protocol.extractor:
            lines.append(f"extractor {self.task.extractor}, {by} {protocol.extractor}")
        if self.images.rule.filter != protocol.resize:
            lines.append(f"resize {self.images.rule.filter}, {by} {protocol.resize}")
        if self.reference and protocol.references and self.reference.name not in protocol.references:
            lines.append(f"reference {self.reference.name}, which is none of protocol {protocol.name}'s")
        return lines

    def recorded(self) -> dict:
        """What a cell keeps of it."""
        return {
            "path": str(self.images.path),
            "hash": self.images.content.hash,
            "protocol": self.protocol.recorded(),
            "unmet": self.unmet(),
            "resize": self.images.rule.filter,
            "reference": self.reference.recorded() if self.reference else None,
        }


def score(task: Task, path: Path, stated: Stated, store: Store, asked: Asked) -> dict:
    """The record of the cell of these images, computed unless the store has it; what is stated is renewed.

    Raises FewstepError before long work for images, a protocol, a reference or metrics at fault.
    """
    subject = _subject(task, path, asked)
    steps_and_nfe = {"steps": stated.steps, "nfe": stated.nfe}
    said: dict[str, Any] = {"steps": stated.steps, "stated": steps_and_nfe, "brought": subject.recorded()}
    said["content"] = subject.images.content.hash
    for line in [*_left_out(subject.images), *subject.unmet()]:
        print(f"note: {line}", file=sys.stderr)
    cell = Cell(stated.name, stated.steps or 0, 1.0, 0, subject.identity(stated.name))
    store.open()
    with store.claim(cell.id) as mine:
        if not mine:
            raise FewstepError("another process is scoring the same images: wait for it")
        record = store.load(cell.id)
        if record is not None and _is_finished(record, subject.metrics):
            record |= said
            store.update(record)
            return record
        known = record["metric_code"] if record else ()
        outcome = _measure(subject, cell, tuple(dict.fromkeys([*subject.metrics, *known])), asked.device)
        record = _as_stated(outcome.record, subject) | said
        store.save(record, outcome.files)
    return record


def _subject(task: Task, path: Path, asked: Asked) -> Subject:
    if task.kind != "image":
        raise FewstepError(f"task {task.name!r} has no images: score takes images")
    protocol = load_protocol(asked.protocol) if asked.protocol else of_task(task)
    task = _by_protocol(task, protocol, asked)
    name = asked.reference or reference_of(protocol, task.data)
    reference = find_reference(name) if name else None
    if reference is not None:
        reference.check(task.extractor)  # type: ignore[arg-type]
    metrics = _metrics(task, protocol, asked.metrics, reference)
    images = open_images(path, _rule(task, protocol, asked))
    if (shape := images.content.shape) != task.shape:
        raise FewstepError(
            f"the images of {path} are {_size(shape)}, those of task {task.name} {_size(task.shape)}: "
            "resize them with --resize bicubic, or take another task"
        )
    return Subject(task, protocol, reference, metrics, images)


def _measure(subject: Subject, cell: Cell, metrics: tuple[str, ...], device: str) -> Outcome:
    """The cell with these metrics; what is kept of the images is as for students, so that standard errors are too."""
    count = subject.images.content.count
    kept = tuple(name for name in dict.fromkeys([*metrics, *subject.task.metrics]) if name in _of_images())
    task = replace(subject.task, samples=count, metrics=kept, primary=metrics[0], classes=None)
    setup = Setup(task, metrics, device)
    context = BroughtContext(setup, file_reference(subject.reference, setup) if subject.reference else None)
    context.prepare([])
    return make_outcome(context, cell, _shard(context, subject.images))


def _by_protocol(task: Task, protocol: Protocol, asked: Asked) -> Task:
    """The task with the protocol's rounding and extractor, or the extractor asked for."""
    named = asked.protocol is not None  # then no other extractor takes its place unasked
    task = replace(
        task,
        extractor=protocol.extractor,
        extractor_otherwise=None if named else task.extractor_otherwise,
        rounding=protocol.rounding,
    )
    return resolve_extractor(task, asked.extractor)


def _metrics(
    task: Task, protocol: Protocol, asked: tuple[str, ...], reference: ReferenceFile | None
) -> tuple[str, ...]:
    """The metrics asked for; else those of the protocol that brought images and the reference allow."""
    check_metrics(task, asked)
    able = _of_images()
    why = "images that are brought have neither noise nor classes that were asked for"
    if reference is not None:
        able &= {*(OF_IMAGES if reference.has_images else OF_MOMENTS)}
        why = f"reference {reference.name} holds {'moments and images' if reference.has_images else 'moments alone'}"
    if refused := [name for name in asked if name not in able]:
        raise FewstepError(f"metrics {' and '.join(refused)} cannot be had, because {why}: leave them out")
    if not (metrics := asked or tuple(name for name in protocol.metrics if name in able)):
        raise FewstepError(f"none of {', '.join(protocol.metrics)} can be had, because {why}: name some with --metrics")
    return metrics


def _of_images() -> set[str]:
    return {name for name in METRICS if METRICS[name].kind == "image" and not OF_STUDENTS & METRICS[name].needs.keys()}


def _rule(task: Task, protocol: Protocol, asked: Asked) -> Rule:
    by = asked.resize or protocol.resize
    if by not in FILTERS:
        raise unknown("filter", by, FILTERS)
    if by != "none" and task.shape[1] != task.shape[2]:
        raise FewstepError(f"task {task.name} has no square images, and only these are resized: leave --resize out")
    size = None if by == "none" else task.shape[1]
    return Rule(task.shape[0], size, by, asked.limits, task.rounding)


def _left_out(images: Images) -> list[str]:
    count = images.left_out if isinstance(images, FileImages) else 0
    return [f"{count} files of {images.path} are no images by their names, and are left out"] if count else []


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]} of {shape[0]} channel{'s' * (shape[0] > 1)}"


def _is_finished(record: dict, metrics: tuple[str, ...]) -> bool:
    codes = record["metric_code"]
    return record["status"] == OK and all(codes.get(name) == METRICS[name].code() for name in metrics)


def _shard(context: BroughtContext, images: Images) -> Shard:
    """What is known of the images, batch by batch."""
    statistics, kept, count = context.collectors(), None, images.content.count
    with tqdm(total=count, desc="scoring", unit="image", leave=False) as bar:
        for batch in images.batches(context.task.batch_size):
            kept = batch[:KEPT].numpy() if kept is None else kept
            for name, rows in context.rows(batch.to(context.device)).items():
                statistics[name].update(rows)
            bar.update(len(batch))
    return Shard(range(count), count, statistics, kept=np.asarray(kept))


def _as_stated(record: dict, subject: Subject) -> dict:
    """A record without what is measured of students only, its columns named by the reference."""
    reference, images = subject.reference, subject.images
    record = {key: value for key, value in record.items() if key not in MEASURED_OF_STUDENTS}
    if reference is not None:
        extractor = record["extractor"]
        alone = {column for name in OF_SAMPLES for column in metric_columns(name, extractor)}
        for part in ("metrics", "jackknife"):
            record[part] = {
                key if key in alone else reference.column(key): value for key, value in record[part].items()
            }
    return record | {
        "family": STATED,
        "dtype": None,
        "guidance": None,
        "rounding": images.rule.rounding if images.floats else None,
        "protocol": subject.protocol.name,
        "reference": reference.name if reference else None,
    }
