"""The content of any object as a hash: tensors, arrays, and whatever else it holds, in this process or another."""

import enum
import hashlib
import types
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np
import torch

PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice, PurePath)
NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # code_hash has their code
OPAQUE = (torch.device, torch.dtype, torch.layout, torch.memory_format, torch.Size, np.dtype)  # told by their repr


class Unknown(Exception):
    """Something whose content cannot be seen; its argument says what."""


def content_hash(thing) -> str:
    """16 hex digits over an object's content, attributes of attributes included; raises Unknown.

    Of functions and classes their names count, and what a closure or a partial holds; of a torch module all its
    attributes, so also what no state_dict has.
    """
    sha = hashlib.sha256()
    _add(thing, sha, {})
    return sha.hexdigest()[:16]


def _add(thing, sha, seen: dict) -> None:
    sha.update(f"<{type(thing).__module__}.{type(thing).__qualname__}>".encode())
    if isinstance(thing, PLAIN + OPAQUE):
        sha.update(repr(thing).encode())
    elif isinstance(thing, enum.Enum):
        sha.update(thing.name.encode())
    elif id(thing) in seen:
        sha.update(f"{seen[id(thing)][0]}".encode())
    else:
        seen[id(thing)] = len(seen), thing  # kept, so that no other gets its id
        _add_once(thing, sha, seen)


def _add_once(thing, sha, seen: dict) -> None:
    if torch.is_tensor(thing):
        rows = thing.detach().cpu().contiguous()
        sha.update(f"{rows.dtype} {tuple(rows.shape)}".encode())
        sha.update(rows.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        sha.update(f"{thing.dtype} {thing.shape}".encode())
        sha.update(np.ascontiguousarray(thing).tobytes())
    elif isinstance(thing, np.generic):
        sha.update(repr(thing).encode())
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            _add(key, sha, seen)
            _add(value, sha, seen)
    elif isinstance(thing, list | tuple | np.ndarray):
        for value in thing:
            _add(value, sha, seen)
    elif isinstance(thing, set | frozenset):
        for digest in sorted(map(content_hash, thing)):
            sha.update(digest.encode())
    elif isinstance(thing, types.MethodType):
        _add(thing.__func__, sha, seen)
        _add(thing.__self__, sha, seen)
    elif isinstance(thing, NAMED):
        sha.update(f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing.__name__)}".encode())
        _add([cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()], sha, seen)
        _add(getattr(thing, "__defaults__", None), sha, seen)
    else:
        _add_attributes(thing, sha, seen)


def _add_attributes(thing, sha, seen: dict) -> None:
    slots = [name for cls in type(thing).__mro__ for name in _slots(cls) if hasattr(thing, name)]
    if not (slots or hasattr(thing, "__dict__")):
        raise Unknown(f"a {type(thing).__module__}.{type(thing).__qualname__}")
    for parts in ("func", "args", "keywords") if type(thing).__name__ == "partial" else ():
        _add(getattr(thing, parts), sha, seen)
    for name, value in [*((name, getattr(thing, name)) for name in slots), *getattr(thing, "__dict__", {}).items()]:
        sha.update(name.encode())
        _add(value, sha, seen)


def _slots(cls: type) -> list[str]:
    names = cls.__dict__.get("__slots__", ())
    return [name for name in ([names] if isinstance(names, str) else names) if name not in ("__dict__", "__weakref__")]
