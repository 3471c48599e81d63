"""Teachers by name: the network that solver students sample from and distilled students start from.

`load_teacher("digits")` reads the weights that ship (students/weights/<name>/teacher.safetensors);
`train_teacher("digits")` makes them again. `gaussians` needs no training: its denoiser is exact.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from students.checkpoints.safetensors_file import load_into, load_weights, save_weights
from students.data import load_data
from students.diffusion.denoiser import Denoiser
from students.diffusion.schedules import SCHEDULES
from students.errors import FewstepError, unknown
from students.provenance import commit
from students.recipes import EXACT, RECIPES, Recipe, teacher_weights
from students.registry import import_object


def build(recipe: Recipe) -> Denoiser:
    """The untrained denoiser of a recipe."""
    from students.networks.unet import UNet

    network = UNet(recipe.shape, classes=recipe.classes, **recipe.network)
    schedule = SCHEDULES[recipe.schedule]()
    return Denoiser(network, schedule, recipe.prediction, recipe.shape, recipe.classes, recipe.sigma_data)


def load_teacher(name: str, weights: Path | None = None, device="cpu", dtype=torch.float32) -> nn.Module:
    """A denoiser by name, or `package.module:attribute` of a function without arguments that returns one.

    `dtype` is the network's; exact denoisers always compute in float64. Raises FewstepError for an unknown
    name and WeightsError for weights that are missing or not those of their record.
    """
    if ":" in name:
        denoiser = import_object(name)()
        return denoiser.to(device) if isinstance(denoiser, nn.Module) else denoiser
    if name in EXACT:
        mixture = load_data(name).mixture.to(device)
        mixture.grid = EXACT[name]
        return mixture
    if name not in RECIPES:
        raise unknown("teacher", name, [*RECIPES, *EXACT])
    recipe = RECIPES[name]
    path = weights or teacher_weights(name)
    state, record = load_weights(path)
    denoiser = build(recipe)
    load_into(denoiser.network, state, path)
    denoiser.grid = recipe.grid
    denoiser.register_buffer("prior", torch.tensor(record["class_counts"], dtype=torch.float64), persistent=False)
    denoiser.network.to(dtype)
    return denoiser.to(device).eval().requires_grad_(False)


def train_teacher(name: str, out: Path | None = None, seed: int = 0, device="cpu", time_limit=float("inf")) -> Path:
    """Train the teacher of a task from its recipe; returns the path of the weights, with a record beside them."""
    from students.training.loop import train
    from students.training.teacher import denoising_loss

    if name in EXACT:
        raise FewstepError(f"the teacher of {name!r} is an exact denoiser: it needs no training")
    if name not in RECIPES:
        raise unknown("teacher", name, RECIPES)
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    split = load_data(recipe.data).train
    images = (split.samples.float() / 127.5 - 1).to(device)
    labels = split.labels.to(device)
    denoiser = build(recipe).to(device)
    generator = torch.Generator().manual_seed(seed)

    def loss():
        rows = torch.randint(len(images), (recipe.batch_size,), generator=generator).to(device)
        return denoising_loss(
            denoiser, images[rows], labels[rows], generator, recipe.p_mean, recipe.p_std, recipe.label_dropout
        )

    averaged, record = train(
        denoiser,
        loss,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        time_limit=time_limit,
        title=f"teacher of {name}",
    )
    path = out or teacher_weights(name)
    record |= {
        "task": name,
        "method": "teacher",
        "network_evaluations": record["images_seen"],
        "parameters": sum(p.numel() for p in averaged.parameters()),
        "class_counts": labels.bincount(minlength=recipe.classes).tolist(),
        "seed": seed,
        "commit": commit(),
        "recipe": asdict(recipe),
    }
    save_weights(path, averaged.network.state_dict(), record)
    return path
