"""Writing files whole or not at all: under a temporary name, flushed, then renamed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make a folder, and those it lies in; raises OSError, which names a file that is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        raise NotADirectoryError(error.errno, f"{there} is no folder") from error


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file, in a folder that is made if it is missing; raises OSError, and leaves what was there then."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    make_folder(path.parent)
    try:
        write_flushed(part, content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder by `write(temporary folder)`, in place of one that is there; raises what that raises."""
    folder = Path(folder)
    part = folder.with_name(f".part-{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        write(part)
        for path in part.rglob("*"):
            if path.is_file():
                flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush(path: Path) -> None:
    """Wait until the disk has a file or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
