"""Computing cells: from seeds to shards, from shards to a record. No file is touched here.

`prepare`, `teacher_samples`, `compute_shard`, `finish`, `compute_cell` and `remeasure` are what executors run, in any
process, on plain arguments. What a student does wrong comes back as a Failure, which is its cell's; a FewstepError that
is raised ends the sweep.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bench.context import Context, context_of
from bench.draw import Batch, check_samples, check_seeds, draw, sample
from bench.measure import TEACHER_SOLVER, TEACHER_STEPS
from bench.measure.latency import (
    TIMED_BATCHES,
    NetworkClock,
    PeakMemory,
    measure_latency,
    measure_throughput,
    summary,
    synchronise,
)
from bench.measure.representations import to_uint8
from bench.overlap import beside
from bench.plan import REAL, TEACHER, Cell, Setup
from bench.record import Outcome, make_outcome, measured
from bench.shard import Failure, Shard
from bench.store import FAILED, UNSUPPORTED
from students.data import Split
from students.errors import FewstepError, Unsupported, one_line
from students.nfe import count_nfe, networks_of
from students.student import SolverStudent, Student

KEPT_SAMPLES = {"image": 16, "vector": 500}  # of each cell, for the sample grids
LATENCY_CALLS, LATENCY_SECONDS = 5, 0.1


def prepare(setup: Setup, specs: Sequence[str]) -> None:
    """Load what cells need; raises FewstepError for students, data or an extractor at fault."""
    context_of(setup).prepare(specs)


def teacher_samples(setup: Setup, cell: Cell, seeds: range) -> list[np.ndarray] | Failure:
    """The teacher's samples for the seeds, classes and guidance of a cell and, of images, their features."""
    context = context_of(setup)
    return _attempt(context, lambda: _teacher_samples(context, cell, seeds), "the teacher's samples: ")


def compute_shard(setup: Setup, cell: Cell, seeds: range, teachers=None) -> Shard | Failure:
    """Draw some seeds of a cell. teachers: what `teacher_samples` gave for them, None to compare with no teacher."""
    context = context_of(setup)
    if isinstance(teachers, Failure):
        return teachers
    context.reference  # noqa: B018  # what is wrong with it is no cell's fault
    start = time.monotonic()
    if cell.student == REAL:
        found = _attempt(context, lambda: _real_shard(context))
    elif cell.student == TEACHER:
        found = _attempt(context, lambda: _teacher_shard(context, cell, seeds, teachers))
    else:
        found = _attempt(context, lambda: _student_shard(context, cell, seeds, teachers))
    return replace(found, about=_about(context, cell), seconds=time.monotonic() - start)


def finish(setup: Setup, cell: Cell, parts: Sequence[Shard | Failure]) -> Outcome:
    """The record and files of a cell, from its shards in the order of their seeds."""
    context = context_of(setup)
    failed = next((part for part in parts if isinstance(part, Failure)), None)
    if failed is None:
        whole, *others = parts
        for part in others:
            whole.merge(part, KEPT_SAMPLES[setup.task.kind])  # type: ignore[union-attr, arg-type]
    return make_outcome(context, cell, failed or whole)


def compute_cell(setup: Setup, cell: Cell, seeds: range, teachers=None) -> Outcome:
    """`compute_shard` and `finish` in one go, for a cell of one shard."""
    return finish(setup, cell, [compute_shard(setup, cell, seeds, teachers)])


def remeasure(setup: Setup, cell: Cell, record: dict, stored: dict[str, bytes]) -> dict | None:
    """The record with the metrics that it lacked, from its stored statistics; None where these are not enough."""
    return measured(context_of(setup), cell, record, stored)


def _attempt(context: Context, function: Callable, prefix: str = ""):
    """What the function returns; a Failure instead of what it raises, unless it is the device that is gone."""
    try:
        return function()
    except Unsupported as error:
        return Failure(UNSUPPORTED, prefix + str(error))
    except FewstepError as error:
        return Failure(FAILED, prefix + str(error))
    except (Exception, SystemExit) as error:  # a student may be anybody's code
        context.check_device_is_alive(one_line(error))
        return Failure(FAILED, prefix + one_line(error))


def _about(context: Context, cell: Cell) -> dict:
    """What a record says of the student itself: its family, a solver's grid, and what its training or grid cost."""
    if cell.student in (REAL, TEACHER):
        return {"family": cell.student}
    try:
        student = context.student(cell.student)
    except FewstepError:
        return {"family": Student.family}
    training = getattr(student, "training", None)
    about = {"family": getattr(student, "family", Student.family)}
    if about["family"] == SolverStudent.family and isinstance(student, SolverStudent):
        about["grid"] = student.grid_name(cell.steps)
    return about | ({"training": training} if isinstance(training, dict) else {})


def _teacher_samples(context: Context, cell: Cell, seeds: range) -> list[np.ndarray]:
    task, batches = context.task, []
    cell = replace(cell, student=TEACHER_SOLVER, steps=TEACHER_STEPS)
    for batch in _draw(context, context.trajectories, cell, seeds):
        rows = [batch.samples]
        if task.kind == "image":
            rows.append(context.extractor.features(to_uint8(batch.samples, task.rounding))[0])
        batches.append([values.cpu().numpy() for values in rows])
    return [np.concatenate(rows) for rows in zip(*batches, strict=True)]


