"""Pickles, and files of `torch.save`, read without running anything in them: their modules become plain records.

Each module of EDM's pickles is written as a call

    torch_utils.persistence._reconstruct_persistent_obj({type, version, module_src, class_name, state})

which in the original project executes `module_src`. Here the call records `class_name` and `state`, the globals that
tensors and plain values need are listed, and any other is refused by name.
"""

import collections
import io
import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from students.errors import FewstepError, WeightsError, one_line, reading
from students.models.cards import INDEX

ZIP = b"PK\x03\x04"  # what torch.save writes
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save wrote before version 1.6
PICKLE = b"\x80"  # how every pickle of protocol 2 or later begins
PERSISTENCE = "torch_utils.persistence"
CODE = re.compile(r"Unsupported \w+: \w+ [\w.]+")


def unpickle(path: Path):
    """The content of a pickle; raises WeightsError if it is cut short, FewstepError naming the first global that could
    run code."""
    if _start(path)[:1] not in (b"", PICKLE):
        raise WeightsError(f"{path} is of another kind, neither pickle nor safetensors: take a checkpoint")
    try:
        with open(path, "rb") as file:
            return _unpickler(path)(file).load()
    except (EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} is damaged or cut short ({one_line(error)}): get the file again") from error


def load_tensors(path: Path):
    """The content of a file of `torch.save`; raises WeightsError if it is damaged or would have to run code."""
    if not saved_by_torch(path):
        raise WeightsError(f"{path} is no state dict that torch.save has written: get the file again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read {path} ({error.strerror}): get the file again") from error
    except Exception as error:  # torch.load raises many kinds, all about the same file
        reason = " ".join(str(error).split())
        if PERSISTENCE in reason and _start(path).startswith(ZIP):  # a training state of EDM
            return _load_records(path)
        if code := CODE.search(reason):
            problem = f"is no state dict that can be read without running code ({code[0]}): save the state dict alone"
            raise WeightsError(f"{path} {problem}") from error
        if "Weights only" in reason:
            raise WeightsError(f"{path} is damaged, or cannot be read without running code: get it again") from error
        raise WeightsError(f"{path} is damaged or cut short ({reason[:200]}): get the file again") from error


def read_tensors(path: Path):
    """The same of a safetensors file, or of the index of several, too."""
    if path.name.endswith(".json"):
        return _of_index(path)
    return load_tensors(path) if saved_by_torch(path) else _load_safetensors(path)


def holds_tensors(path: Path) -> bool:
    """Whether `read_tensors` is for this file; raises WeightsError if there is none."""
    return path.name.endswith(INDEX) or saved_by_torch(path) or _start(path)[8:9] == b"{"


def saved_by_torch(path: Path) -> bool:
    return _start(path).startswith(ZIP) or _start(path) == LEGACY


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(len(LEGACY))
    except OSError as error:
        raise WeightsError(f"cannot read {path} ({error.strerror}): name the checkpoint to convert") from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or cut short ({one_line(error)}): get the file again") from error


def _of_index(path: Path) -> dict[str, Tensor]:
    """The tensors of the files that an index, `{"weight_map": {name: file}}`, lists."""
    with reading(path, "index of weights"):
        names = set(json.loads(path.read_text())["weight_map"].values())
    state: dict[str, Tensor] = {}
    for name in sorted(names):
        if Path(name).name != name or not (path.parent / name).is_file():
            raise WeightsError(f"{path} lists {name!r}, which is not there: get the whole folder again")
        state |= read_tensors(path.parent / name)
    return state


def _load_records(path: Path):
    unpickler = _unpickler(path)
    reader = SimpleNamespace(__name__=__name__, Unpickler=unpickler, load=lambda file: unpickler(file).load())
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)


class Recorded:
    """Stands for an object of the pickle: the name of its class, and its attributes. Runs nothing."""

    class_name = ""
    _modules: dict
    _parameters: dict
    _buffers: dict


def _reconstruct(meta: dict) -> Recorded:
    recorded = Recorded()
    recorded.__dict__.update(meta["state"] or {})
    recorded.class_name = meta["class_name"]
    return recorded


def _load_storage(content: bytes):
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("a storage that is none, or would run code") from error


def _rebuild_tensor(storage, offset, size, stride, *rest) -> Tensor:
    flat = torch.tensor([], dtype=storage.dtype).set_(storage)
    return flat.as_strided(size, stride, offset)  # raises if it reaches beyond the storage


def _rebuild_parameter(tensor: Tensor, *rest) -> Tensor:
    return tensor


class _NumpyType:
    """Stands for numpy.dtype."""

    def __init__(self, name: str, *rest):
        self.name = name

    def __setstate__(self, state: tuple):
        self.order = state[1]

    def plain(self) -> np.dtype:
        """The type itself; raises ValueError for one that is no number."""
        dtype = np.dtype(self.name).newbyteorder(self.order)
        if dtype.kind not in "buif":
            raise ValueError(f"an array of {dtype}")
        return dtype


class NumpyArray:
    """Stands for numpy.ndarray, whose numbers are `values`."""

    values: np.ndarray

    def __setstate__(self, state: tuple):
        _, shape, kind, fortran, content = state
        self.values = _numbers(content, kind, shape, "F" if fortran else "C")


def _numbers(content: bytes, kind: _NumpyType, shape: tuple, order: str = "C") -> np.ndarray:
    return np.frombuffer(content, kind.plain()).reshape(shape, order=order)  # type: ignore[call-overload]


def _numpy_buffer(content: bytes, kind: _NumpyType, shape: tuple, order: str) -> NumpyArray:
    """An array as protocol 5 writes it."""
    array = NumpyArray()
    array.values = _numbers(content, kind, shape, order)
    return array


def _numpy_scalar(kind: _NumpyType, content: bytes):
    return np.frombuffer(content, kind.order + kind.name)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as older protocols write them."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


class _EasyDict(dict):
    """Stands for dnnlib.util.EasyDict."""


ALLOWED = {
    "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct,
    "torch.storage._load_from_bytes": _load_storage,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": lambda sizes: tuple(sizes),
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": _encode,
    "builtins.set": set,
    "__builtin__.set": set,
    "dnnlib.util.EasyDict": _EasyDict,
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.ndarray": NumpyArray,
} | {
    f"numpy.{core}.{name}": make
    for core in ("core", "_core")
    for name, make in {"multiarray._reconstruct": lambda *_: NumpyArray(), "numeric._frombuffer": _numpy_buffer}.items()
}
# Classes of modules that are pickled by name: torch's containers, and the networks of SFD.
RECORDED = {"torch.nn.modules.container": ("ModuleDict", "ModuleList", "Sequential")} | {
    "models.networks_edm": (
        *("EDMPrecond", "SongUNet", "DhariwalUNet", "UNetBlock", "Conv2d", "Linear", "GroupNorm"),
        *("PositionalEmbedding", "FourierEmbedding"),
    )
}


def _unpickler(path: Path) -> type[pickle.Unpickler]:
    """An unpickler that names `path` in what it refuses."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str):
            if name in RECORDED.get(module, ()):
                return type(name, (Recorded,), {"class_name": name})
            found = ALLOWED.get(f"{module}.{name}")
            if found is None:
                raise FewstepError(
                    f"{path} asks for {module}.{name}, which could run code, so it is not read: "
                    "if you trust its source, convert it with --trust-pickle"
                )
            # made anew for each pickle, which may set attributes of what it is given
            if isinstance(found, type):
                return type(name, (found,), {})
            return lambda *arguments: found(*arguments)  # type: ignore[operator]

    return Unpickler
