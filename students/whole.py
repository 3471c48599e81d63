"""Whole numbers as people write them: lists, ranges, numpy arrays and tensors of any integer type."""

import numpy as np
import torch
from torch import Tensor

from students.errors import FewstepError


def whole_numbers(given, what: str) -> Tensor:
    """(N,) int64 of whole numbers from 0 to 2^63 - 1, on the device of a tensor, else on the CPU.

    what: how an error calls them, "seeds". Raises FewstepError for anything else: truth values, fractions, text,
    sets, nested lists.
    """
    right = f"{what} must be a sequence of non-negative whole numbers below 2^63, got"
    try:
        values = given.detach().cpu().numpy() if torch.is_tensor(given) else np.asarray(given)
    except (TypeError, ValueError, OverflowError) as error:
        raise FewstepError(f"{right} {given!r:.60}") from error
    if values.ndim != 1:
        raise FewstepError(f"{right} shape {values.shape}" if values.ndim else f"{right} {given!r:.60}")
    if not values.size:
        values = values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise FewstepError(f"{right} {_kind(values)}")
    if values.size and (values.min() < 0 or values.max() >= 2**63):
        raise FewstepError(f"{right} {values.min()} to {values.max()}")
    device = given.device if torch.is_tensor(given) else "cpu"
    return torch.from_numpy(values.astype(np.int64)).to(device)


def _kind(values: np.ndarray) -> str:
    return {"b": "truth values", "f": "fractions", "U": "text"}.get(values.dtype.kind, f"{values[0]!r:.40}")