def _draw(context: Context, student, cell: Cell, seeds: range):
    conditions = context.conditions(seeds, cell.block)
    return draw(student, cell, seeds, conditions, context.task.batch_size, context.device)


def _real_shard(context: Context) -> Shard:
    """The first `samples` held-out samples, or all of them if they are fewer."""
    task, heldout = context.task, context.data().heldout
    chosen = slice(task.samples)
    split = Split(heldout.samples[chosen], None if heldout.labels is None else heldout.labels[chosen])
    n = len(split.samples)
    return Shard(range(n), n, context.statistics_of(split), kept=_kept(context, split.samples))


def _teacher_shard(context: Context, cell: Cell, seeds: range, teachers: list[np.ndarray]) -> Shard:
    """What is known of the teacher's samples, which are there already; what they cost is measured on the first."""
    conditions, rows = context.conditions(seeds, cell.block), [torch.from_numpy(rows) for rows in teachers]
    shard = Shard(seeds, len(seeds), context.collectors(), kept=_kept(context, rows[0]))
    with PeakMemory(context.device) as memory, count_nfe(context.trajectories) as nfe:
        _, shard.latency = _latency(context, context.trajectories, cell, seeds[:1])
    shard.peak_memory_mb = round(memory.peak_mb, 1)
    shard.evaluations = round(nfe.per_image * len(seeds))
    for start in range(0, len(seeds), context.task.batch_size):
        part = slice(start, start + context.task.batch_size)
        near = [values[part] for values in rows]
        shown = None if conditions is None else conditions[part]
        for name, values in context.rows(near[0].to(context.device), shown, near).items():
            shard.statistics[name].update(values)
    return shard


def _kept(context: Context, samples: Tensor) -> np.ndarray:
    """The samples that a cell keeps: images in 8 bits, vectors as float32."""
    samples = samples[: KEPT_SAMPLES[context.task.kind]]
    if context.task.kind == "vector":
        return samples.float().cpu().numpy()
    return (samples if samples.dtype == torch.uint8 else to_uint8(samples, context.task.rounding)).cpu().numpy()


def _student_shard(context: Context, cell: Cell, seeds: range, teachers) -> Shard:
    task, student = context.task, context.student(cell.student)
    if tuple(student.shape) != task.shape:
        raise FewstepError(f"{cell.student} makes {tuple(student.shape)}, the task asks for {task.shape}")
    if hasattr(student, "check"):
        student.check(cell.steps, cell.guidance)
    first = seeds.start == cell.identity["seeds"][0]
    teachers = teachers and [torch.from_numpy(rows) for rows in teachers]
    shard = Shard(seeds, len(seeds), context.collectors())
    images, setup_rows = [], 0
    batches: list[tuple[int, float]] = []
    if first:
        with count_nfe(student) as preparation:
            alone, shard.latency = _latency(context, student, cell, seeds[:1])
        setup_rows += preparation.setup_rows

    def add(batch: Batch) -> None:
        part = slice(batch.seeds.start - seeds.start, batch.seeds.stop - seeds.start)
        near = teachers and [rows[part] for rows in teachers]
        for name, rows in context.rows(batch.samples, batch.conditions, near).items():
            shard.statistics[name].update(rows)

    timed = 1 + TIMED_BATCHES if first else 0
    with PeakMemory(context.device) as memory, beside(add, context.device, timed) as absorb:
        for batch in _draw(context, student, cell, seeds):
            check_samples(batch.samples, len(batch.seeds), task.shape, cell.student)
            if not batches:
                if first:
                    check_seeds(alone, batch.samples, cell.student)
                shard.kept = _kept(context, batch.samples)
            batches.append((len(batch.seeds), batch.seconds))
            shard.evaluations += batch.nfe.rows
            setup_rows += batch.nfe.setup_rows
            if context.setup.save_images:
                images.append(to_uint8(batch.samples, task.rounding).cpu().numpy())
            absorb(batch)
    if first:
        shard.latency |= _throughput(context, student, cell, seeds, batches)
    shard.images = np.concatenate(images) if images else None
    shard.setup = context.once(cell, setup_rows)
    shard.peak_memory_mb = round(memory.peak_mb, 1)
    return shard


def _latency(context: Context, student, cell: Cell, seed: range) -> tuple[Tensor, dict[str, float]]:
    """One sample and batch-1 latency; the warm-up also does a student's one-time setup."""
    conditions = context.conditions(seed, cell.block)

    def run() -> Tensor:
        return sample(student, cell.steps, seed, conditions, cell.guidance)

    alone = run()
    with NetworkClock(networks_of(student), context.device) as clock:
        seconds = measure_latency(run, context.device, LATENCY_CALLS, warmup=0, enough=LATENCY_SECONDS)
    times = summary(seconds)
    return alone, {
        "latency_ms": times["median_ms"],
        "latency_p90_ms": times["p90_ms"],
        "network_ms": 1000 * clock.seconds / len(seconds),
    }


def _throughput(context: Context, student, cell: Cell, seeds: range, batches) -> dict[str, float]:
    conditions = context.conditions(seeds, cell.block)

    def again(size: int) -> float:
        begin = time.perf_counter()
        sample(student, cell.steps, seeds[:size], None if conditions is None else conditions[:size], cell.guidance)
        synchronise(context.device)
        return time.perf_counter() - begin

    return measure_throughput(batches, again)
