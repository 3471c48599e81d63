"""Computing one cell: draw its samples, stream their statistics, measure time and network evaluations."""

import platform
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from bench.loading import load_student, one_line
from bench.measure import METRICS
from bench.measure.features import load_extractor, to_uint8
from bench.measure.latency import NetworkClock, PeakMemory, measure_latency, summary
from bench.measure.statistics import FeatureStats, Reference
from bench.plan import REAL, Cell
from bench.results import FAILED, OK, UNSUPPORTED, Store
from bench.tasks import Task
from students.base import Student, count_nfe, networks_of
from students.data import Dataset, Split, load_data
from students.errors import FewstepError, UnsupportedSteps
from students.loading import DTYPES
from students.provenance import commit
from students.teachers import load_teacher

KEPT_SAMPLES = {"image": 16, "vector": 500}  # of each cell, for the sample grids
LATENCY_RUNS = 5
RANGE_SLACK = 1e-3
PROBE_SEED, PROBES = 2**61, 8
PACKAGES = ("torch", "diffusers", "torch-fidelity", "numpy", "scipy", "scikit-learn")


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def check_device(name: str) -> torch.device:
    """The device of that name, or for "auto" the GPU if there is one; raises FewstepError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise FewstepError(f"device {name!r} is not there; this machine has {', '.join(there)}") from error
    return device


def steps_for_budget(student, nfe: int, guidance: float) -> int | None:
    """The largest step count whose measured NFE is at most `nfe`, or None if no supported count is.

    Bisection on probe seeds that no task evaluates; NFE must not fall as steps rise.
    """
    low, high = 0, nfe
    while low < high:
        middle = (low + high + 1) // 2
        spent = _probe(student, middle, guidance)
        if spent is None or spent <= nfe:
            low = middle
        else:
            high = middle - 1
    return low if low and _probe(student, low, guidance) is not None else None


def _probe(student, n_steps: int, guidance: float) -> float | None:
    """Measured NFE, or None for unsupported steps (of which a student has too few rather than too many)."""
    try:
        with count_nfe(student) as counted:
            student.sample(n_steps, seeds=range(PROBE_SEED, PROBE_SEED + PROBES), **_guidance(guidance))
    except UnsupportedSteps:
        return None
    return counted.per_image


def _guidance(scale: float) -> dict:
    return {} if scale == 1 else {"guidance": scale}


def check_samples(samples, n: int, shape: tuple[int, ...], name: str) -> None:
    """Raise FewstepError unless samples are finite floats (n, *shape), in [-1, 1] for images."""
    if not torch.is_tensor(samples) or samples.shape != (n, *shape):
        got = tuple(samples.shape) if torch.is_tensor(samples) else type(samples).__name__
        raise FewstepError(f"{name} returned {got} for {n} seeds: sample() must return a tensor {(n, *shape)}")
    if not samples.is_floating_point():
        raise FewstepError(f"{name} returned {samples.dtype}: sample() must return float32 in [-1, 1]")
    if bad := (~samples.isfinite()).flatten(1).any(1).sum().item():
        raise FewstepError(f"{name} returned NaN or infinity in {bad} of {n} samples")
    low, high = samples.min().item(), samples.max().item()
    if len(shape) == 3 and (low < -1 - RANGE_SLACK or high > 1 + RANGE_SLACK):
        raise FewstepError(f"{name} returned values in [{low:.3g}, {high:.3g}]: images must lie in [-1, 1]; clamp them")


class Evaluator:
    """Computes cells of one task on one device. Data, extractor, reference and students are loaded once.

    Statistics are kept for all metrics of the task and for the `metrics` asked for.
    """

    def __init__(self, task: Task, metrics: Sequence[str], device: str, dtype: str):
        self.task = task
        self.metrics = metrics
        self.device = check_device(device)
        self.dtype = dtype
        self._students: dict[str, object] = {}

    @cached_property
    def data(self) -> Dataset:
        data = load_data(self.task.data)
        if tuple(data.train.samples.shape[1:]) != self.task.shape:
            raise FewstepError(f"data {self.task.data!r} has shape {tuple(data.train.samples.shape[1:])}, "
                               f"task {self.task.name!r} says {self.task.shape}")  # fmt: skip
        return data

    @cached_property
    def extractor(self):
        return load_extractor(self.task.extractor, self.device)

    @cached_property
    def teacher(self):
        teacher = load_teacher(self.task.teacher, device=self.device, dtype=DTYPES[self.dtype])
        made = tuple(teacher.shape), getattr(teacher, "classes", None)
        if made != (self.task.shape, self.task.classes):
            asked = self.task.shape, self.task.classes
            raise FewstepError(f"teacher {self.task.teacher!r} has (shape, classes) {made}, the task asks for {asked}")
        return teacher

    @cached_property
    def reference(self) -> Reference:
        return Reference(
            train=self._split_statistics(self.data.train),
            heldout=self._split_statistics(self.data.heldout),
            mixture=self.data.mixture,
        )

    def student(self, spec: str):
        if spec not in self._students:
            self._students[spec] = load_student(spec, self.task, self.teacher, self.device, self.dtype)
        return self._students[spec]

    def prepare(self, specs: Iterable[str]) -> None:
        """Load students, data and extractor, so that what is wrong with them shows before the first cell."""
        for spec in specs:
            if spec != REAL:
                self.student(spec)
        self.reference  # noqa: B018

    def complete(self, cell: Cell, store: Store) -> None:
        """Compute what the store lacks of a claimed cell: all of it, or metrics from its stored statistics."""
        record = store.load(cell.id)
        if record is not None and record["status"] == OK:
            stored = {path.stem: FeatureStats.load(path) for path in store.path(cell.id).glob("*.safetensors")}
            if stored.keys() >= self._collectors().keys():
                store.update(record | self._metrics(stored, record))
                return
        start = time.monotonic()
        record = self._header(cell)
        statistics, kept = None, None
        try:
            if cell.student == REAL:
                statistics, kept, measured = self._draw_real()
            else:
                statistics, kept, measured = self._draw(cell)
            record |= measured | self._metrics(statistics, record)
        except UnsupportedSteps as error:
            record |= {"status": UNSUPPORTED, "reason": str(error)}
        except Exception as error:  # a student may be anybody's code: one failure must not end the sweep
            reason = one_line(error)
            if not isinstance(error, FewstepError):
                reason = f"{type(error).__name__}: {reason}"
            record |= {"status": FAILED, "reason": reason}
            statistics = None
        record["provenance"] |= {
            "finished": datetime.now(UTC).isoformat(timespec="microseconds"),
            "seconds": round(time.monotonic() - start, 3),
        }

        def write_arrays(folder):
            if statistics is not None:
                for name, stats in statistics.items():
                    stats.save(folder / f"{name}.safetensors")
                np.savez_compressed(folder / "samples.npz", samples=kept)

        store.save(record, write_arrays)

    def _header(self, cell: Cell) -> dict:
        real = cell.student == REAL
        on_gpu = self.device.type == "cuda"
        return {
            "id": cell.id,
            "identity": cell.identity,
            "task": self.task.name,
            "version": self.task.version,
            "student": cell.student,
            "family": REAL if real else getattr(self.student(cell.student), "family", Student.family),
            "steps": cell.steps,
            "guidance": cell.guidance,
            "dtype": "float32" if real else self.dtype,
            "seed_block": cell.seed_block,
            "samples": self.task.samples,
            "rounding": self.task.rounding,
            "status": OK,
            "reason": "",
            "nfe": 0.0,
            "setup_nfe": 0.0,
            "metric_code": {},
            "provenance": {
                "commit": commit(),
                "python": platform.python_version(),
                "packages": _versions(),
                "device": torch.cuda.get_device_name(self.device) if on_gpu else f"cpu x{torch.get_num_threads()}",
            },
        }

    def _draw(self, cell: Cell) -> tuple[dict[str, FeatureStats], np.ndarray, dict]:
        student = self.student(cell.student)
        if tuple(student.shape) != self.task.shape:
            raise FewstepError(f"{cell.student} makes {tuple(student.shape)}, the task asks for {self.task.shape}")
        if hasattr(student, "check"):
            student.check(cell.steps, cell.guidance)
        first, end = cell.identity["seeds"]
        edges = [*range(first, end, self.task.batch_size), end]

        def draw(start, stop):
            return student.sample(cell.steps, seeds=range(start, stop), **_guidance(cell.guidance))

        with count_nfe(student) as preparation:
            latency = self._latency(student, lambda: draw(first, first + 1))
        statistics, kept, seconds = self._collectors(), None, []
        with PeakMemory(self.device) as memory, count_nfe(student) as nfe:
            for start, stop in pairwise(edges):
                begin = time.perf_counter()
                samples = draw(start, stop)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                seconds.append((time.perf_counter() - begin) / (stop - start))
                check_samples(samples, stop - start, self.task.shape, cell.student)
                represented = self._represent(samples)
                for name, rows in represented.items():
                    statistics[name].update(rows)
                kept = self._keep(samples) if kept is None else kept
        whole = seconds[: len(seconds) - (len(edges) > 2 and (end - first) % self.task.batch_size > 0)]
        throughput = summary(whole)
        return statistics, kept, {
            "nfe": nfe.per_image,
            "setup_nfe": float(preparation.setup_rows + nfe.setup_rows),
            "peak_memory_mb": round(memory.peak_mb, 1),
            "latency": latency
            | {
                "throughput_batch": min(self.task.batch_size, end - first),
                "throughput_ms": throughput["median_ms"],
                "throughput_p90_ms": throughput["p90_ms"],
            },
        }  # fmt: skip

    def _latency(self, student, draw) -> dict:
        """Batch-1 latency; the warm-up also does a student's one-time setup."""
        draw()
        with NetworkClock(networks_of(student), self.device) as clock:
            times = measure_latency(draw, self.device, repeats=LATENCY_RUNS, warmup=0)
        return {
            "latency_ms": times["median_ms"],
            "latency_p90_ms": times["p90_ms"],
            "network_ms": 1000 * clock.seconds / LATENCY_RUNS,
        }

    def _draw_real(self) -> tuple[dict[str, FeatureStats], np.ndarray, dict]:
        """The first `samples` held-out samples, or all of them if they are fewer."""
        heldout = Split(self.data.heldout.samples[: self.task.samples])
        samples = heldout.samples[: KEPT_SAMPLES[self.task.kind]]
        kept = samples.numpy() if self.task.kind == "image" else samples.float().numpy()
        return self._split_statistics(heldout), kept, {"samples": len(heldout.samples)}

    def _collectors(self) -> dict[str, FeatureStats]:
        """Empty statistics of every representation needed; rows are kept only where a metric needs rows."""
        needs: dict[str, bool] = {}
        for name in {*self.task.metrics, *self.metrics}:
            for representation, form in METRICS[name].needs.items():
                needs[representation] = needs.get(representation, False) or form == "rows"
        return {representation: FeatureStats(keep_rows=rows) for representation, rows in needs.items()}

    def _represent(self, samples: Tensor) -> dict[str, Tensor]:
        """Images in [-1, 1], or vectors, as rows of what the metrics compare."""
        if self.task.kind == "vector":
            return {"samples": samples}
        return self._represent_uint8(to_uint8(samples, self.task.rounding))

    def _represent_uint8(self, images: Tensor) -> dict[str, Tensor]:
        features, logits = self.extractor.features(images)
        rows = {"features": features, "logits": logits, "samples": images.flatten(1).float() / 255}
        if logits is None and "logits" in self._collectors():
            raise FewstepError(f"extractor {self.task.extractor!r} has no classes: leave the metric 'is' out")
        return {name: rows[name] for name in self._collectors()}

    def _split_statistics(self, split: Split) -> dict[str, FeatureStats]:
        statistics = self._collectors()
        represent = self._represent_uint8 if split.samples.dtype == torch.uint8 else self._represent
        for batch in split.samples.split(self.task.batch_size):
            for name, rows in represent(batch.to(self.device)).items():
                statistics[name].update(rows)
        return statistics

    def _keep(self, samples: Tensor) -> np.ndarray:
        samples = samples[: KEPT_SAMPLES[self.task.kind]]
        if self.task.kind == "image":
            samples = to_uint8(samples, self.task.rounding)
        return samples.cpu().numpy()

    def _metrics(self, statistics: dict[str, FeatureStats], record: dict) -> dict:
        """The `metrics` and `metric_code` of a record, extended by what it lacks."""
        values, codes = dict(record.get("metrics", {})), dict(record["metric_code"])
        for name in self.metrics:
            metric = METRICS[name]
            if codes.get(name) == metric.code():
                continue
            numbers = metric.compute(statistics, self.reference)
            columns = [column.format(extractor=self.task.extractor) for column in metric.columns]
            values |= dict(zip(columns, map(float, numbers), strict=True))
            codes[name] = metric.code()
        return {"metrics": values, "metric_code": codes}
