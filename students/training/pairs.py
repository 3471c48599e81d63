"""Pair sets: noise, and the image that a deterministic sampler makes of it; made once, kept, and memory-mapped.

    <folder>/pairs.json, noise.npy, images.npy, labels.npy, path.npy

What they were made by is stored with them, and a set of another teacher or sampler is refused. A run that was
killed goes on where it stopped: `made` in pairs.json counts the pairs that are there.
"""

import hashlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from students.diffusion.denoiser import guided
from students.diffusion.noise import SeedNoise
from students.errors import FewstepError, Stopped, one_line
from students.files import make_folder, write_atomically
from students.student import SolverStudent
from students.training.batches import PairRows
from students.training.history import RowCount

FIRST_SEED = 2**42  # far from the seeds that tasks evaluate
CHUNK = 512
MANIFEST = "pairs.json"


def pairs_folder(parent: Path, described: dict) -> Path:
    """A folder below `parent` that is named by what the pairs are made by."""
    return parent / hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


class PairSet:
    """`count` noise-image pairs of a deterministic student, in `steps` steps; the missing ones are made at once.

    noise: (count, *shape) float32, standard normal. images: (count, *shape) float32, not clamped. labels: (count,)
    int64, or None. path: (count, M, *shape) float32, the states at times `kept` (M,), from the noise end to the data
    end, in VE coordinates, or None. spent, seconds: network evaluations and time it took to make them, in this run and
    those before.

    described: what the student is, in plain JSON. deadline: of `time.monotonic`, after which no more are made. Raises
    FewstepError for a folder that holds other pairs, on too little disk, and at the deadline; what was made is kept.
    """

    _noise: np.ndarray
    _images: np.ndarray
    _labels: np.ndarray
    _path: np.ndarray

    def __init__(
        self,
        folder: Path,
        student: SolverStudent,
        described: dict,
        count: int,
        steps: int,
        path: int = 0,
        deadline: float = math.inf,
    ):
        if path and steps % (path - 1):
            raise FewstepError(f"{path} states cannot be spaced evenly among {steps} steps")
        self.folder, self.student, self.count = Path(folder), student, count
        self.times = student.times(steps)
        self.kept = self.times[:: steps // (path - 1)] if path else None
        self.described = json.loads(json.dumps(described | {"count": count, "steps": steps, "path": path}))
        made, self.spent, self.seconds = self._found()
        self._open(made > 0)
        with tqdm(total=count, initial=made, desc="noise-image pairs", unit="pair", disable=made == count) as bar:
            while made < count:
                begun = time.monotonic()
                if begun > deadline:
                    raise Stopped(f"stopped at pair {made} of {count}: the same command goes on from {self.folder}")
                stop = min(made + CHUNK, count)
                self.spent += self._make(made, stop)
                self.seconds += time.monotonic() - begun
                self._save(stop)
                bar.update(stop - made)
                made = stop

    def _found(self) -> tuple[int, int, float]:
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            return 0, 0, 0.0
        try:
            stored = json.loads(manifest.read_text())
            made, spent, seconds, described = (stored[key] for key in ("made", "spent", "seconds", "described"))
            if not (isinstance(made, int) and 0 <= made <= described.get("count", made) and isinstance(spent, int)):
                raise ValueError(made)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FewstepError(f"{manifest} cannot be read: remove {self.folder} to make the pairs again") from error
        for key in self.described:
            if described.get(key) != self.described[key]:
                raise FewstepError(
                    f"the pairs in {self.folder} are of another {key} ({described.get(key)}, asked for "
                    f"{self.described[key]}): give another --pairs folder, or remove that one"
                )
        return made, spent, float(seconds)

    def _open(self, exists: bool) -> None:
        shape = self.student.shape
        shapes = {"noise": (self.count, *shape), "images": (self.count, *shape)}
        if self.student.classes is not None:
            shapes["labels"] = (self.count,)
        if self.kept is not None:
            shapes["path"] = (self.count, len(self.kept), *shape)
        try:
            make_folder(self.folder)
            for name, size in shapes.items():
                file, kind = self.folder / f"{name}.npy", np.dtype(np.int64 if name == "labels" else np.float32)
                if exists:
                    array = np.load(file, mmap_mode="r")  # which, unlike "r+", does not make a short file longer
                    if array.shape != size or array.dtype != kind:
                        raise ValueError(f"{file.name} holds {array.dtype} {array.shape}, not {kind} {size}")
                    array = np.load(file, mmap_mode="r+")
                else:
                    array = np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=size)
                    with open(file, "r+b") as allocated:  # a full disk is to be known now
                        os.posix_fallocate(allocated.fileno(), 0, file.stat().st_size)
                setattr(self, f"_{name}", array)
        except (OSError, ValueError) as error:
            raise FewstepError(
                f"the pairs in {self.folder} cannot be opened ({one_line(error)}): "
                "make room, or give another --pairs folder"
            ) from error

    def _make(self, start: int, stop: int) -> int:
        """Compute rows start to stop; returns the network evaluations it took."""
        student, schedule = self.student, self.student.denoiser.schedule
        noise = SeedNoise(range(FIRST_SEED + start, FIRST_SEED + stop), student.shape, student.device)
        classes = None
        if student.classes is not None:
            classes = noise.classes(student.classes, student.prior)
            self._labels[start:stop] = classes.cpu()
        eps = noise()
        first = eps * schedule.sigma(self.times[0])
        states = [first]
        stride = 1 if self.kept is None else (len(self.times) - 1) // (len(self.kept) - 1)

        def keep(index, time, x, x0):
            if self.kept is not None and (index + 1) % stride == 0:
                states.append(x)

        rows = {"pairs": 0}
        with torch.inference_mode(), RowCount({"pairs": [student.denoiser]}, rows):
            denoise = guided(student.denoiser, classes, 1.0)
            x = student.solver(denoise, first, self.times, callback=keep, **student.solver_options)
        self._noise[start:stop], self._images[start:stop] = eps.cpu(), x.cpu()
        if self.kept is not None:
            in_ve = [state / schedule.alpha(t).to(state) for state, t in zip(states, self.kept, strict=True)]
            self._path[start:stop] = torch.stack(in_ve, dim=1).cpu()
        return rows["pairs"]

    def _save(self, made: int) -> None:
        for name in ("noise", "images", "labels", "path"):
            if (array := getattr(self, f"_{name}", None)) is not None:
                array.flush()
        manifest = {"described": self.described, "made": made, "spent": self.spent, "seconds": round(self.seconds, 1)}
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    def rows(self, index: Tensor, device) -> PairRows:
        """The pairs of `index`."""
        chosen = index.cpu().numpy()
        names = {"noise": "_noise", "x0": "_images", "condition": "_labels", "path": "_path"}
        arrays = {key: getattr(self, name) for key, name in names.items() if hasattr(self, name)}
        return PairRows(**{key: torch.from_numpy(array[chosen]).to(device) for key, array in arrays.items()})


def shared_pairs(deadline: float, *arguments, **named) -> PairSet:
    """A PairSet for all processes: the first makes what is missing, the others wait for it and open what is there."""
    processes = PartialState()
    with processes.main_process_first():
        return PairSet(*arguments, **named, deadline=deadline if processes.is_main_process else -math.inf)  # type: ignore[misc]
