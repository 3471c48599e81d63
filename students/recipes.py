"""Recipes of the teachers that ship: how each is built and trained. Importing this module imports no torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """How a teacher is built (`shape` to `sigma_data`), sampled by default (`grid`) and trained (the rest)."""

    data: str
    shape: tuple[int, int, int]
    classes: int | None
    network: dict
    schedule: str = "vp_linear"
    prediction: str = "edm"
    sigma_data: float = 0.5
    grid: str = "log_snr"
    steps: int = 8_000
    batch_size: int = 128
    lr: float = 2e-3
    p_mean: float = -0.8
    p_std: float = 1.4
    label_dropout: float = 0.1


RECIPES = {
    "digits": Recipe(
        data="digits",
        shape=(1, 8, 8),
        classes=10,
        network={"channels": (24, 32), "patch": 2, "attention": True, "dropout": 0.1},
        sigma_data=0.75,
        # best of four for DDIM, Heun, DPM-Solver++ and UniPC on seeds 1000000 and up, which no block uses
        grid="quadratic",
    ),
}
EXACT = {"gaussians": "quadratic"}  # exact denoisers (students/data.py), each with its grid


def teacher_weights(name: str) -> Path:
    """Where the weights of a teacher that ships lie; its record is beside them."""
    return Path(__file__).parent / "weights" / name / "teacher.safetensors"
