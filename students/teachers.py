"""Teachers by name: the network that solver students sample from and distilled students start from.

`load_teacher("digits")` reads the weights that ship (students/weights/<name>/teacher.safetensors);
`train_teacher("digits")` makes them again. `gaussians` needs no training: its denoiser is exact.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from students.acceleration import accelerate
from students.checkpoints.safetensors_file import load_into, load_weights, save_weights
from students.data import load_data
from students.devices import check_device
from students.diffusion.denoiser import Denoiser
from students.diffusion.schedules import SCHEDULES
from students.errors import FewstepError, unknown
from students.provenance import commit
from students.recipes import EXACT, RECIPES, UNCONDITIONAL, Recipe, teacher_weights
from students.registry import import_object


def build(recipe: Recipe) -> Denoiser:
    """The untrained denoiser of a recipe: a U-Net for images, an MLP for vectors."""
    from students.networks.mlp import MLP
    from students.networks.unet import UNet

    kind = UNet if len(recipe.shape) == 3 else MLP
    network = kind(recipe.shape, classes=recipe.classes, **recipe.network)
    schedule = SCHEDULES[recipe.schedule]()
    return Denoiser(network, schedule, recipe.prediction, recipe.shape, recipe.classes, recipe.sigma_data)


def load_teacher(name: str, weights: Path | None = None, device="cpu", dtype=torch.float32) -> nn.Module:
    """A denoiser by name, or `package.module:attribute` of a function without arguments that returns one.

    `dtype` is the network's; exact denoisers always compute in float64. Raises FewstepError for an unknown
    name and WeightsError for weights that are missing or not those of their record.
    """
    if ":" in name:
        found = import_object(name)
        denoiser = found() if callable(found) else None
        if not (callable(denoiser) and hasattr(denoiser, "schedule") and hasattr(denoiser, "shape")):
            raise FewstepError(
                f"{name!r} must be a function that returns a denoiser: a callable with .schedule, .shape"
            )
        return denoiser.to(device) if isinstance(denoiser, nn.Module) else denoiser
    if name in EXACT:
        mixture = load_data(name).mixture.to(device)
        mixture.grid, mixture.name = EXACT[name], name
        return mixture
    if name in UNCONDITIONAL:
        denoiser = load_teacher(UNCONDITIONAL[name], weights, device, dtype)
        denoiser.classes, denoiser.prior, denoiser.name = None, None, name
        return denoiser
    if name not in RECIPES:
        raise unknown("teacher", name, [*RECIPES, *UNCONDITIONAL, *EXACT])
    recipe = RECIPES[name]
    path = weights or teacher_weights(name)
    state, record = load_weights(path)
    denoiser = build(recipe)
    load_into(denoiser.network, state, path)
    denoiser.grid, denoiser.name = recipe.grid, name
    if recipe.classes is not None:
        denoiser.register_buffer("prior", torch.tensor(record["class_counts"], dtype=torch.float64), persistent=False)
    denoiser.network.to(dtype)
    return accelerate(denoiser.to(device).eval().requires_grad_(False))


def train_teacher(
    name: str,
    out: Path | None = None,
    seed: int = 0,
    device="cpu",
    time_limit: float = float("inf"),
    state: Path | None = None,
) -> Path:
    """Train the teacher of a task from its recipe; returns the path of the weights, with a record beside them.

    state: a folder for checkpoints, from which the same call goes on; removed once training has ended. A training that
    `time_limit` stops early writes weights only to a given `out`, never over those that ship. Raises FewstepError for
    what can be known to be wrong before it starts.
    """
    from students.training.checkpoint import check_folder, remove_checkpoints
    from students.training.loop import train
    from students.training.teacher import denoising_loss, draw_batch

    if name in EXACT:
        raise FewstepError(f"the teacher of {name!r} is an exact denoiser: it needs no training")
    name = UNCONDITIONAL.get(name, name)
    if name not in RECIPES:
        raise unknown("teacher", name, [*RECIPES, *UNCONDITIONAL, *EXACT])
    recipe = RECIPES[name]
    device = check_device(device)
    path = out or teacher_weights(name)
    check_folder(path.parent)
    torch.manual_seed(seed)
    split = load_data(recipe.data).train
    samples = split.samples.to(device)
    labels = None if recipe.classes is None else split.labels.to(device)
    denoiser = build(recipe).to(device)
    if device.type == "cuda":
        denoiser.network.to(memory_format=torch.channels_last).compile()

    def loss(generator, step):
        x0, chosen = draw_batch(samples, labels, recipe.batch_size, generator, recipe.flips)
        return denoising_loss(denoiser, x0, chosen, generator, recipe.p_mean, recipe.p_std, recipe.label_dropout)

    described = {"task": name, "method": "teacher", "seed": seed, "recipe": asdict(recipe)}
    averaged, record = train(
        denoiser,
        loss,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        ema_decay=recipe.ema_decay,
        dtype=getattr(torch, recipe.precision),
        seed=seed,
        state=state,
        config=described,
        time_limit=time_limit,
        networks={"teacher": [denoiser]},
        title=f"teacher of {name}",
    )
    finished = record["steps"] == record["planned_steps"]
    if not finished and out is None:
        raise FewstepError(
            f"stopped at step {record['steps']} of {record['planned_steps']}: "
            + (f"the same command goes on from {state}; " if state else "")
            + "--out FILE writes the weights as they are"
        )
    record = (
        described
        | record
        | {
            "parameters": sum(p.numel() for p in averaged.parameters()),
            "class_counts": None if labels is None else labels.bincount(minlength=recipe.classes).tolist(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "commit": commit(),
        }
    )
    save_weights(path, averaged.network.state_dict(), record)
    if state is not None and finished:
        remove_checkpoints(state)
    return path
