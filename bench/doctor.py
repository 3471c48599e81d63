"""What is installed, which device, which weights and data are present, and what each missing piece would need."""

import importlib.util
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from students.datafiles import VARIABLE, data_root

REQUIRED = (
    "torch", "torchvision", "diffusers", "torch-fidelity", "open-clip-torch", "lpips", "pandas", "matplotlib", "pyyaml",
    "numpy", "pillow", "scikit-learn", "scipy", "safetensors", "tqdm", "threadpoolctl", "filelock", "torchode", "timm",
    "accelerate",
)  # fmt: skip
OPTIONAL = {"torchsde": "diffusers:DPMSolverSDEScheduler"}


def report() -> tuple[list[str], bool]:
    """The lines to print, and whether everything that the shipped tasks need is there."""
    lines, sound = [f"python {platform.python_version()} at {sys.executable}"], True

    lines.append("packages")
    for name in REQUIRED:
        found = _version(name)
        sound &= found is not None
        lines.append(_line(name, found or "missing", found is not None, f"pip install {name}"))
    for name, use in OPTIONAL.items():
        found = _version(name)
        lines.append(_line(name, found or f"not installed (only for {use})", True, ""))

    lines.append("devices")
    lines += _devices()

    lines.append("weights and data that ship")
    for what, problem in _shipped():
        sound &= not problem
        lines.append(_line(what, problem or "present, hash as recorded", not problem, ""))
    digits = importlib.util.find_spec("sklearn") is not None
    lines.append(_line("digits (scikit-learn)", "present" if digits else "missing", digits, "pip install scikit-learn"))
    lines.append(_line("gaussians", "exact, nothing to load", True, ""))

    lines.append(f"data and weights that do not ship, below {data_root()} (--data-root or {VARIABLE})")
    for what, problem in _not_shipped() if _version("torch") else []:
        lines.append(_line(what, problem or "present", True, ""))

    free = shutil.disk_usage(Path()).free / 2**30
    lines.append(f"disk: {free:.0f} GiB free in the current folder")
    lines.append("everything that ships is there" if sound else "something is missing: see the lines marked with !")
    return lines, sound


def _line(name: str, state: str, good: bool, fix: str) -> str:
    return f"  {' ' if good else '!'} {name:<30}{state}" + ("" if good or not fix else f"; {fix}")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    if _version("torch") is None:
        return ["  ! torch is missing: no device"]
    import torch

    lines = [f"    cpu ({torch.get_num_threads()} threads)"]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        lines.append(f"    cuda:{i} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    if not torch.cuda.is_available():
        lines.append("    no GPU found: --device cuda needs one, with a CUDA build of torch")
    return lines


def _shipped() -> list[tuple[str, str]]:
    """What ships, and what is wrong with it and the remedy, if anything is."""
    from bench.measure.extractors import EXTRACTORS
    from students.models.teachers import TEACHERS, teacher_weights

    teachers = [
        (f"teacher of {name}", _problem(teacher_weights(name)))
        for name, entry in TEACHERS.items()
        if entry.recipe and entry.ships
    ]
    extractors = [(f"extractor {name}", entry.problem()) for name, entry in EXTRACTORS.items() if entry.ships]
    return teachers + extractors


def _not_shipped() -> list[tuple[str, str]]:
    """What is looked for below the data root, and what to do where it is missing."""
    from bench.measure.extractors import EXTRACTORS
    from students.data import cifar10_problem
    from students.models.cards import all_cards
    from students.training.perceptual import lpips_problem

    found = [("CIFAR-10", cifar10_problem()), ("LPIPS (squeeze)", lpips_problem())]
    found += [(f"extractor {name}", entry.problem()) for name, entry in EXTRACTORS.items() if not entry.ships]
    cards = list(all_cards())
    present = [card.spec for card in cards if not any(file.problem() for file in card.data_files())]
    hint = "python -m students list names them, a run says what to put where"
    return [*found, (f"{len(cards)} public checkpoints", f"present: {', '.join(present) or 'none'}; {hint}")]


def _problem(path: Path) -> str:
    from students.errors import WeightsError
    from students.models.weights import verified_hash

    try:
        verified_hash(path)
    except WeightsError as error:
        return str(error)
    return ""
