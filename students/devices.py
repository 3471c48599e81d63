"""Devices by name."""

import torch

from students.errors import FewstepError


def check_device(name: str) -> torch.device:
    """The device of that name, or for "auto" the GPU if there is one; raises FewstepError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise FewstepError(f"device {name!r} is not there; this machine has {', '.join(there)}") from error
    return device
