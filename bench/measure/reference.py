"""Statistics of real data, computed once and kept on disk: what the cells of a task are compared with.

One folder for each thing they depend on, `<folder>/<hash>`: a safetensors file a representation, and a record of
what they are with the sha256 of each. They are computed in shards that a killed process leaves to the next one,
so that none is computed twice.
"""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from bench.identity import code_hash, digest
from bench.measure.statistics import FeatureStats
from students.datafiles import file_hash
from students.errors import FewstepError
from students.files import write_folder

SHARD = 5000
QUIET_SECONDS = 2
RECORD = "record.json"

Statistics = dict[str, FeatureStats]


def cached_statistics(
    folder: Path,
    key: dict,
    total: int,
    batch_size: int,
    rows: Callable[[int, int], dict[str, Tensor]],
    collectors: Callable[[], Statistics],
    title: str = "reference statistics",
) -> Statistics:
    """Statistics of samples 0 ... total - 1 by representation, read from `folder` or computed and kept there.

    key: plain JSON, all that the rows depend on: data, split, extractor. rows(start, stop) gives the rows of these
    samples, at least those of the representations for which `collectors()` makes empty statistics. Of several
    processes one computes, the others wait for it. Raises FewstepError if the folder cannot be written, or if what
    it holds is altered or has other dimensions than `rows` gives.
    """
    needs = {name: stats.keep_rows for name, stats in collectors().items()}
    identity = {"key": key, "samples": total, "rows": needs, "code": code_hash("bench.measure.statistics")}
    place = Path(folder) / digest(identity)
    sizes = {name: values.shape[1] for name, values in rows(0, 1).items() if name in needs}
    if (found := _read(place, sizes)) is not None:
        return found
    with _lock(place, title):
        if (found := _read(place, sizes)) is not None:
            return found
        statistics = _compute(place, total, batch_size, rows, collectors, sizes, title)
        _write(place, statistics, identity)
        shutil.rmtree(_shards(place), ignore_errors=True)
    return statistics


def _compute(place, total, batch_size, rows, collectors, sizes, title) -> Statistics:
    statistics = collectors()
    with tqdm(total=total, desc=title, unit="sample", leave=False, delay=QUIET_SECONDS) as progress:
        for start in range(0, total, SHARD):
            stop = min(start + SHARD, total)
            kept = _shards(place) / f"{start:08d}"
            shard = _read(kept, sizes)
            if shard is None:
                shard = collectors()
                for first in range(start, stop, batch_size):
                    last = min(first + batch_size, stop)
                    values = rows(first, last)
                    for name, stats in shard.items():
                        stats.update(values[name])
                    progress.update(last - first)
                if total > SHARD:
                    _write(kept, shard, {"start": start, "stop": stop})
            else:
                progress.update(stop - start)
            for name, stats in statistics.items():
                stats.merge(shard[name])
    return statistics


def _shards(place: Path) -> Path:
    return place.with_name(f"{place.name}.shards")


def _lock(place: Path, title: str) -> AbstractContextManager:
    """Hold the lock of the process that computes `place`; says so if another one has to be waited for."""
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return lock.acquire(timeout=QUIET_SECONDS)
    except Timeout:
        print(f"note: waiting for another process that computes the {title}", file=sys.stderr)
        return lock.acquire()
    except OSError as error:
        raise _unwritable(place.parent, error) from error


def _write(place: Path, statistics: Statistics, identity: dict) -> None:
    """Write a folder, whole or not at all."""

    def write(folder: Path) -> None:
        for name, stats in statistics.items():
            stats.save(_file(folder, name))
        files = {name: file_hash(_file(folder, name)) for name in statistics}
        (folder / RECORD).write_text(json.dumps({"identity": identity, "files": files}, indent=1) + "\n")

    try:
        write_folder(place, write)
    except (OSError, SafetensorError) as error:
        raise _unwritable(place.parent, error) from error


def _read(place: Path, sizes: dict[str, int]) -> Statistics | None:
    """What `_write` wrote, or None if it is not there; raises FewstepError unless it is whole and of these sizes."""
    if not place.exists():
        return None
    try:
        files = json.loads((place / RECORD).read_text())["files"]
        whole = files.keys() == sizes.keys() and all(file_hash(_file(place, n)) == sha for n, sha in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise FewstepError(f"the statistics in {place} are cut short or altered: delete that folder to compute them")
    statistics = {name: FeatureStats.load(_file(place, name)) for name in files}
    for name, stats in statistics.items():
        if (kept := len(stats.mean())) != sizes[name]:
            raise FewstepError(
                f"the statistics in {place} have {kept} {name} a sample, the extractor now gives {sizes[name]}: "
                "take the extractor they were made with, or delete that folder"
            )
    return statistics


def _file(folder: Path, representation: str) -> Path:
    return folder / f"{representation}.safetensors"


def _unwritable(folder: Path, error: Exception) -> FewstepError:
    reason = getattr(error, "strerror", None) or error
    return FewstepError(
        f"cannot write reference statistics to {folder} ({reason}): make room, or name another folder for caches "
        "with the variable XDG_CACHE_HOME"
    )
