"""Checkpoints of other projects as denoisers: `load_model("edm:uncond-vp")`, `load_model("file:my/folder")`.

What is known of a public one is its card (students/cards); each format is read by one file of students/checkpoints.
"""

from pathlib import Path

import torch
from torch import nn

from students.acceleration import accelerate
from students.cards import FILE, Card, checkpoint_files, load_card
from students.diffusion.schedules import VE
from students.errors import FewstepError, WeightsError


def load_model(model: str, device="cpu", dtype=torch.float32) -> nn.Module:
    """The denoiser of a card, `family:name`, or of a checkpoint of one's own, `file:PATH`.

    Its `grid` is the card's, its `levels` too for a model that is no teacher. `dtype` is the network's. Raises
    MissingFile if a file is not there and cannot be downloaded, WeightsError if it is not what the card says.
    """
    family, _, name = model.partition(":")
    paths = checkpoint_files(model)
    denoiser = _read_own(Path(name).expanduser()) if family == FILE else _read_card(load_card(model), paths[0])
    denoiser.network.to(dtype)
    return accelerate(denoiser.to(device).eval().requires_grad_(False))


def _read_card(card: Card, path: Path) -> nn.Module:
    denoiser = READERS[card.format](card, path)
    made = tuple(denoiser.shape), denoiser.classes
    if made != (card.shape, card.classes):
        raise WeightsError(
            f"{path} has (shape, classes) {made}, not {(card.shape, card.classes)}: it is not {card.spec}"
        )
    if card.sigma:
        denoiser.schedule = VE(*card.sigma)
    denoiser.grid, denoiser.levels = card.grid, card.levels
    return denoiser


def _read_own(path: Path) -> nn.Module:
    reader = "diffusers" if path.is_dir() else SUFFIXES.get(path.suffix)
    if reader is None:
        raise FewstepError(f"{path} is no folder, {' or '.join(SUFFIXES)}: convert it (python -m students convert)")
    return READERS[reader](None, path)


def _read_edm_pickle(card: Card | None, path: Path) -> nn.Module:
    from students.checkpoints.edm_pickle import build_denoiser, read_edm_pickle

    return build_denoiser(read_edm_pickle(path))


def _read_converted(card: Card | None, path: Path) -> nn.Module:
    from students.checkpoints.convert import load_converted

    return load_converted(path)


def _read_diffusers(card: Card | None, path: Path) -> nn.Module:
    from students.checkpoints.diffusers_folder import load_diffusers_folder

    return load_diffusers_folder(card.folder, card.classes) if card else load_diffusers_folder(path)


def _read_edm_state_dict(card: Card, path: Path) -> nn.Module:
    from students.checkpoints.edm_pickle import build_denoiser, from_state_dict
    from students.checkpoints.openai import read_state_dict

    return build_denoiser(from_state_dict(read_state_dict(path), path))


def _read_openai(card: Card, path: Path) -> nn.Module:
    from students.checkpoints.openai import load_openai

    return load_openai(path, card.network, card.kind == "consistency")


READERS = {
    "edm_pickle": _read_edm_pickle,
    "edm_state_dict": _read_edm_state_dict,
    "openai": _read_openai,
    "safetensors": _read_converted,
    "diffusers": _read_diffusers,
}
SUFFIXES = {".safetensors": "safetensors", ".pkl": "edm_pickle"}
