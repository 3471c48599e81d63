"""The record and the files of a cell, from what its shards know."""

import io
import platform
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image

from bench.context import Context
from bench.measure import METRICS, Metric, jackknife, metric_columns
from bench.measure.statistics import FeatureStats
from bench.plan import REAL, Cell
from bench.shard import Failure, Shard
from bench.store import IMAGES, OK, SCHEMA
from students.errors import FewstepError, one_line
from students.provenance import commit

PACKAGES = ("torch", "diffusers", "torch-fidelity", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Outcome:
    """What the store is to write of a cell: its record, and the content of the files beside it, by name."""

    record: dict
    files: dict[str, bytes] = field(default_factory=dict)


def make_outcome(context: Context, cell: Cell, found: Shard | Failure) -> Outcome:
    """The record and files of a cell of which `found` is all that there is to know."""
    start = time.monotonic()
    record, files = _header(context, cell) | found.about, {}
    if isinstance(found, Failure):
        record |= {"status": found.status, "reason": found.reason}
    else:
        if cell.student != REAL:
            record |= {"nfe": found.nfe, "setup_nfe": found.setup, "peak_memory_mb": found.peak_memory_mb}
            record["latency"] = found.latency
        record["samples"] = found.samples
        classes = context.classes_of(cell)
        if classes is not None:
            record["class_counts"] = classes.bincount(minlength=context.task.classes or 0).tolist()
        record |= _metrics(context, found.statistics, record, classes)
        files = _files(found)
    record["provenance"] |= {
        "finished": datetime.now(UTC).isoformat(timespec="microseconds"),
        "seconds": round(found.seconds + time.monotonic() - start, 3),
    }
    return Outcome(record, files)


def measured(context: Context, cell: Cell, record: dict, stored: dict[str, bytes]) -> dict | None:
    """A record with the metrics it lacked, from stored statistics; None where a representation is not among them.

    Raises FewstepError for statistics that cannot be read.
    """
    if not stored.keys() >= context.collectors().keys():
        return None
    statistics = {name: FeatureStats.from_bytes(content) for name, content in stored.items()}
    return record | _metrics(context, statistics, record, context.classes_of(cell))


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def _header(context: Context, cell: Cell) -> dict:
    task, on_gpu = context.task, context.device.type == "cuda"
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "identity": cell.identity,
        "task": task.name,
        "version": task.version,
        "student": cell.student,
        "steps": cell.steps,
        "guidance": cell.guidance,
        "dtype": "float32" if cell.student == REAL else context.setup.dtype,
        "seed_block": cell.seed_block,
        "samples": task.samples,
        "rounding": task.rounding,
        "extractor": task.extractor,
        "status": OK,
        "reason": "",
        "failures": {},
        "nfe": 0.0,
        "setup_nfe": 0.0,
        "metric_code": {},
        "provenance": {
            "commit": commit(),
            "python": platform.python_version(),
            "packages": _versions(),
            "device": torch.cuda.get_device_name(context.device) if on_gpu else f"cpu x{torch.get_num_threads()}",
        },
    }


def _metrics(context: Context, statistics: dict[str, FeatureStats], record: dict, classes: torch.Tensor | None) -> dict:
    """The `metrics`, `jackknife`, `metric_code` and `failures` of a record, with what it lacked.

    A metric that fails leaves the others their numbers, and its reason among the failures. classes: of the samples.
    """
    values, codes, failures = dict(record.get("metrics", {})), dict(record["metric_code"]), {}
    left_out = dict(record.get("jackknife", {}))
    for name in context.setup.metrics:
        metric = METRICS[name]
        if codes.get(name) == metric.code():
            continue
        columns = metric_columns(name, context.task.extractor)
        try:
            numbers = metric.compute(statistics, context.reference)
            parts = _left_out(context, metric, statistics, classes)
        except FewstepError as error:
            failures[name] = str(error)
        except Exception as error:
            context.check_device_is_alive(one_line(error))
            failures[name] = one_line(error)
        else:
            values |= dict(zip(columns, map(float, numbers), strict=True))
            left_out |= dict(zip(columns, parts, strict=False))
            codes[name] = metric.code()
    older = {name: reason for name, reason in record.get("failures", {}).items() if name not in codes}
    return {"metrics": values, "jackknife": left_out, "metric_code": codes, "failures": older | failures}


def _left_out(context: Context, metric: Metric, statistics: dict[str, FeatureStats], classes) -> list[list[float]]:
    """For each column of a metric, its values without each group of samples; none where they are not kept."""
    needed = {name: statistics[name] for name in metric.needs}
    if not metric.smooth or not jackknife.can_leave_out(needed):
        return []
    dealt = jackknife.groups(int(next(iter(needed.values())).count), classes)
    parts = [metric.compute(left, context.reference) for left in jackknife.without_each_group(needed, dealt)]
    return [[float(value) for value in column] for column in zip(*parts, strict=True)]


def _files(shard: Shard) -> dict[str, bytes]:
    """Statistics, kept samples, and images named by their seeds."""
    samples = io.BytesIO()
    np.savez_compressed(samples, samples=shard.kept)  # type: ignore[arg-type]
    files = {f"{name}.safetensors": stats.to_bytes() for name, stats in shard.statistics.items()}
    files["samples.npz"] = samples.getvalue()
    if shard.images is not None:
        for seed, image in zip(shard.seeds, shard.images, strict=True):
            files[f"{IMAGES}/{seed:07d}.png"] = _png(image)
    return files


def _png(image: np.ndarray) -> bytes:
    """An image (C, H, W), grey or RGB."""
    content = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(content, "PNG")
    return content.getvalue()
