"""Recipes of the teachers that ship: how each is built and trained. Importing this module imports no torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """How a teacher is built (`shape` to `sigma_data`), sampled by default (`grid`) and trained (the rest).

    flips: mirror half of the images. precision: "bfloat16" trains under autocast.
    """

    data: str
    shape: tuple[int, ...]
    classes: int | None
    network: dict  # arguments of the UNet, or for vectors of the MLP
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
    ema_decay: float = 0.999
    flips: bool = False
    precision: str = "float32"


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
    "cifar10-cond": Recipe(  # for a GPU
        data="cifar10",
        shape=(3, 32, 32),
        classes=10,
        network={"channels": (64, 96, 128), "attention": True},
        schedule="ve",
        grid="polynomial",
        steps=40_000,
        batch_size=512,
        lr=1e-3,
        p_mean=-1.2,
        p_std=1.2,
        label_dropout=0.3,
        ema_decay=0.9995,
        flips=True,
        precision="bfloat16",
    ),
    "cifar10-small-cond": Recipe(  # for two CPU cores and an hour and a half
        data="cifar10",
        shape=(3, 32, 32),
        classes=10,
        network={"channels": (48, 96, 96), "patch": 2, "attention": True},
        schedule="ve",
        grid="polynomial",
        steps=13_500,
        lr=1e-3,
        p_mean=-1.2,
        p_std=1.2,
        label_dropout=0.3,
        ema_decay=0.9995,
        flips=True,
        precision="bfloat16",
    ),
    "gaussians-mlp": Recipe(
        data="gaussians",
        shape=(2,),
        classes=None,
        network={},
        sigma_data=0.7,
        grid="quadratic",
        steps=2_000,
        batch_size=512,
        label_dropout=0.0,
    ),
    "gaussians-cond-mlp": Recipe(
        data="gaussians-cond",
        shape=(2,),
        classes=8,
        network={},
        sigma_data=0.7,
        grid="quadratic",
        steps=2_000,
        batch_size=512,
    ),
}
# teachers that are the "no class" side of another, trained with it by label dropout
UNCONDITIONAL = {"cifar10": "cifar10-cond", "cifar10-small": "cifar10-small-cond"}
UNTRAINED = {"cifar10-cond"}  # recipes whose weights do not ship yet
EXACT = {"gaussians": "quadratic", "gaussians-cond": "quadratic"}  # exact denoisers (students/data.py), and their grid
# what students of an exact teacher start from, a network trained for the same
START = {"gaussians": "gaussians-mlp", "gaussians-cond": "gaussians-cond-mlp"}


def weights_folder(name: str) -> Path:
    """Where the weights of a teacher and its distilled students lie, each with its record."""
    return Path(__file__).parent / "weights" / name


def teacher_weights(name: str) -> Path:
    """The weights of a teacher that ships."""
    return weights_folder(UNCONDITIONAL.get(name, name)) / "teacher.safetensors"
