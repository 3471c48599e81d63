"""The store: one folder a cell, `run/<task>/<cell id>/cell.json` and its arrays; loads into one DataFrame.

A cell appears whole or not at all: it is written to a temporary folder, flushed and renamed. `claim` gives a
cell to one process at a time; the lock goes with the process that holds it, however that process ends.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from students.errors import FewstepError

OK, UNSUPPORTED, FAILED = "ok", "unsupported", "failed"
IMAGES = "images"  # the folder of a cell's images, where they were asked for


class Store:
    """The cells of one task under `root/run/<task>`."""

    def __init__(self, root: Path, task: str):
        self.folder = Path(root) / "run" / task
        self._locks = self.folder / ".locks"

    def open(self) -> None:
        """Make the folder ready for writing, without what killed runs left; raises FewstepError if it cannot be."""
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            probe = self._locks / f"probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise FewstepError(
                f"cannot write to {self.folder}: {error.strerror}; give another folder with --out"
            ) from error
        for part in self.folder.glob(".part-*"):
            with self.claim(part.name.removeprefix(".part-")) as mine:
                if mine:
                    shutil.rmtree(part, ignore_errors=True)

    def path(self, cell_id: str) -> Path:
        return self.folder / cell_id

    def load(self, cell_id: str) -> dict | None:
        """The cell's record, or None if it is not there; raises FewstepError if it cannot be read."""
        path = self.path(cell_id) / "cell.json"
        try:
            record = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise FewstepError(f"cannot read {path} ({error}); delete {path.parent} to compute it again") from error
        if not (isinstance(record, dict) and record.get("id") == cell_id and {"status", "provenance"} <= record.keys()):
            raise FewstepError(f"{path} is not the record of that cell; delete {path.parent} to compute it again")
        return record

    def has_images(self, cell_id: str) -> bool:
        return (self.path(cell_id) / IMAGES).is_dir()

    @contextmanager
    def claim(self, cell_id: str) -> Iterator[bool]:
        """Hold a cell while computing it; False if another process holds it now."""
        lock = FileLock(self._locks / cell_id)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def save(self, cell: dict, write_arrays=None) -> None:
        """Store a claimed cell under `cell["id"]`; `write_arrays(folder)` puts files beside its record.

        Raises FewstepError where the disk is full or the folder cannot be written; no part of the cell is left then.
        """
        folder = self.path(cell["id"])
        part = folder.with_name(f".part-{cell['id']}")
        shutil.rmtree(part, ignore_errors=True)
        with self._writing(part):
            part.mkdir()
            if write_arrays:
                write_arrays(part)
            (part / "cell.json").write_text(json.dumps(cell, indent=1) + "\n")
            for path in part.iterdir():
                _flush(path)
            if folder.exists():
                shutil.rmtree(folder)
            part.rename(folder)
            _flush(self.folder)

    def update(self, cell: dict) -> None:
        """Replace the record of a claimed cell that is already there, keeping its arrays; raises as `save` does."""
        path = self.path(cell["id"]) / "cell.json"
        part = path.with_name(".cell.json.part")
        with self._writing(part):
            part.write_text(json.dumps(cell, indent=1) + "\n")
            _flush(part)
            part.replace(path)

    @contextmanager
    def _writing(self, part: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)
            raise FewstepError(
                f"cannot write to {self.folder} ({getattr(error, 'strerror', None) or error}): make room; "
                "finished cells are kept, and the same command goes on from them"
            ) from error

    def cells(self) -> list[dict]:
        """Every cell of the store, oldest first."""
        ids = [path.parent.name for path in self.folder.glob("[!.]*/cell.json")]
        return sorted(filter(None, map(self.load, ids)), key=lambda cell: cell["provenance"]["finished"])


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# What makes two cells the same measurement: of these, `latest` keeps the one finished last.
KEYS = ["task", "student", "steps", "guidance", "dtype", "seed_block", "samples", "rounding", "extractor", "version"]


def latest(cells: list[dict]) -> list[dict]:
    """Without cells that a later one replaces (other code, weights or options under the same name)."""
    return list({tuple(cell.get(key) for key in KEYS): cell for cell in cells}.values())


# What a distilled student's `training` says (students/distillation/load.py), and the columns of it.
TRAINING = {
    "evaluations": "training_evaluations",
    "relative": "training_cost",
    "seconds": "training_seconds",
    "curve": "training_curve",
    "straightness": "straightness",
}


def frame(cells: list[dict], store: Store):
    """A pandas DataFrame, one row a cell: the columns of bench/report and every measured column."""
    import pandas as pd

    nested = ("identity", "metrics", "latency", "training", "provenance", "seconds")
    rows = [
        {
            **{key: value for key, value in cell.items() if key not in nested},
            **cell.get("metrics", {}),
            **cell.get("latency", {}),
            **_training(cell.get("training", {})),
            "own_model": cell["identity"].get("teacher", {}) is None,
            "device": cell["provenance"]["device"],
            "cell": cell["id"],
            "path": str(store.path(cell["id"])),
        }
        for cell in cells
    ]
    return pd.DataFrame(rows)


def _training(training: dict) -> dict:
    known = {column: training[key] for key, column in TRAINING.items() if key in training}
    return {column: math.nan if value is None else value for column, value in known.items()}
