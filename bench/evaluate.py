"""Computing one cell: draw its samples, stream their statistics, measure time and network evaluations."""

import bisect
import copy
import itertools
import platform
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from bench.loading import load_student
from bench.measure import METRICS, extractor_identity, metric_columns
from bench.measure.faithfulness import SOLVER, STEPS, distances
from bench.measure.features import load_extractor, to_uint8
from bench.measure.latency import NetworkClock, PeakMemory, measure_latency, summary, synchronise
from bench.measure.reference import SHARD, cached_statistics
from bench.measure.statistics import FeatureStats, Reference
from bench.plan import REAL, Cell, data_code
from bench.results import FAILED, IMAGES, OK, UNSUPPORTED, Store
from bench.tasks import Task
from students.base import NFE, Student, count_nfe, networks_of
from students.data import Dataset, Split, load_data
from students.datafiles import reference_folder
from students.devices import check_device
from students.diffusion.noise import SeedNoise
from students.errors import FewstepError, Unsupported, UnsupportedSteps, one_line
from students.loading import DTYPES, MAX_STEPS, spec_is_distilled
from students.provenance import commit
from students.registry import parse
from students.teachers import load_teacher

KEPT_SAMPLES = {"image": 16, "vector": 500}  # of each cell, for the sample grids
LATENCY_RUNS = 5
TIMED_BATCHES = 4
RANGE_SLACK = 1e-3
SEED_SLACK = 0.25
PROBE_SEED, PROBES = 2**61, 8
PACKAGES = ("torch", "diffusers", "torch-fidelity", "numpy", "scipy", "scikit-learn")


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def steps_for_budget(student, nfe: int, guidance: float) -> int | None:
    """The largest supported step count whose measured NFE is at most `nfe`, or None if there is none.

    Bisection on probe seeds that no task evaluates; NFE must not fall as steps rise.
    """
    supported = getattr(student, "supported_steps", Student.supported_steps)
    candidates = supported if isinstance(supported, Iterable) else range(1, MAX_STEPS + 1)
    counts = sorted(n for n in candidates if n in supported and n <= nfe)
    affordable = bisect.bisect_right(counts, nfe, key=lambda n: _probe(student, n, guidance))
    return counts[affordable - 1] if affordable else None


def _probe(student, n_steps: int, guidance: float) -> float:
    """Measured NFE; zero for a count that turns out to be too small for the student."""
    try:
        with count_nfe(student) as counted:
            student.sample(n_steps, seeds=range(PROBE_SEED, PROBE_SEED + PROBES), **_guidance(guidance))
    except UnsupportedSteps:
        return 0.0
    return counted.per_image


def _guidance(scale: float) -> dict:
    return {} if scale == 1 else {"guidance": scale}


def _sample(student, n_steps: int, seeds: range, labels: Tensor | None, guidance: float) -> Tensor:
    chosen = {} if labels is None else {"labels": labels}
    return student.sample(n_steps, seeds=seeds, **chosen, **_guidance(guidance))


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


def check_seeds(alone: Tensor, batch: Tensor, name: str) -> None:
    """Raise FewstepError unless the first sample of a batch is the one its seed gives alone, up to rounding.

    Rounding is far below SEED_SLACK of the spread among the batch, another draw of noise far above it.
    """
    difference = (alone[0] - batch[0]).square().mean().sqrt()
    if len(batch) > 1 and difference > SEED_SLACK * (batch - batch.mean(0)).square().mean().sqrt():
        raise FewstepError(
            f"{name} gives a seed another sample in a batch than alone: draw all randomness from `noise` (SeedNoise)"
        )


def save_images(images: Tensor, folder: Path, first_seed: int) -> None:
    """Write uint8 images (N, C, H, W) as PNG files named by their seeds."""
    folder.mkdir()
    arrays = images.squeeze(1) if images.shape[1] == 1 else images.permute(0, 2, 3, 1)
    for seed, array in enumerate(tqdm(arrays.numpy(), desc="saving images", leave=False), first_seed):
        Image.fromarray(array).save(folder / f"{seed:07d}.png")


