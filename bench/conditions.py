"""What the samples of a seed block are asked to show: classes in the data's proportions, the same number in each block.

Drawn freely, a block's class counts vary, and a distance between distributions with them: on `digits` more than between
most students.
"""

from functools import lru_cache

import torch
from torch import Tensor

from students.diffusion.noise import class_uniforms


def class_counts(n: int, prior: Tensor) -> Tensor:
    """(K,) how many of n samples show each class: n p_k rounded down, and what is left to the largest remainders."""
    shares = n * prior.double() / prior.double().sum()
    counts = shares.floor().long()
    left = n - int(counts.sum())
    counts[(shares - counts).argsort(descending=True, stable=True)[:left]] += 1
    return counts


def stratified(block: range, prior: Tensor) -> Tensor:
    """(len(block),) classes of the block's seeds, `class_counts` of each.

    A seed's class is that at the place, among the classes in order, which the rank of its uniform number says.
    """
    classes = torch.repeat_interleave(torch.arange(len(prior)), class_counts(len(block), prior))
    chosen = torch.empty_like(classes)
    chosen[class_uniforms(torch.arange(block.start, block.stop)).argsort(stable=True)] = classes
    return chosen


class Conditions:
    """The classes of seeds by block, each block drawn once."""

    def __init__(self, prior: Tensor):
        self._block = lru_cache(maxsize=8)(lambda block: stratified(block, prior.cpu()))

    def __call__(self, seeds: range, block: range) -> Tensor:
        """(len(seeds),) the classes of these seeds of the block."""
        return self._block(block)[seeds.start - block.start : seeds.stop - block.start]
