"""How good samples are, while a student is being trained: the energy distance to the training data, on raw values."""

import torch
from torch import Tensor

FIRST_SEED = 2**43  # of the samples: far from the seeds that tasks evaluate and those of noise-image pairs
SAMPLES = 1000


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| over rows (N, D) and (M, D), unbiased; 0 for equal distributions.

    Székely and Rizzo 2013. Needs no feature extractor, so it serves images and vectors alike.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    within = sum(torch.cdist(rows, rows).sum() / (len(rows) * (len(rows) - 1)) for rows in (a, b))
    return (2 * torch.cdist(a, b).mean() - within).item()


def quality(student, real: Tensor) -> float:
    """Energy distance of `SAMPLES` samples, in the fewest steps the student supports, to real samples (N, *shape)."""
    seeds = range(FIRST_SEED, FIRST_SEED + SAMPLES)
    return energy_distance(student.sample(min(student.supported_steps), seeds=seeds), real)
