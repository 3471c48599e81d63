"""The store: one folder a cell, `run/<task>/<cell id>/cell.json` and its arrays; loads into one DataFrame.

A cell appears whole or not at all: it is written to a temporary folder, flushed and renamed. `claim` gives a
cell to one process at a time; the lock goes with the process that holds it, however that process ends.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bench.measure import METRICS, metric_columns
from students.errors import FewstepError
from students.files import make_folder, write_atomically, write_folder

OK, UNSUPPORTED, FAILED = "ok", "unsupported", "failed"
STATED = "stated"  # the family of samples that somebody brought, whose steps and NFE nobody here has measured
# Of cell.json; 3 has no cells of the family `stated`, 2 no `jackknife`; 1, which does not say so, no failures apart
# from `reason`
SCHEMA = 4
IMAGES = "images"  # the folder of a cell's images, where they were asked for


class Store:
    """The cells of one task under `root/run/<task>`."""

    def __init__(self, root: Path, task: str):
        self.folder = Path(root) / "run" / task
        self._locks = self.folder / ".locks"

    def open(self) -> None:
        """Make the folder ready for writing, without what killed runs left; raises FewstepError if it cannot be."""
        try:
            make_folder(self._locks)
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
        if (schema := record.get("schema", 1)) not in range(1, SCHEMA + 1):
            raise FewstepError(
                f"{path} is of form {schema}, this version reads 1 to {SCHEMA}: update it, or give another folder "
                "with --out"
            )
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

    def arrays(self, cell_id: str) -> dict[str, bytes]:
        """The statistics stored with a cell, by representation."""
        return {path.stem: path.read_bytes() for path in self.path(cell_id).glob("*.safetensors")}

    def save(self, cell: dict, files: Mapping[str, bytes] | None = None) -> None:
        """Store a claimed cell under `cell["id"]`, with files beside its record (`name` or `folder/name`).

        Raises FewstepError where the disk is full or the folder cannot be written; no part of the cell is left then.
        """

        def write(folder: Path) -> None:
            for name, content in {**(files or {}), "cell.json": _json(cell)}.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(content)

        with self._writing():
            write_folder(self.path(cell["id"]), write)

    def update(self, cell: dict) -> None:
        """Replace the record of a claimed cell that is already there, keeping its arrays; raises as `save` does."""
        with self._writing():
            write_atomically(self.path(cell["id"]) / "cell.json", _json(cell))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FewstepError(
                f"cannot write to {self.folder} ({error.strerror or error}): make room; "
                "finished cells are kept, and the same command goes on from them"
            ) from error

    def cells(self) -> list[dict]:
        """Every cell of the store, oldest first."""
        ids = [path.parent.name for path in self.folder.glob("[!.]*/cell.json")]
        return sorted(filter(None, map(self.load, ids)), key=lambda cell: cell["provenance"]["finished"])


def _json(cell: dict) -> bytes:
    return (json.dumps(cell, indent=1) + "\n").encode()


# What makes two cells the same measurement: of these, `latest` keeps the one finished last.
KEYS = ["task", "student", "steps", "guidance", "dtype", "seed_block", "samples", "rounding", "extractor", "version"]
KEYS += ["protocol", "reference", "content"]  # of samples that were brought


def latest(cells: list[dict]) -> list[dict]:
    """Without cells that a later one replaces (other code, weights or options under the same name), in order of KEYS.

    Not in the order in which they were done, which several workers change from run to run.
    """
    last = {tuple(cell.get(key) for key in KEYS): cell for cell in cells}
    return [last[key] for key in sorted(last, key=lambda key: [(value is not None, value) for value in key])]


# What a student's `training` says, of a distilled one (students/samplers/load.py) or of the grid that was found for a
# solver (students/models/found_grids.py), and the columns of it.
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

    apart = {
        *("schema", "identity", "metrics", "jackknife", "failures", "metric_code", "latency", "training"),
        *("provenance", "class_counts"),
    }
    rows = [
        {
            **{key: value for key, value in cell.items() if key not in apart},
            **cell.get("metrics", {}),
            **{f"{name}_jackknife": values for name, values in cell.get("jackknife", {}).items()},
            **cell.get("latency", {}),
            **_training(cell.get("training", {})),
            "trained_in": ", ".join(cell.get("training", {}).get("feature_spaces", [])),
            **{f"{name}_repeats": values for name, values in _repeats(cell).items()},
            **_failures(cell),
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


def _repeats(cell: dict) -> dict[str, list[float]]:
    """By column what other training seeds came to in this cell's steps, of as many samples."""
    found = cell.get("training", {}).get("repeats", {})
    alike = {name: part["values"] for name, part in found.items() if part["samples"] == cell["samples"]}
    return {name: values[str(cell["steps"])] for name, values in alike.items() if str(cell["steps"]) in values}


def _failures(cell: dict) -> dict:
    """`failed`: the columns whose metric failed, spaces between; `reason`: also why, of a cell that is otherwise ok."""
    failures = cell.get("failures", {})
    columns = [column for name in failures if name in METRICS for column in metric_columns(name, cell["extractor"])]
    reasons = filter(None, [cell["reason"], *(f"{name}: {reason}" for name, reason in failures.items())])
    return {"failed": " ".join(columns), "reason": "; ".join(reasons)}
