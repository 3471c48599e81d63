"""How far a student's samples are from the teacher's of the same noise, classes and guidance.

The teacher's sample is where its probability-flow ODE ends: Heun's method in 32 steps on the task's grid, in float32. A
deterministic student that has learned this map comes near zero; one that has not, and any that draws noise on the way,
is at the distance of two samples that have little in common. Rows are kept with the cells: what changes them here asks
for a new version of the tasks that measure them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.measure.statistics import FeatureStats, Reference


def distances(made: Sequence[Tensor], teachers: Sequence[Tensor] | None) -> Tensor:
    """Distances between what a student and the teacher made: (N, 1) of vectors, (N, 2) of images and their features.

    |x - x_T| of vectors (N, D) and of features (N, F), and of images sqrt(mean (x - x_T)^2) over their values in
    [-1, 1]. NaN without a teacher.
    """
    if teachers is None:
        return torch.full((len(made[0]), len(made)), math.nan)
    rows = [(a - b.to(a.device)).flatten(1).norm(dim=1) for a, b in zip(made, teachers, strict=True)]
    if made[0].ndim == 4:
        rows[0] = rows[0] / math.sqrt(made[0][0].numel())
    return torch.stack(rows, dim=1)


def faithfulness(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float, ...]:
    """The mean of each distance; NaN for real samples and for students of a model of their own."""
    return tuple(generated["faithfulness"].mean().tolist())
