"""Checkpoints of a training run: what a step changes, in files small enough to be moved one by one.

    <state>/step-00001200/part-000.safetensors ... checkpoint.json

A checkpoint is written under a temporary name, flushed and renamed before the one before it is removed, so that
a crash or a full disk leaves a valid one.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save
from torch import Tensor

from students.errors import FewstepError, WeightsError
from students.files import make_folder, write_flushed

PART_BYTES = 15 * 2**20 - 2**16  # with room for the header of a file of at most 15 MiB
MANIFEST = "checkpoint.json"

_held: dict[Path, FileLock] = {}


def save_checkpoint(state: Path, config: dict | None, tensors: dict[str, Tensor], progress: dict) -> None:
    """Write a checkpoint and remove older ones; progress: {"step": ..., ...} in plain JSON.

    Raises FewstepError where the disk is full or the folder cannot be written.
    """
    name = f"step-{progress['step']:08d}"
    part = state / f".{name}.{os.getpid()}.part"
    _remove_unfinished(state)
    try:
        part.mkdir(parents=True)
        pieces, split = _pieces(tensors)
        hashes = {}
        for index, group in enumerate(_groups(pieces)):
            content = save({key: pieces[key].detach().cpu().contiguous().clone() for key in group})
            hashes[f"part-{index:03d}.safetensors"] = hashlib.sha256(content).hexdigest()
            write_flushed(part / f"part-{index:03d}.safetensors", content)
        manifest = {"config": config, "progress": progress, "split": split, "sha256": hashes}
        write_flushed(part / MANIFEST, json.dumps(manifest, indent=1).encode())
        if (state / name).exists():
            shutil.rmtree(state / name)
        part.rename(state / name)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise FewstepError(
            f"cannot write a checkpoint in {state} ({error.strerror}): make room or give another folder; "
            "the checkpoint before it is kept, and the same command goes on from there"
        ) from error
    for older in _checkpoints(state)[:-1]:
        shutil.rmtree(older, ignore_errors=True)


def check_folder(folder: Path, option: str) -> None:
    """Make the folder that an option names if it is missing; raises FewstepError if nothing can be written in it."""
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FewstepError(f"cannot write in {folder} ({error.strerror}): give another {option}") from error


def hold(state: Path) -> None:
    """Keep other processes out of the folder until this one ends; raises FewstepError if one is at work in it."""
    path = _lock(state)
    if path not in _held:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FewstepError(
                f"another training is at work in {state}: wait for it, or give another --state folder"
            ) from None
        _held[path] = lock


def load_checkpoint(state: Path, config: dict | None) -> tuple[dict[str, Tensor], dict] | None:
    """The tensors and progress of the newest checkpoint, or None where there is none.

    Raises FewstepError for a checkpoint of another configuration, WeightsError for one that is cut short.
    """
    found = _checkpoints(state)
    if not found:
        return None
    folder = found[-1]
    again = f"restore it, or remove {state} to start again"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        stored, progress, hashes = (manifest[key] for key in ("config", "progress", "sha256"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"checkpoint {folder} has no readable {MANIFEST}: {again}") from error
    if difference := _difference(stored, json.loads(json.dumps(config))):
        raise FewstepError(
            f"checkpoint {folder} is of another configuration ({difference}): "
            f"give another --state folder, or remove {state} to start again"
        )
    tensors: dict[str, Tensor] = {}
    for name, expected in hashes.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise WeightsError(f"checkpoint {folder} lacks {name}: {again}") from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise WeightsError(f"checkpoint {folder} is cut short or altered ({name}): {again}")
        tensors |= load(content)
    for name, (count, shape) in manifest.get("split", {}).items():
        tensors[name] = torch.cat([tensors.pop(_piece(name, i)) for i in range(count)]).reshape(shape)
    return tensors, progress


def remove_checkpoints(state: Path) -> None:
    """Remove what `save_checkpoint` and `hold` wrote, and the folder if nothing else is in it."""
    for folder in _checkpoints(state):
        shutil.rmtree(folder)
    _remove_unfinished(state)
    if state.is_dir() and not any(state.iterdir()):
        state.rmdir()
    if lock := _held.pop(_lock(state), None):
        lock.release()
        _lock(state).unlink(missing_ok=True)


def _lock(state: Path) -> Path:
    return state.resolve().with_name(f".{state.name}.lock")


def _checkpoints(state: Path) -> list[Path]:
    return sorted(state.glob("step-*"))


def _remove_unfinished(state: Path) -> None:
    """Remove what runs that were killed while writing have left."""
    for part in state.glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)


def _pieces(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[int, list[int]]]]:
    """The tensors, those too large for a file cut into flat pieces, and of these the number of pieces and the shape."""
    pieces, split = {}, {}
    for name, tensor in tensors.items():
        if tensor.nbytes <= PART_BYTES:
            pieces[name] = tensor
            continue
        cut = tensor.flatten().split(PART_BYTES // tensor.element_size())
        pieces |= {_piece(name, i): piece for i, piece in enumerate(cut)}
        split[name] = len(cut), list(tensor.shape)
    return pieces, split


def _piece(name: str, index: int) -> str:
    return f"{name}|{index}"


def _groups(tensors: dict[str, Tensor]) -> list[list[str]]:
    """Names in order, cut where a file would grow too large."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > PART_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes + len(name) + 100  # its entry in the header
    return groups


def _difference(stored, asked, path: str = "") -> str:
    """The first key whose value differs, as `lr: 0.001 there, 0.002 asked`; empty if there is none."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in [*stored, *(key for key in asked if key not in stored)]:
            if found := _difference(stored.get(key), asked.get(key), f"{path}.{key}" if path else str(key)):
                return found
        return ""
    return "" if stored == asked else f"{path or 'config'}: {stored!r} there, {asked!r} asked"
