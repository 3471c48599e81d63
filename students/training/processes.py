"""Training in one process or in several: devices, the end by the clock, and who writes."""

from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from students.devices import check_device
from students.errors import FewstepError, Stopped
from students.models.weights import save_weights
from students.training.checkpoint import check_folder, remove_checkpoints

LONGEST_WAIT = timedelta(hours=12)  # of a process for another, as for the one that makes noise-image pairs


def stopped(what: str, record: dict, state: Path | None, otherwise: str = "") -> Stopped:
    """`progressive stopped at step 10 of 100: the same command goes on from run/train/...`"""
    on = f"the same command goes on from {state}" if state else "nothing was kept, as there is no --state folder"
    return Stopped(f"{what} stopped at step {record['steps']} of {record['planned_steps']}: {on}{otherwise}")


def check_time_limit(seconds: float) -> None:
    """Raise FewstepError for what is no number of seconds."""
    if not seconds >= 0:
        raise FewstepError(f"--time-limit must be a number of seconds of at least 0, got {seconds:g}")


def own_device(name) -> torch.device:
    """The device asked for; of several processes, each has its own GPU. Raises FewstepError if it is not there."""
    checked = check_device(name)
    processes = PartialState(cpu=checked.type == "cpu", timeout=LONGEST_WAIT)
    return processes.device if processes.num_processes > 1 else checked


def is_first() -> bool:
    """Whether this is the only process, or the first of several."""
    return PartialState().is_main_process


def describe_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def weights_file(out: Path | None, default: Path, what: str) -> Path:
    """Where the weights of `what` go: `out`, or the default; raises FewstepError for what cannot be such a file."""
    path = out or default
    if path.suffix != ".safetensors" or path.is_dir():
        raise FewstepError(f"--out of {what} must be a file that ends in .safetensors, got {path}")
    check_folder(path.parent, "--out file")
    return path


def write_weights(weights: dict[Path, tuple[nn.Module, dict]], states: list[Path]) -> list[Path]:
    """Let the first process write weights and records by path, then remove what the training kept to go on from.

    Returns the paths, in all processes, once they are there.
    """
    processes = PartialState()
    processes.wait_for_everyone()  # a late one may still be about to read what is removed here
    if processes.is_main_process:
        for path, (module, record) in weights.items():
            save_weights(path, module.state_dict(), record)
        for state in states:
            remove_checkpoints(state)
    processes.wait_for_everyone()
    return list(weights)
