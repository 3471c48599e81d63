"""The one table of teachers by name: how each is built and trained, and what students of it start from.

A task of `bench` and `python -m students train --task` mean the same by a name. Importing this module imports no torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from students.errors import unknown


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


@dataclass(frozen=True)
class Entry:
    """One line of TEACHERS: a recipe, or the name of another teacher and what this one is to it.

    parent: the class-conditional teacher whose "no class" side, learned by label dropout, this one is.
    exact: an exact denoiser of the data set of that name, on this grid; start: the network, trained for the same, that
    its students start from. ships: whether weights are part of the package.
    """

    recipe: Recipe | None = None
    parent: str | None = None
    exact: str | None = None
    grid: str | None = None
    start: str | None = None
    ships: bool = True


TEACHERS = {
    "digits": Entry(
        Recipe(
            data="digits",
            shape=(1, 8, 8),
            classes=10,
            network={"channels": (24, 32), "patch": 2, "attention": True, "dropout": 0.1},
            sigma_data=0.75,
            # best of four for DDIM, Heun, DPM-Solver++ and UniPC on seeds 1000000 and up, which no block uses
            grid="quadratic",
        )
    ),
    "cifar10-large-cond": Entry(
        Recipe(  # for a GPU
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
        ships=False,
    ),
    "cifar10-cond": Entry(
        Recipe(  # for two CPU cores and an hour and a half
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
        )
    ),
    "gaussians-mlp": Entry(
        Recipe(
            data="gaussians",
            shape=(2,),
            classes=None,
            network={},
            sigma_data=0.7,
            grid="quadratic",
            steps=2_000,
            batch_size=512,
            label_dropout=0.0,
        )
    ),
    "gaussians-cond-mlp": Entry(
        Recipe(
            data="gaussians-cond",
            shape=(2,),
            classes=8,
            network={},
            sigma_data=0.7,
            grid="quadratic",
            steps=2_000,
            batch_size=512,
        )
    ),
    "cifar10": Entry(parent="cifar10-cond"),
    "cifar10-large": Entry(parent="cifar10-large-cond", ships=False),
    "gaussians": Entry(exact="gaussians", grid="quadratic", start="gaussians-mlp"),
    "gaussians-cond": Entry(exact="gaussians-cond", grid="quadratic", start="gaussians-cond-mlp"),
}


def entry(name: str) -> Entry:
    """The line of a teacher; raises FewstepError, with the nearest name, if there is none."""
    if name not in TEACHERS:
        raise unknown("teacher", name, TEACHERS)
    return TEACHERS[name]


def trained_name(name: str) -> str:
    """The teacher whose weights stand for `name`: itself, the one it is a side of, or what its students start from."""
    found = entry(name)
    return found.parent or found.start or name


def recipe(name: str) -> Recipe:
    """How the network of a teacher, or that which its students start from, is built and trained."""
    return entry(trained_name(name)).recipe  # type: ignore[return-value]


def classes(name: str) -> int | None:
    """How many classes a teacher knows; None for an unconditional one."""
    return None if entry(name).parent else recipe(name).classes


def weights_folder(name: str) -> Path:
    """Where the weights of a teacher and its distilled students lie, each with its record."""
    return Path(__file__).parent.parent / "weights" / name


def teacher_weights(name: str) -> Path:
    """The weights of a teacher that ships, or of the network that students of an exact one start from."""
    return weights_folder(trained_name(name)) / "teacher.safetensors"


def training_evaluations(name: str) -> int | None:
    """Network evaluations of a teacher's own training (for an exact one: of the network that students start from).

    None for a teacher without a line here, of which they are not known.
    """
    if name not in TEACHERS:
        return None
    return json.loads(teacher_weights(name).with_suffix(".json").read_text())["images_seen"]


def teacher_identity(name: str) -> dict:
    """What a teacher's numbers depend on, code apart, as JSON; raises WeightsError for weights missing or altered."""
    from students.models.weights import verified_hash

    if entry(name).exact:
        return {"name": name, "exact": entry(name).exact}
    return {"name": name, "weights": verified_hash(teacher_weights(name))}
