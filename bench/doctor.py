"""What is installed, which device, which weights and data are present, and what each missing piece would need."""

import importlib.util
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIRED = (
    "torch", "torchvision", "diffusers", "torch-fidelity", "open-clip-torch", "lpips", "pandas", "matplotlib",
    "pyyaml", "scikit-learn", "scipy", "safetensors", "tqdm", "filelock", "torchode",
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

    lines.append("weights and data")
    for what, path, fix in _shipped():
        problem = _problem(path)
        sound &= problem is None
        lines.append(_line(what, problem or "present, hash as recorded", problem is None, fix))
    digits = importlib.util.find_spec("sklearn") is not None
    lines.append(_line("digits (scikit-learn)", "present" if digits else "missing", digits, "pip install scikit-learn"))
    lines.append(_line("gaussians", "exact, nothing to load", True, ""))

    free = shutil.disk_usage(Path()).free / 2**30
    lines.append(f"disk: {free:.0f} GiB free in the current folder")
    lines.append("all tasks can run" if sound else "something is missing: see the lines marked with !")
    return lines, sound


def _line(name: str, state: str, good: bool, fix: str) -> str:
    return f"  {' ' if good else '!'} {name:<26}{state}" + ("" if good else f"; {fix}")


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


def _shipped() -> list[tuple[str, Path, str]]:
    from bench.measure import EXTRACTORS
    from students.recipes import RECIPES, teacher_weights

    teachers = [
        (f"teacher of {name}", teacher_weights(name), f"restore it or python -m students train teacher --task {name}")
        for name in RECIPES
    ]
    extractors = [
        (f"extractor {name}", extractor.weights, f"restore it or python -m {extractor.module}")
        for name, extractor in EXTRACTORS.items()
    ]
    return teachers + extractors


def _problem(path: Path) -> str | None:
    from students.checkpoints.safetensors_file import verified_hash
    from students.errors import WeightsError

    try:
        verified_hash(path)
    except WeightsError as error:
        return str(error)
    return None
