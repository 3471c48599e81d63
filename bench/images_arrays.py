"""Arrays of images in files: each reader gives (shape, name of its type, chunks); chunks(n) reads n images at a time.

Nothing in a file is executed, and none is in memory as a whole.
"""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from students.errors import FewstepError, one_line

ARRAY = "arr_0"  # as numpy.savez names the first array, and the evaluator of ADM reads it

Opened = tuple[tuple[int, ...], str, Callable[[int], Iterator]]


def open_npz(path: Path) -> Opened:
    """`arr_0` of an archive of numpy, unpacked chunk by chunk."""
    with _archive(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if ARRAY not in names:
            raise FewstepError(f"{path} has no {ARRAY}, but {', '.join(names) or 'nothing'}: save the images under it")
        with archive.open(f"{ARRAY}.npy") as member, _reading(path):
            shape, dtype = _header(member, path)

    def chunks(size: int) -> Iterator[np.ndarray]:
        with _archive(path) as archive, archive.open(f"{ARRAY}.npy") as member, _reading(path):
            _header(member, path)
            image = int(np.prod(shape[1:])) * dtype.itemsize
            for start in range(0, shape[0], size):
                n = min(size, shape[0] - start)
                content = member.read(n * image)
                yield np.frombuffer(content, dtype).reshape(n, *shape[1:]).astype(dtype.newbyteorder("="))

    return shape, dtype.name, chunks


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise FewstepError(f"{path} is no archive of numpy, or is cut short ({one_line(error)})") from error


def _header(member, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if fortran and len(shape) > 1:
        raise FewstepError(f"{path} holds an array in the order of Fortran: save numpy.ascontiguousarray of it")
    if dtype.hasobject:
        raise FewstepError(f"{path} holds objects, which could run code, and no numbers: save a plain array")
    return shape, dtype


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file leads to, as one error that names it."""
    try:
        yield
    except FewstepError:
        raise
    except Exception as error:  # numpy, torch and zipfile raise many kinds
        raise FewstepError(
            f"{path} holds no numbers that can be read without running code, or is cut short ({one_line(error)}): "
            "save a plain array or tensor"
        ) from error


def open_npy(path: Path) -> Opened:
    """An array of numpy, mapped into memory."""
    with _reading(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    return (
        array.shape,
        array.dtype.name,
        _slices(lambda part: np.array(array[part], array.dtype.newbyteorder("=")), array.shape),
    )


def open_torch(path: Path) -> Opened:
    """The one tensor that torch.save wrote, alone or in a dictionary, mapped into memory."""
    with _reading(path):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = {"": content} if torch.is_tensor(content) else content
    found = (
        {name: value for name, value in tensors.items() if torch.is_tensor(value)} if isinstance(tensors, dict) else {}
    )
    tensor = found[_only(list(found), path)]
    return tuple(tensor.shape), _name(tensor.dtype), _slices(lambda part: tensor[part].clone(), tensor.shape)


def open_safetensors(path: Path) -> Opened:
    """The one tensor of a safetensors file."""
    from safetensors import safe_open

    with _reading(path):
        file = safe_open(path, "pt")
        rows = file.get_slice(_only(list(file.keys()), path))
        shape = tuple(rows.get_shape())
        dtype = _name(rows[:1].dtype)
    return shape, dtype, _slices(lambda part: rows[part], shape)


def _only(names: list[str], path: Path) -> str:
    if len(names) != 1:
        what = f"{len(names)} tensors ({', '.join(map(repr, names[:5]))})" if names else "no tensor"
        raise FewstepError(f"{path} holds {what}: save the one of the images, alone")
    return names[0]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _slices(rows: Callable[[slice], object], shape) -> Callable[[int], Iterator]:
    def chunks(size: int) -> Iterator:
        for start in range(0, shape[0], size):
            yield rows(slice(start, start + size))

    return chunks
