"""The content of any object as a hash: tensors, arrays, and whatever else it holds, in this process or another.

A path or a text that names a file stands for the file's content. Of functions and classes that are nobody's installed
package, also what they refer to counts: variables of their module, constants, files that they name.
"""

import enum
import functools
import hashlib
import logging
import sys
import sysconfig
import threading
import types
from collections.abc import Mapping
from pathlib import Path, PurePath

import numpy as np
import torch

PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice, PurePath, type(...))
NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)  # code_hash has their code
FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property)
EMPTY = (type(threading.Lock()), type(threading.RLock()), types.MemberDescriptorType, types.GetSetDescriptorType)
OPAQUE = (torch.device, torch.dtype, torch.layout, torch.memory_format, torch.Size, np.dtype)  # told by their repr


class Unknown(Exception):
    """Something whose content cannot be seen; its argument says what."""


def content_hash(thing) -> str:
    """16 hex digits over an object's content, attributes of attributes included; raises Unknown.

    Of installed functions and classes their names count, of others also what they refer to, a closure or a partial
    holds; of a torch module all its attributes, so also what no state_dict has.
    """
    sha = hashlib.sha256()
    _add(thing, sha, {})
    return sha.hexdigest()[:16]


def _add(thing, sha, seen: dict) -> None:
    sha.update(f"<{type(thing).__module__}.{type(thing).__qualname__}>".encode())
    if isinstance(thing, PLAIN + OPAQUE):
        sha.update(repr(thing).encode())
        if isinstance(thing, str | PurePath):
            _add_file(thing, sha)
    elif isinstance(thing, EMPTY):
        pass
    elif isinstance(thing, enum.Enum | logging.Logger):
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
        _add([_held(cell) for cell in getattr(thing, "__closure__", None) or ()], sha, seen)
        _add(getattr(thing, "__defaults__", None), sha, seen)
        _add(getattr(thing, "__kwdefaults__", None), sha, seen)
        if isinstance(thing, types.FunctionType) and _is_own(thing.__module__):
            constants = thing.__code__.co_consts[thing.__doc__ is not None :]
            _add_code(thing.__code__, constants, thing.__globals__, sha, seen)
        elif isinstance(thing, type) and _is_own(thing.__module__):
            _add_class(thing, sha, seen)
    else:
        _add_attributes(thing, sha, seen)


def _add_file(name: str | PurePath, sha) -> None:
    """The content of the file that a text or a path names, if there is one."""
    try:
        if not Path(name).is_file():
            return
    except OSError:  # too long for a name
        return
    try:
        with open(name, "rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    except OSError:
        raise Unknown(f"the name of a file that cannot be read, {str(name)!r}") from None


def _is_own(module: str) -> bool:
    """Whether a module is somebody's own: neither of this project nor installed, where code_hash has all there is."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.partition(".")[0] in ("students", "bench"):
        return False
    return not any(Path(file).is_relative_to(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib"))


def _add_code(code: types.CodeType, constants: tuple, names: dict, sha, seen: dict) -> None:
    """What a function does, its constants, and the variables of its module and of others that it refers to."""
    sha.update(code.co_code)
    for constant in constants:
        if isinstance(constant, types.CodeType):
            _add_code(constant, constant.co_consts, names, sha, seen)
        else:
            _add(constant, sha, seen)
    for name in code.co_names:
        value = names.get(name)
        sha.update(name.encode())
        _add(value, sha, seen)
        if isinstance(value, types.ModuleType) and _is_own(value.__name__):
            _add({key: vars(value)[key] for key in code.co_names if key in vars(value)}, sha, seen)


def _add_class(cls: type, sha, seen: dict) -> None:
    """Its methods and attributes, and those of its bases that are somebody's own."""
    for base in cls.__mro__:
        if not _is_own(base.__module__):
            continue
        for name, value in vars(base).items():
            if isinstance(value, FUNCTIONS) or not (name.startswith("__") or name == "_abc_impl"):
                sha.update(name.encode())
                for part in _functions(value):
                    _add(part, sha, seen)


def _functions(value) -> list:
    """What a method is made of; any other value is itself."""
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, functools.cached_property):
        return [value.func]
    return [value]


def _held(cell: types.CellType):
    """What a closure's cell holds; nothing yet, if its variable was never set."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _add_attributes(thing, sha, seen: dict) -> None:
    _add(type(thing), sha, seen)
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
