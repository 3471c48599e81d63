"""The delete-a-group jackknife: a metric without each of G groups of a cell's samples, which says how sure it is.

With theta_g the metric without group g of G, of equal size and equal class counts,

    variance = (G - 1) / G sum_g (theta_g - mean theta)^2,    bias = (G - 1) (mean theta - theta)

(Quenouille 1956, Tukey 1958). Students that share their noise have the same groups, so the same holds of differences.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.measure.statistics import FeatureStats

GROUPS = 20
WIDEST = 1024  # features: of more, the distances without each group would take minutes a cell


def groups(n: int, classes: Tensor | None = None) -> Tensor:
    """(n,) the group of each sample, dealt in the order of classes (n,), then of samples."""
    order = torch.arange(n) if classes is None else classes.argsort(stable=True)
    dealt = torch.empty(n, dtype=torch.int64)
    dealt[order] = torch.arange(n) % GROUPS
    return dealt


def can_leave_out(statistics: dict[str, FeatureStats]) -> bool:
    """Whether all rows are there, enough of them and not too wide."""
    rows = [stats.rows() for stats in statistics.values() if stats.keep_rows]
    return len(rows) == len(statistics) and all(len(r) >= 2 * GROUPS and r.shape[1] <= WIDEST for r in rows)


def without_each_group(statistics: dict[str, FeatureStats], dealt: Tensor) -> Iterator[dict[str, FeatureStats]]:
    """The same statistics without the rows of group 0, 1, ..."""
    for group in range(GROUPS):
        kept = dealt != group
        left = {name: FeatureStats(keep_rows=True) for name in statistics}
        for name, stats in statistics.items():
            left[name].update(stats.rows()[kept])
        yield left
