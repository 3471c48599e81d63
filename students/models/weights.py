"""Our own weights: a safetensors file and, beside it, a JSON record that says what they are.

The record carries the sha256 of the weights file, so that weights which are cut short, altered or those of
another run are noticed before they give a number. Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from students.errors import WeightsError
from students.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

RESTORE = "restore the two files together, or train the weights again"


def record_path(path: Path) -> Path:
    """`digits.safetensors` -> `digits.json`."""
    return Path(path).with_suffix(".json")


def save_weights(path: Path, state_dict: dict[str, Tensor], record: dict, half: bool = True) -> None:
    """Write weights and their record, each to a temporary name, flushed and renamed.

    With `half`, floating-point tensors are stored as float16. Raises WeightsError for values that are not finite in
    what is stored, before anything is written, and where the disk is full.
    """
    import torch
    from safetensors.torch import save

    stored = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float16 if half else tensor.dtype)
            if not tensor.isfinite().all():
                raise WeightsError(
                    f"weights {name!r} for {path} are not finite in {tensor.dtype}: "
                    "check that training did not diverge, or save with half=False"
                )
        stored[name] = tensor.contiguous().clone()
    content = save(stored)
    path = Path(path)
    text = json.dumps(record | {"sha256": hashlib.sha256(content).hexdigest()}, indent=1) + "\n"
    try:
        write_atomically(path, content)
        write_atomically(record_path(path), text.encode())
    except OSError as error:
        raise WeightsError(f"cannot write {path} ({error.strerror}): make room, or give another folder") from error


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The weights, floating-point tensors as float32, and their record.

    Raises WeightsError if either file is missing, cut short, altered, or not what its name says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content, record = _verified(path)
    try:
        state_dict = load(content)
    except SafetensorError as error:
        raise WeightsError(f"weights {path} are no safetensors file ({error}): {RESTORE}") from error
    return {name: t.float() if t.is_floating_point() else t for name, t in state_dict.items()}, record


def verified_hash(path: Path) -> str:
    """The sha256 of the weights file, checked against its record; raises WeightsError like `load_weights`."""
    return _verified(path)[1]["sha256"]


def state_hash(module: nn.Module) -> str:
    """16 hex digits over a module's parameters and buffers."""
    import torch

    sha = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def load_into(module: nn.Module, state_dict: dict[str, Tensor], path: Path) -> None:
    """Load every parameter and buffer; raises WeightsError naming the first that does not fit `module`.

    A module on the meta device gets memory on the CPU, once all of them fit.
    """
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in state_dict:
            problem = f"lack {name!r}"
        elif state_dict[name].shape != tensor.shape:
            problem = f"have {name!r} of shape {tuple(state_dict[name].shape)}, not {tuple(tensor.shape)}"
        else:
            continue
        raise _misfit(path, module, problem)
    if surplus := [name for name in state_dict if name not in expected]:
        raise _misfit(path, module, f"hold {surplus[0]!r}, which it has not")
    if any(tensor.is_meta for tensor in expected.values()):
        module.to_empty(device="cpu")
    module.load_state_dict(state_dict)


def _misfit(path: Path, module: nn.Module, problem: str) -> WeightsError:
    return WeightsError(
        f"weights {path} do not fit {type(module).__name__}: they {problem}; "
        "build the network they were trained with, or train the weights again"
    )


def _verified(path: Path) -> tuple[bytes, dict]:
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"no weights at {path} ({error.strerror}): {RESTORE}") from error
    where = record_path(path)
    try:
        record = json.loads(where.read_text())
        expected = record["sha256"]
    except OSError as error:
        raise WeightsError(f"weights {path} lack their record {where.name} ({error.strerror}): {RESTORE}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{where} is no record of weights (JSON with a sha256): {RESTORE}") from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise WeightsError(f"weights {path} are cut short or not those of {where.name} (sha256 differs): {RESTORE}")
    return content, record
