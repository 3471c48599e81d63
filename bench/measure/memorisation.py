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


def memorised_fraction(samples: Tensor, train: Tensor) -> float:
    """The fraction of samples nearer to one training image than a third of the distance to the second nearest.

    The criterion of Gu et al. 2023 [2310.02664].
    """
    first, second = nearest_distances(samples, train, 2).unbind(1)
    return (first < RATIO * second).double().mean().item()


def nearest_ratio(samples: Tensor, train: Tensor, heldout: Tensor) -> float:
    """Median distance to the nearest training image over that to the nearest held-out image.

    Of each half the first min(len(train), len(heldout)) images count. 1 means no preference, less than 1 that
    the samples are closer to the training data. NaN if the samples are themselves held-out images.
    """
    n = min(len(train), len(heldout))
    to_train, to_heldout = (nearest_distances(samples, half[:n], 1).median().item() for half in (train, heldout))
    return to_train / to_heldout if to_heldout else float("nan")


def memorisation(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float, float]:
    """`memorised_fraction` and `nearest_ratio`; raises FewstepError for fewer than two training images."""
    samples, train = generated["samples"].rows(), reference.train["samples"].rows()
    if len(train) < 2:
        raise FewstepError(f"memorisation compares the two nearest training images: {len(train)} are too few")
    return memorised_fraction(samples, train), nearest_ratio(samples, train, reference.heldout["samples"].rows())
