"""What a data set is, and the one check that every data set passes on its way in.

A plausible wrong number is worse than a crash: images in [0, 1] or up to 255.0, channels last or NaN all go through a
feature network without complaint. So images are uint8 here, and what could be read in two ways is refused by name.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from students.diffusion.analytic import GaussianMixture
from students.errors import FewstepError
from students.whole import whole_numbers

CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Split:
    """samples: (N, C, H, W) uint8 images or (N, D) float vectors. labels: (N,) int64, or None."""

    samples: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Dataset:
    """A training half, a held-out half, and the exact `mixture` they are drawn from where there is one.

    `checked` says what else may be given: arrays of numpy, and images as floats in [-1, 1].
    """

    train: Split
    heldout: Split
    classes: int | None = None
    mixture: GaussianMixture | None = None

    @property
    def prior(self) -> Tensor | None:
        """(classes,) float64, how often each class is to be drawn: as in the mixture, or in the training half.

        None for data without classes.
        """
        if self.classes is None:
            return None
        if self.mixture is not None:
            return self.mixture.prior
        return self.train.labels.bincount(minlength=self.classes).double()  # type: ignore[union-attr]


def shuffled(split: Split) -> Split:
    """The same samples in one fixed random order in which the classes of any first ones are those of all.

    The floor takes the first held-out samples; of files they would be those of one class.
    """
    order = torch.randperm(len(split.samples), generator=torch.Generator().manual_seed(0))
    if split.labels is not None:
        place = torch.empty(len(order), dtype=torch.float64)
        for rows in (order[split.labels[order] == label] for label in split.labels.unique()):
            place[rows] = (torch.arange(len(rows)) + 0.5).double() / len(rows)
        order = place.argsort(stable=True)
    return Split(split.samples[order], None if split.labels is None else split.labels[order])


def checked(data, name: str) -> Dataset:
    """The data set with samples and labels as `Split` describes them, or a FewstepError that says what is wrong.

    Converted: arrays of numpy; images as floats in [-1, 1], which become round((x + 1) 127.5); labels of any integer
    type; vectors of less than 32 bits. A half that is sorted by class is shuffled. name: how errors call it.
    """
    if not isinstance(data, Dataset):
        raise FewstepError(f"{name} is a {type(data).__name__}, no students.data.Dataset")
    if data.classes is not None and (type(data.classes) is not int or data.classes < 1):
        raise FewstepError(f"{name}: classes must be a whole number of at least 1, or None, got {data.classes!r}")
    train, heldout = (_split(getattr(data, half), data.classes, name, half) for half in ("train", "heldout"))
    shapes = [tuple(half.samples.shape[1:]) for half in (train, heldout)]
    if shapes[0] != shapes[1]:
        raise FewstepError(f"{name}: samples of the halves must have one shape, got {shapes[0]} and {shapes[1]}")
    if torch.equal(train.samples, heldout.samples):
        raise FewstepError(f"{name}: the held-out half is the training half: hold other samples out")
    return replace(data, train=train, heldout=heldout)


def _split(split, classes: int | None, name: str, half: str) -> Split:
    where = f"{name}, {half}"
    if not isinstance(split, Split):
        raise FewstepError(f"{where}: must be a students.data.Split of samples and labels, got {split!r:.40}")
    samples = _tensor(split.samples, f"{where}: samples")
    if samples.ndim not in (2, 4):
        shape = tuple(samples.shape)
        raise FewstepError(f"{where}: samples must be (N, C, H, W) images or (N, D) vectors, got {shape}")
    if len(samples) < 2 or not samples[0].numel():
        raise FewstepError(f"{where}: at least two samples are needed, got shape {tuple(samples.shape)}")
    samples = _images(samples, where) if samples.ndim == 4 else _vectors(samples, where)
    labels = _labels(split.labels, classes, len(samples), where)
    by_class = labels is not None and len(labels.unique_consecutive()) == len(labels.unique())
    return shuffled(Split(samples, labels)) if by_class else Split(samples, labels)


def _tensor(given, what: str) -> Tensor:
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "buif":
            raise FewstepError(f"{what} must be numbers, got an array of {given.dtype}")
        return torch.from_numpy(np.ascontiguousarray(given.astype(given.dtype.newbyteorder("="))))
    if not torch.is_tensor(given) or given.layout is not torch.strided or given.is_complex():
        raise FewstepError(f"{what} must be a dense tensor or an array of real numbers, got {type(given).__name__}")
    return given.detach().cpu()


def _images(images: Tensor, where: str) -> Tensor:
    shape = tuple(images.shape)
    if shape[1] not in CHANNELS and shape[3] in CHANNELS:
        raise FewstepError(f"{where}: images of shape {shape} have their channels last: permute them to (N, C, H, W)")
    if images.dtype == torch.uint8:
        if images.max() < 2:
            raise FewstepError(f"{where}: uint8 images must be 0 to 255, and these hold nothing above {images.max()}")
        return images
    if not images.is_floating_point():
        raise FewstepError(f"{where}: images must be uint8 or floats in [-1, 1], got {images.dtype}")
    low, high = _range(images, where)
    if low < -1 or high > 1 or low > -0.5:
        raise FewstepError(
            f"{where}: images of floats must be in [-1, 1], and these go from {low:.4g} to {high:.4g}: "
            "scale them, or give uint8 from 0 to 255"
        )
    return ((images.float() + 1) * 127.5).round().to(torch.uint8)


def _vectors(vectors: Tensor, where: str) -> Tensor:
    if not vectors.is_floating_point():
        raise FewstepError(f"{where}: vectors must be floats, got {vectors.dtype}")
    _range(vectors, where)
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def _range(samples: Tensor, where: str) -> tuple[float, float]:
    low, high = (bound.item() for bound in samples.aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = (~samples.isfinite()).flatten(1).any(1)
        raise FewstepError(f"{where}: {int(bad.sum())} of {len(samples)} samples hold NaN or infinite values")
    return low, high


def _labels(given, classes: int | None, n: int, where: str) -> Tensor | None:
    if given is None or classes is None:
        if classes is not None:
            raise FewstepError(f"{where}: data of {classes} classes needs labels, (N,) whole numbers, got None")
        return None
    shape = tuple(getattr(given, "shape", ()))
    if len(shape) == 2:
        raise FewstepError(f"{where}: labels of shape {shape} look one-hot: give (N,) classes, labels.argmax(1)")
    labels = whole_numbers(given, f"{where}: labels").cpu()
    if len(labels) != n:
        raise FewstepError(f"{where}: {n} samples need as many labels, got {len(labels)}")
    if labels.max() >= classes:
        raise FewstepError(f"{where}: labels must be 0 to {classes - 1}, got {labels.max()}")
    return labels
