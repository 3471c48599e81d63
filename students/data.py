"""The data that teachers are trained on and samples are compared with.

`load_data(name)` gives a `Dataset` with a training half and a held-out half (what a perfect generator could
at best look like), or with the exact `mixture` they are drawn from. `name` may be `package.module:attribute`,
`folder:PATH` or `npz:PATH`. Whatever it is, it comes through one check (students/dataset.py).
"""

from collections.abc import Callable
from pathlib import Path

import torch

from students.datafiles import VARIABLE, MissingFile, data_root
from students.datareaders import READERS
from students.dataset import Dataset, Split, checked
from students.diffusion.analytic import GaussianMixture
from students.diffusion.schedules import VPLinear
from students.errors import FewstepError, one_line, unknown
from students.spec import import_object

__all__ = ["DATASETS", "Dataset", "Split", "load_data"]


def digits() -> Dataset:
    """The 1,797 8x8 scans of handwritten digits bundled with scikit-learn, in two halves stratified by class.

    Grey levels 0..16 become 0..255 (level * 255 / 16, rounded). Train 898 images, held out 899, shuffled.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    train, heldout = train_test_split(range(len(labels)), test_size=899, stratify=bunch.target, random_state=0)
    return Dataset(Split(grey[train], labels[train]), Split(grey[heldout], labels[heldout]), classes=10)


def gaussians(conditional: bool = False) -> Dataset:
    """Eight anisotropic Gaussians of unequal weight on a ring of radius 1, with 10,000 exact samples a half.

    conditional: the Gaussian that a sample is from is its class.
    """
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    radial = torch.stack([angle.cos(), angle.sin()], dim=1)
    tangent = torch.stack([-angle.sin(), angle.cos()], dim=1)
    covariances = (
        0.10**2 * radial[:, :, None] * radial[:, None, :] + 0.04**2 * tangent[:, :, None] * tangent[:, None, :]
    )
    weights = torch.tensor([2.0, 1.0] * 4)
    mixture = GaussianMixture(weights, radial, covariances, VPLinear(), conditional)
    # the halves draw from seeds far from those a task evaluates
    halves = [mixture.sample(range(start, start + 10_000)) for start in (2**40, 2**41)]
    splits = [Split(samples, labels if conditional else None) for samples, labels in halves]
    return Dataset(*splits, classes=8 if conditional else None, mixture=mixture)  # type: ignore[misc, arg-type]


def gaussians_cond() -> Dataset:
    """`gaussians`, in eight classes."""
    return gaussians(conditional=True)


CIFAR10_FOLDER = "cifar-10-batches-py"


def cifar10() -> Dataset:
    """CIFAR-10 (Krizhevsky 2009), 32x32 in colour, ten classes: train 50,000 images, held out the 10,000 test images.

    Read by torchvision below the data root, downloaded where it is missing and a network is there. Raises
    MissingFile for a file that is missing or is not the original (MD5).
    """
    from torchvision.datasets import CIFAR10

    root = data_root()
    if problem := cifar10_problem():
        try:
            CIFAR10(root, train=True, download=True)
        except (OSError, RuntimeError) as error:
            raise MissingFile(problem) from error
    halves = [CIFAR10(root, train=train) for train in (True, False)]
    splits = [
        Split(torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(half.targets))
        for half in halves
    ]
    return Dataset(*splits, classes=10)  # type: ignore[misc, arg-type]


def cifar10_problem() -> str:
    """What is wrong with CIFAR-10 below the data root and what to do about it; empty if nothing is."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = data_root() / CIFAR10_FOLDER
    advice = f"download {CIFAR10.url} and unpack it in {data_root()} (--data-root or {VARIABLE} name another folder)"
    if not folder.is_dir():
        return f"CIFAR-10 is missing, there is no {folder}: {advice}"
    meta = CIFAR10.meta
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, [meta["filename"], meta["md5"]]]:
        if not (folder / name).is_file():
            return f"CIFAR-10 lacks {folder / name}: {advice}"
        if not check_integrity(folder / name, md5):
            return f"{folder / name} is cut short or not the original (its MD5 is not {md5}): {advice}"
    return ""


DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "gaussians": gaussians,
    "gaussians-cond": gaussians_cond,
    "cifar10": cifar10,
}


def load_data(name: str) -> Dataset:
    """A data set by name, of files (`folder:PATH`, `npz:PATH`), or by `package.module:attribute` of a function
    without arguments.

    Raises FewstepError for a name that is unknown, and for data that `students.dataset.checked` refuses.
    """
    kind, _, path = name.partition(":")
    if path and kind in READERS:
        return checked(READERS[kind](Path(path).expanduser()), f"data {name!r}")
    if path:
        return checked(_own(name), f"data {name!r}")
    if name not in DATASETS:
        raise unknown("data set", name, [*DATASETS, *(f"{reader}:PATH" for reader in READERS)])
    return checked(DATASETS[name](), f"data {name!r}")


def _own(name: str):
    found = import_object(name)
    if not callable(found):
        raise FewstepError(f"{name!r} is no function that returns a students.data.Dataset")
    try:
        return found()
    except FewstepError:
        raise
    except (Exception, SystemExit) as error:
        raise FewstepError(f"cannot load data {name!r}: {one_line(error)}") from error
