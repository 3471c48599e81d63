"""`python -m students schedule`: finds the grids of a teacher and writes their file."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from students.devices import check_device
from students.errors import FewstepError, unknown
from students.models.found_grids import SEARCHES, grid_path, write_record
from students.models.load import load_named
from students.models.teachers import TEACHERS, training_evaluations
from students.models.weights import state_hash
from students.optimised_grids import ays, gits
from students.optimised_grids.source import Source
from students.provenance import commit

MOST_STEPS = 32  # of those found by default
METHODS = dict(zip(SEARCHES, (gits, ays), strict=True))


def write_grids(
    method: str,
    task: str,
    steps: Sequence[int] | None = None,
    images: int | None = None,
    out: Path | None = None,
    device: str = "cpu",
) -> tuple[Path, dict]:
    """Find the grids of a teacher and write them; returns the path and the record.

    task: a name of students/models/teachers.py, a public checkpoint, `file:PATH`, or `package.module:attribute`. steps:
    by default 1 to 32. images: instead of the method's own number. out: the file, by default beside the teacher's
    weights. Raises FewstepError, before any work, for what is unknown, out of range, or nowhere to be written.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    found_by = METHODS[method]
    steps = sorted(set(steps or range(1, MOST_STEPS + 1)))
    if steps[0] < 1 or steps[-1] > found_by.MOST_STEPS:
        raise FewstepError(f"--steps of {method} are whole numbers from 1 to {found_by.MOST_STEPS}, got {steps}")
    if images is not None and images < 1:
        raise FewstepError(f"--images must be at least 1, got {images}")
    path = _path(method, task, out)
    teacher = load_named(task, check_device(device))
    if teacher.levels:
        raise FewstepError(f"{task} samples at levels of its own: grids are found for teachers")
    if not next(iter(teacher.denoiser.state_dict()), None):
        raise FewstepError(f"{task} has no parameters or buffers to tell it by: make it a torch module with some")
    begin = time.monotonic()
    source = Source(teacher, images or found_by.IMAGES)
    with torch.inference_mode():
        found = found_by.find(source, steps)
    spent = training_evaluations(task)
    record = {
        "method": method,
        "teacher": {"name": task, "hash": state_hash(teacher.denoiser)},
        "cost": {
            "evaluations": source.evaluations,
            "relative": source.evaluations / spent if spent else None,
            "seconds": round(time.monotonic() - begin, 1),
        },
        "seeds": [source.seeds.start, source.seeds.stop],
        "settings": found.settings,
        "commit": commit(),
        "times": {str(n): found.times[n] for n in steps},
    }
    write_record(path, record)
    return path, record


def _path(method: str, task: str, out: Path | None) -> Path:
    """Where the file goes, which it must be possible to write."""
    if out is None:
        if task not in TEACHERS:
            if ":" not in task:
                raise unknown("teacher", task, TEACHERS)
            raise FewstepError(f"{task} has no place of its own for grids: say where with --out PATH.json")
        return grid_path(method, task)
    if out.suffix != ".json":
        raise FewstepError(f"--out {out} must end in .json, so that grid={out} is read as a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(f".{out.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FewstepError(f"cannot write {out} ({error.strerror}): give another path with --out") from error
    return out
