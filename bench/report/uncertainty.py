"""How sure a shown number is, and a difference between students that share noise and classes. Functions of cells.

A cell may know its metric without each of G groups of its samples (bench/measure/jackknife.py); over B seed blocks

    variance of the mean = sum_b variance_b / B^2    with B (G - 1) degrees of freedom,

and without such values the spread over blocks is all there is: s^2 / B, with B - 1. A difference is taken group by
group or block by block, so what both students share cancels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from scipy.special import stdtrit

CONFIDENCE = 0.95
LEFT_OUT = "_jackknife"
REPEATS = "_repeats"


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error (NaN where nothing tells it) and the degrees of freedom of that."""

    value: float
    error: float
    freedom: int

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval."""
        return float(stdtrit(self.freedom, (1 + CONFIDENCE) / 2)) * self.error if self.freedom else math.nan

    @property
    def is_zero(self) -> bool:
        """Whether zero lies in the interval; of a number of unknown error only if it is zero."""
        return bool(abs(self.value) <= (0.0 if math.isnan(self.margin) else self.margin))


def variance(left_out: Sequence[float]) -> float:
    """Of a metric, from its values without each group."""
    mean = math.fsum(left_out) / len(left_out)
    return (len(left_out) - 1) / len(left_out) * math.fsum((value - mean) ** 2 for value in left_out)


def bias(left_out: Sequence[float], whole: float) -> float:
    """Of a metric, from its values without each group and with all: what a finite number of samples adds."""
    return (len(left_out) - 1) * (math.fsum(left_out) / len(left_out) - whole)


def estimate(values: Sequence[float], left_out: Sequence) -> Estimate:
    """The mean of a metric over blocks. left_out: for each block the values without each group, or anything else."""
    blocks, mean = len(values), math.fsum(values) / len(values)
    if all(isinstance(part, list) for part in left_out):
        return Estimate(mean, math.sqrt(sum(map(variance, left_out))) / blocks, sum(len(p) - 1 for p in left_out))
    if blocks < 2:
        return Estimate(mean, math.nan, 0)
    spread = math.fsum((value - mean) ** 2 for value in values) / (blocks - 1)
    return Estimate(mean, math.sqrt(spread / blocks), blocks - 1)


def difference(cells: pd.DataFrame, ours: tuple[str, int], theirs: tuple[str, int], metric: str) -> Estimate:
    """Of the metric of two (student, steps) among cells of one protocol, over the seed blocks that both have."""
    both = [_blocks(cells, *row, metric) for row in (ours, theirs)]
    pairs = [(both[0][block], both[1][block]) for block in both[0] if block in both[1]]
    if not pairs:
        return Estimate(math.nan, math.nan, 0)
    left_out = [
        [x - y for x, y in zip(a, b, strict=True)] if isinstance(a, list) and isinstance(b, list) else None
        for (_, a), (_, b) in pairs
    ]
    return estimate([x - y for (x, _), (y, _) in pairs], left_out)


def _blocks(cells: pd.DataFrame, student: str, steps: int, metric: str) -> dict[int, tuple[float, list | None]]:
    """By seed block, the metric and its values without each group."""
    rows = cells[(cells["student"] == student) & (cells["steps"] == steps) & cells[metric].notna()]
    left_out = rows.get(metric + LEFT_OUT, [None] * len(rows))
    return {block: pair for block, *pair in zip(rows["seed_block"], rows[metric], left_out, strict=True)}  # type: ignore[misc]
