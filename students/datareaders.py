"""Data sets from files of one's own: a folder of images (`folder:PATH`) or an archive of numpy (`npz:PATH`)."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from students.dataset import CHANNELS, Dataset, Split, shuffled
from students.errors import FewstepError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HELDOUT = ("heldout", "test", "val")


def folder(path: Path) -> Dataset:
    """Images below PATH/train and PATH/heldout (or test, or val): PNG, JPEG, WebP or BMP, all of one size.

    Where both halves consist of the same subfolders each is a class, numbered in the order of their names, as in
    torchvision's ImageFolder; images that lie in the halves themselves have no classes. Grey and RGB images are taken
    as they are, with 8 bits; palettes, alpha, 16 bits and mixtures are refused, with the file's name.
    """
    if not path.is_dir():
        raise FewstepError(f"folder:{path}: there is no such folder")
    found = [name for name in HELDOUT if (path / name).is_dir()]
    if not (path / "train").is_dir() or not found:
        raise FewstepError(f"folder:{path}: it must hold the folders train and heldout (or test, or val)")
    halves = [path / "train", path / found[0]]
    names = [sorted(child.name for child in half.iterdir() if child.is_dir()) for half in halves]
    if names[0] != names[1]:
        raise FewstepError(f"folder:{path}: the halves must have the same classes, got {names[0]} and {names[1]}")
    classes = names[0]
    train, heldout = (_half(half, classes) for half in halves)
    return Dataset(train, heldout, classes=len(classes) or None)


def _half(half: Path, classes: list[str]) -> Split:
    files = sorted(path for path in half.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FewstepError(f"{half}: there is no image in it ({', '.join(SUFFIXES)})")
    if classes and (stray := [path for path in files if path.parent == half]):
        raise FewstepError(f"{stray[0]} lies beside the folders of classes: move it into one")
    first = _image(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for row, path in zip(images, files, strict=True):
        image = _image(path)
        if image.shape != first.shape:
            raise FewstepError(f"{path} is {_size(image)} and {files[0].name} is {_size(first)}: make them one size")
        row[:] = image
    labels = [classes.index(path.relative_to(half).parts[0]) for path in files] if classes else None
    samples = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return shuffled(Split(samples, None if labels is None else torch.tensor(labels)))


def _image(path: Path) -> np.ndarray:
    """(H, W, C) uint8."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:
        raise FewstepError(f"{path} is no image, or is damaged ({one_line(error)})") from error
    if mode not in ("L", "RGB"):
        raise FewstepError(f"{path} is of mode {mode}: images must be grey or RGB with 8 bits: convert it")
    return pixels[..., None] if mode == "L" else pixels


def _size(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{width} x {height} of {channels} channels"


def npz(path: Path) -> Dataset:
    """Arrays `train` and `heldout` (or test, or val), and with classes `train_labels` and `heldout_labels`.

    Images are uint8 or floats in [-1, 1], channels first or last; vectors are (N, D) floats. Classes are 0 to the
    largest label of the training half.
    """
    if not path.is_file():
        raise FewstepError(f"npz:{path}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise FewstepError(f"npz:{path} is no archive of numpy, or is cut short: write it by numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FewstepError(f"npz:{path} is no archive of numbers, or is damaged ({one_line(error)})") from error
    found = [name for name in HELDOUT if name in arrays]
    if "train" not in arrays or not found:
        raise FewstepError(f"npz:{path}: it must hold train and heldout (or test, or val), and holds {sorted(arrays)}")
    names = ["train", found[0]]
    labels = [arrays.get(f"{name}_labels") for name in names]
    train_labels = labels[0]
    classes = None
    if train_labels is not None and train_labels.size and train_labels.dtype.kind in "iu":
        classes = int(train_labels.max()) + 1
    elif train_labels is not None:
        raise FewstepError(f"npz:{path}: train_labels must be whole numbers, got {train_labels.dtype}")
    train, heldout = (Split(_channels_first(arrays[name]), label) for name, label in zip(names, labels, strict=True))
    return Dataset(train, heldout, classes=classes)


def _channels_first(samples: np.ndarray) -> Any:
    if samples.ndim == 4 and samples.shape[1] not in CHANNELS and samples.shape[3] in CHANNELS:
        return samples.transpose(0, 3, 1, 2)
    return samples  # an array, which the check makes a tensor


READERS: dict[str, Callable[[Path], Dataset]] = {"folder": folder, "npz": npz}