class Evaluator:
    """Computes cells of one task on one device. Extractor, reference and students are loaded once.

    Statistics are kept for all metrics of the task and for the `metrics` asked for.
    """

    def __init__(self, task: Task, metrics: Sequence[str], device: str, dtype: str, save_images: bool = False):
        self.task = task
        self.save_images = save_images
        self.metrics = metrics
        self.device = check_device(device)
        self.dtype = dtype
        self._students: dict[str, object] = {}
        self._teacher_samples: dict[tuple, list[Tensor]] = {}

    def data(self) -> Dataset:
        """The task's data, loaded when called and kept by nobody: once there are statistics of it, only memory."""
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
    def trajectories(self) -> Student:
        """The teacher's sampler that faithfulness compares with, loaded apart so that no student's NFE counts it."""
        return load_student(SOLVER, self.task, load_teacher(self.task.teacher, device=self.device), self.device)

    @cached_property
    def reference(self) -> Reference:
        data, with_heldout = self.data(), any(METRICS[name].heldout for name in self._kept_for())
        return Reference(
            train=self._real_statistics("train", data.train),
            heldout=self._real_statistics("heldout", data.heldout) if with_heldout else {},
            mixture=data.mixture,
            device=self.device,
        )

    def _real_statistics(self, half: str, split: Split) -> dict[str, FeatureStats]:
        """Statistics of a half of the data; of a large set of images computed once and kept in the user's cache."""
        if self.task.kind == "vector" or len(split.samples) <= SHARD:
            return self._split_statistics(split)
        key = {"data": self.task.data, "half": half, "code": data_code(self.task.data)}
        return cached_statistics(
            reference_folder(),
            key | {"extractor": extractor_identity(self.task.extractor)},
            len(split.samples),
            self.task.batch_size,
            lambda start, stop: self._split_rows(split, slice(start, stop)),
            self._collectors,
            f"reference statistics of {self.task.data} ({half})",
        )

    def student(self, spec: str):
        if spec not in self._students:
            parsed = parse(spec)
            own_model = parsed.model
            teacher = None if own_model else self.teacher
            if not parsed.target.startswith("students."):
                teacher = copy.deepcopy(teacher)  # what a third party does to it is its own affair
            self._students[spec] = load_student(spec, self.task, teacher, self.device, self.dtype)
            if own_model:
                self._check_fits(spec)
        return self._students[spec]

    def _check_fits(self, spec: str) -> None:
        student = self._students[spec]
        made = tuple(student.shape), getattr(student, "classes", None)
        if made != (self.task.shape, self.task.classes):
            asked = self.task.shape, self.task.classes
            raise FewstepError(f"{spec} has (shape, classes) {made}, the task asks for {asked}: take another task")

    def prepare(self, specs: Iterable[str]) -> None:
        """Load students, data and extractor, so that what is wrong with them shows before the first cell."""
        for spec in specs:
            if spec != REAL:
                self.student(spec)
        if needless := [name for name in self.metrics if self._needs_classes(name) and not self.extractor.has_classes]:
            raise FewstepError(f"extractor {self.task.extractor!r} has no classes: leave {' and '.join(needless)} out")
        try:
            self.reference  # noqa: B018
        except (FewstepError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if ":" not in (self.task.extractor or ""):
                raise
            raise FewstepError(f"extractor {self.task.extractor!r} failed: {one_line(error)}") from error

    def _needs_classes(self, metric: str) -> bool:
        return not METRICS[metric].needs.keys().isdisjoint(("logits", "agreement"))

    def complete(self, cell: Cell, store: Store) -> None:
        """Compute what the store lacks of a claimed cell: all of it, or metrics from its stored statistics."""
        record = store.load(cell.id)
        if record is not None:
            stored = self._stored(store.path(cell.id))
            if stored.keys() >= self._collectors().keys() and (not self.save_images or store.has_images(cell.id)):
                store.update(record | self._metrics(stored, record))
                return
        start = time.monotonic()
        record = self._header(cell)
        statistics, kept, images = None, None, []
        try:
            if cell.student == REAL:
                statistics, kept, measured = self._draw_real()
            else:
                statistics, kept, images, measured = self._draw(cell)
            record |= measured
        except Unsupported as error:
            record |= {"status": UNSUPPORTED, "reason": str(error)}
        except (Exception, SystemExit) as error:  # a student may be anybody's code: one failure must not end the sweep
            record |= {"status": FAILED, "reason": self._reason(error)}
        else:
            record |= self._metrics(statistics, record)
        record["provenance"] |= {
            "finished": datetime.now(UTC).isoformat(timespec="microseconds"),
            "seconds": round(time.monotonic() - start, 3),
        }

        def write_arrays(folder):
            if statistics is not None:
                for name, stats in statistics.items():
                    stats.save(folder / f"{name}.safetensors")
                np.savez_compressed(folder / "samples.npz", samples=kept)
            if images:
                save_images(torch.cat(images), folder / IMAGES, cell.identity["seeds"][0])

        store.save(record, write_arrays)

    def _stored(self, folder: Path) -> dict[str, FeatureStats]:
        try:
            return {path.stem: FeatureStats.load(path) for path in folder.glob("*.safetensors")}
        except FewstepError as error:
            raise FewstepError(f"{error}; delete {folder}, and the same command makes the cell anew") from error

    def _reason(self, error: BaseException) -> str:
        """Why a cell failed, in one line; raises FewstepError if it is the device that is gone."""
        if isinstance(error, FewstepError):
            return str(error)
        reason = one_line(error)
        self._check_device_is_alive(reason)
        return reason

    def _check_device_is_alive(self, reason: str) -> None:
        """Raise FewstepError if the device no longer computes: then it is not the cell that failed."""
        try:
            torch.zeros(1, device=self.device).add(1).item()
        except RuntimeError as error:
            raise FewstepError(
                f"device {self.device} was lost ({reason}): finished cells are kept; "
                "when it is back, the same command goes on from them"
            ) from error

    def _header(self, cell: Cell) -> dict:
        real = cell.student == REAL
        distilled = not real and spec_is_distilled(parse(cell.student))
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
            "extractor": self.task.extractor,
            "status": OK,
            "reason": "",
            "nfe": 0.0,
            "setup_nfe": 0.0,
            "metric_code": {},
            **({"training": self.student(cell.student).training} if distilled else {}),
            "provenance": {
                "commit": commit(),
                "python": platform.python_version(),
                "packages": _versions(),
                "device": torch.cuda.get_device_name(self.device) if on_gpu else f"cpu x{torch.get_num_threads()}",
            },
        }

    def _draw(self, cell: Cell) -> tuple[dict[str, FeatureStats], np.ndarray, list[Tensor], dict]:
        """Statistics, the samples kept for grids, all images in batches if they are to be saved, what was measured."""
        student = self.student(cell.student)
        if tuple(student.shape) != self.task.shape:
            raise FewstepError(f"{cell.student} makes {tuple(student.shape)}, the task asks for {self.task.shape}")
        if hasattr(student, "check"):
            student.check(cell.steps, cell.guidance)
        first, end = cell.identity["seeds"]
        teachers = self._teachers(cell, student)

        def draw(start, stop):
            seeds = range(start, stop)
            return _sample(student, cell.steps, seeds, self._labels(student, seeds), cell.guidance)

        with count_nfe(student) as preparation:
            alone, latency = self._latency(student, lambda: draw(first, first + 1))
        statistics, kept, images, seconds = self._collectors(), None, [], []
        with PeakMemory(self.device) as memory, count_nfe(student) as nfe, self._absorber(statistics) as absorb:
            for seeds, samples, spent in self._batches(draw, first, end, nfe):
                check_samples(samples, len(seeds), self.task.shape, cell.student)
                if not seconds:
                    check_seeds(alone, samples, cell.student)
                seconds.append((len(seeds), spent / len(seeds)))
                kept = self._keep(samples) if kept is None else kept
                if self.save_images:
                    images.append(to_uint8(samples, self.task.rounding).cpu())
                part = slice(seeds.start - first, seeds.stop - first)
                absorb(samples, self._labels(student, seeds), teachers and [rows[part] for rows in teachers])
        size = max(length for length, _ in seconds[-2:])
        throughput = summary([spent for length, spent in seconds if length == size])
        return statistics, kept, images, {
            "nfe": nfe.per_image,
            "setup_nfe": float(preparation.setup_rows + nfe.setup_rows),
            "peak_memory_mb": round(memory.peak_mb, 1),
            "latency": latency
            | {
                "throughput_batch": size,
                "throughput_ms": throughput["median_ms"],
                "throughput_p90_ms": throughput["p90_ms"],
            },
        }  # fmt: skip

    def _batches(self, draw, first: int, end: int, nfe: NFE) -> Iterator[tuple[range, Tensor, float]]:
        """Seeds, samples and seconds, batch by batch. Where the device's memory is too small, batches are halved."""
        size, start = self.task.batch_size, first
        while start < end:
            stop, spent = min(start + size, end), nfe.rows
            begin = time.perf_counter()
            try:
                samples = draw(start, stop)
                synchronise(self.device)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size, nfe.rows = (stop - start + 1) // 2, spent
                torch.cuda.empty_cache()
                continue
            yield range(start, stop), samples, time.perf_counter() - begin
            start = stop

    @contextmanager
    def _absorber(self, statistics: dict[str, FeatureStats]) -> Iterator[Callable[..., None]]:
        """A function that adds samples to `statistics`, given what `_represent` takes.

        On a GPU it works in a thread and stream beside the sampling; the first TIMED_BATCHES are added before the next
        is drawn, so that the times of sampling are its own.
        """

        def add(*batch) -> None:
            for name, rows in self._represent(*batch).items():
                statistics[name].update(rows)

        if self.device.type != "cuda":
            yield add
            return
        stream, pending = torch.cuda.Stream(self.device), deque()

        def add_beside(*batch) -> None:
            with torch.cuda.stream(stream):
                add(*batch)

        with ThreadPoolExecutor(max_workers=1) as worker:
            submitted = itertools.count(1)

            def submit(*batch) -> None:
                pending.append(worker.submit(add_beside, *batch))
                while len(pending) > (0 if next(submitted) <= TIMED_BATCHES else 1):
                    pending.popleft().result()

            yield submit
            while pending:
                pending.popleft().result()

    def _labels(self, student, seeds: range) -> Tensor | None:
        """The classes that `sample` draws for these seeds, where a metric compares them with what is seen."""
        return self._classes(student, seeds) if "agreement" in self._collectors() else None

    def _classes(self, student, seeds: range) -> Tensor | None:
        """The classes that `sample` draws for these seeds; None where the task has none."""
        if self.task.classes is None:
            return None
        prior = getattr(student, "prior", None)
        prior = torch.ones(self.task.classes) if prior is None else torch.as_tensor(prior)
        return SeedNoise(seeds, self.task.shape, self.device).labels(prior.to(self.device))

    def _teachers(self, cell: Cell, student) -> list[Tensor] | None:
        """The teacher's samples for the cell's seeds, classes and guidance and, of images, their features.

        Drawn once for all students and kept in memory, which is for small tasks: 50,000 images of 32x32 in colour take
        600 MB. None where no metric compares with them, and for a student with a model of its own: the teacher is not
        its teacher, and not part of its cells' ids.
        """
        if "faithfulness" not in self._collectors() or parse(cell.student).model:
            return None
        seeds = range(*cell.identity["seeds"])
        classes = self._classes(student, seeds)
        key = seeds, cell.guidance, None if classes is None else tuple(classes.tolist())
        if key not in self._teacher_samples:

            def draw(start, stop):
                drawn = range(start, stop)
                return _sample(self.trajectories, STEPS, drawn, self._classes(student, drawn), cell.guidance)

            batches = []
            for _, samples, _ in self._batches(draw, seeds.start, seeds.stop, NFE()):
                rows = [samples]
                if self.task.kind == "image":
                    rows.append(self.extractor.features(to_uint8(samples, self.task.rounding))[0])
                batches.append([values.cpu() for values in rows])
            self._teacher_samples[key] = [torch.cat(rows) for rows in zip(*batches, strict=True)]
        return self._teacher_samples[key]

    def _latency(self, student, draw) -> tuple[Tensor, dict]:
        """One sample and batch-1 latency; the warm-up also does a student's one-time setup."""
        sample = draw()
        with NetworkClock(networks_of(student), self.device) as clock:
            times = measure_latency(draw, self.device, repeats=LATENCY_RUNS, warmup=0)
        return sample, {
            "latency_ms": times["median_ms"],
            "latency_p90_ms": times["p90_ms"],
            "network_ms": 1000 * clock.seconds / LATENCY_RUNS,
        }

    def _draw_real(self) -> tuple[dict[str, FeatureStats], np.ndarray, dict]:
        """The first `samples` held-out samples, or all of them if they are fewer."""
        chosen, heldout = slice(self.task.samples), self.data().heldout
        labels = None if heldout.labels is None else heldout.labels[chosen]
        heldout = Split(heldout.samples[chosen], labels)
        samples = heldout.samples[: KEPT_SAMPLES[self.task.kind]]
        kept = samples.numpy() if self.task.kind == "image" else samples.float().numpy()
        return self._split_statistics(heldout), kept, {"samples": len(heldout.samples)}

    def _kept_for(self) -> set[str]:
        """The metrics that statistics are kept for: those asked for, and the task's that the extractor can serve."""
        names = {*self.task.metrics, *self.metrics}
        return {name for name in names if not self._needs_classes(name) or self.extractor.has_classes}

    def _collectors(self) -> dict[str, FeatureStats]:
        """Empty statistics of every representation needed; rows are kept only where a metric needs rows."""
        needs: dict[str, bool] = {}
        for name in self._kept_for():
            for representation, form in METRICS[name].needs.items():
                needs[representation] = needs.get(representation, False) or form == "rows"
        return {representation: FeatureStats(keep_rows=rows) for representation, rows in needs.items()}

    def _represent(
        self, samples: Tensor, labels: Tensor | None, teachers: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """8-bit images, images in [-1, 1], or vectors, as rows of what the metrics compare.

        teachers: the teacher's samples that they are compared with and, of images, their features.
        """
        needed = self._collectors()
        rows = {"samples": samples} if self.task.kind == "vector" else self._image_rows(samples, labels, needed)
        if "faithfulness" in needed:
            made = [samples] if self.task.kind == "vector" else [samples, rows["features"]]
            rows["faithfulness"] = distances(made, teachers)
        return {name: rows[name] for name in needed}

    def _image_rows(self, samples: Tensor, labels: Tensor | None, needed: Container[str]) -> dict[str, Tensor]:
        images = samples if samples.dtype == torch.uint8 else to_uint8(samples, self.task.rounding)
        features, logits = self.extractor.features(images)
        if "agreement" in needed and logits.shape[1] != self.task.classes:
            raise FewstepError(
                f"extractor {self.task.extractor!r} knows {logits.shape[1]} classes, task {self.task.name!r} has "
                f"{self.task.classes}: leave the metric 'agreement' out"
            )
        rows = {"features": features, "logits": logits}
        if "samples" in needed:
            rows["samples"] = images.flatten(1).float() / 255
        if "agreement" in needed:
            rows["agreement"] = (logits.argmax(1) == labels.to(logits.device)).float()[:, None]
        return rows

    def _split_statistics(self, split: Split) -> dict[str, FeatureStats]:
        statistics = self._collectors()
        for start in range(0, len(split.samples), self.task.batch_size):
            for name, rows in self._split_rows(split, slice(start, start + self.task.batch_size)).items():
                statistics[name].update(rows)
        return statistics

    def _split_rows(self, split: Split, part: slice) -> dict[str, Tensor]:
        labels = None if split.labels is None else split.labels[part]
        return self._represent(split.samples[part].to(self.device), labels)

    def _keep(self, samples: Tensor) -> np.ndarray:
        samples = samples[: KEPT_SAMPLES[self.task.kind]]
        if self.task.kind == "image":
            samples = to_uint8(samples, self.task.rounding)
        return samples.cpu().numpy()

    def _metrics(self, statistics: dict[str, FeatureStats], record: dict) -> dict:
        """The `metrics`, `metric_code`, `status` and `reason` of a record, with what it lacked.

        A metric that fails makes the cell failed; the others, and the statistics, are kept.
        """
        values, codes, reasons = dict(record.get("metrics", {})), dict(record["metric_code"]), []
        for name in self.metrics:
            metric = METRICS[name]
            if codes.get(name) == metric.code():
                continue
            try:
                numbers = metric.compute(statistics, self.reference)
            except FewstepError as error:
                reasons.append(f"{name}: {error}")
                continue
            values |= dict(zip(metric_columns(name, self.task.extractor), map(float, numbers), strict=True))
            codes[name] = metric.code()
        status = FAILED if reasons else OK
        return {"metrics": values, "metric_code": codes, "status": status, "reason": "; ".join(reasons)}
