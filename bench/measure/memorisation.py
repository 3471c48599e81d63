"""Are the samples copies of training images? L2 distances in pixel space, uint8 images scaled to [0, 1]."""

import torch
from torch import Tensor

from bench.measure.statistics import FeatureStats, Reference
from students.errors import FewstepError

RATIO = 1 / 3
CHUNK = 1024


def nearest_distances(rows: Tensor, references: Tensor, k: int) -> Tensor:
    """(N, k) distances to the k nearest of `references`, nearest first."""
    distances = []
    for chunk in rows.split(CHUNK):
        nearest = torch.cdist(chunk, references).topk(k, largest=False).indices
        # cdist goes through inner products, whose rounding hides exact copies: measure the found ones again
        distances.append((chunk[:, None] - references[nearest]).norm(dim=-1).sort(dim=-1).values)
    return torch.cat(distances)


def memorised_fraction(nearest: Tensor) -> float:
    """The fraction of samples nearer to one training image than a third of the distance to the second nearest.

    nearest: (N, 2) distances to the two nearest training images. The criterion of Gu et al. 2023 [2310.02664].
    """
    first, second = nearest.unbind(1)
    return (first < RATIO * second).double().mean().item()


def nearest_ratio(to_train: Tensor, to_heldout: Tensor) -> float:
    """Median distance to the nearest training image over that to the nearest of as many held-out images.

    1 means no preference, less than 1 that the samples are closer to the training data. NaN if the samples are
    themselves held-out images.
    """
    heldout = to_heldout.median().item()
    return to_train.median().item() / heldout if heldout else float("nan")


def memorisation(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float, float]:
    """`memorised_fraction` and `nearest_ratio`; raises FewstepError for fewer than two training images.

    For the ratio, of each half the first min(len(train), len(heldout)) images count.
    """
    train, heldout = reference.train["samples"].rows(), reference.heldout["samples"].rows()
    if len(train) < 2:
        raise FewstepError(f"memorisation compares the two nearest training images: {len(train)} are too few")
    samples, n = generated["samples"].rows(), min(len(train), len(heldout))
    nearest = nearest_distances(samples, train, 2)
    to_train = nearest[:, 0] if n == len(train) else nearest_distances(samples, train[:n], 1)[:, 0]
    return memorised_fraction(nearest), nearest_ratio(to_train, nearest_distances(samples, heldout[:n], 1)[:, 0])
