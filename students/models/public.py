"""Checkpoints of other projects as teachers: `load_model("edm:uncond-vp")`, `load_model("file:my/folder")`.

Each public one has a card (students/models/cards), each format a file of students/models/checkpoints that reads it.
"""

from pathlib import Path

import torch

from students.diffusion.denoiser import Denoiser
from students.diffusion.schedules import VE
from students.errors import WeightsError
from students.models.acceleration import accelerate
from students.models.cards import FILE, Card, checkpoint_files, load_card
from students.models.teacher import DEFAULT_GRID, Teacher


def load_model(model: str, device="cpu", dtype=torch.float32) -> Teacher:
    """The teacher that a card, `family:name`, or a checkpoint of one's own, `file:PATH`, holds.

    Its grid is the card's, its levels too for a model that is no teacher. `dtype` is the network's. Raises
    MissingFile if a file is not there and cannot be downloaded, WeightsError if it is not what the card says.
    """
    family, _, name = model.partition(":")
    paths = checkpoint_files(model)
    card = None if family == FILE else load_card(model)
    denoiser = _read_card(card, paths[0]) if card else _read_own(Path(name).expanduser())
    denoiser.network.to(dtype)
    accelerate(denoiser.to(device).eval().requires_grad_(False))
    levels = card.levels if card else None
    return Teacher(denoiser, (card and card.grid) or DEFAULT_GRID, levels=levels, name=model)


def _read_card(card: Card, path: Path) -> Denoiser:
    denoiser = READERS[card.format](card, path)
    made = tuple(denoiser.shape), denoiser.classes
    if made != (card.shape, card.classes):
        raise WeightsError(
            f"{path} has (shape, classes) {made}, not {(card.shape, card.classes)}: it is not {card.spec}"
        )
    if card.sigma:
        denoiser.schedule = VE(*card.sigma)
    return denoiser


def _read_own(path: Path) -> Denoiser:
    from students.models.checkpoints.convert import load_checkpoint

    if reader := SUFFIXES.get(path.suffix):
        return READERS[reader](None, path)  # type: ignore[arg-type]
    return _read_diffusers(None, path) if path.is_dir() else load_checkpoint(path)


def _read_edm_pickle(card: Card | None, path: Path) -> Denoiser:
    from students.models.checkpoints.edm_pickle import build_denoiser, read_edm_pickle

    return build_denoiser(read_edm_pickle(path))


def _read_converted(card: Card | None, path: Path) -> Denoiser:
    from students.models.checkpoints.convert import load_converted

    return load_converted(path)


def _read_diffusers(card: Card | None, path: Path) -> Denoiser:
    from students.models.checkpoints.diffusers_folder import load_diffusers_folder

    return load_diffusers_folder(card.folder, card.classes) if card else load_diffusers_folder(path)


def _read_edm_state_dict(card: Card, path: Path) -> Denoiser:
    from students.models.checkpoints.edm_pickle import build_denoiser, from_state_dict
    from students.models.checkpoints.openai import read_state_dict

    return build_denoiser(from_state_dict(read_state_dict(path), path))


def _read_openai(card: Card, path: Path) -> Denoiser:
    from students.models.checkpoints.openai import load_openai

    return load_openai(path, card.network, card.kind == "consistency")  # type: ignore[arg-type]


READERS = {
    "edm_pickle": _read_edm_pickle,
    "edm_state_dict": _read_edm_state_dict,
    "openai": _read_openai,
    "safetensors": _read_converted,
    "diffusers": _read_diffusers,
}
# Formats of one's own that `file:PATH` tells by the suffix; all others it tells by what the file holds.
SUFFIXES: dict[str, str] = {}
