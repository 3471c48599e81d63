"""Standard errors and intervals: right where the truth is known, narrower for pairs that share noise."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from bench.measure.frechet import frechet_distance
from bench.measure.jackknife import groups, without_each_group
from bench.measure.statistics import FeatureStats
from bench.report.differences import difference_table
from bench.report.tables import aggregate
from bench.report.uncertainty import Estimate, bias, difference, estimate, variance

REPEATS, SAMPLES, WIDTH = 200, 400, 6
ZERO, ONE = np.zeros(WIDTH), np.eye(WIDTH)


def distance(stats: FeatureStats) -> float:
    return frechet_distance(stats.mean(), stats.covariance(), ZERO, ONE)


def measured(rows: torch.Tensor) -> tuple[float, list[float]]:
    """The Fréchet distance to a standard normal, with all rows and without each group."""
    stats = FeatureStats(keep_rows=True)
    stats.update(rows)
    left = without_each_group({"features": stats}, groups(len(rows)))
    return distance(stats), [distance(part["features"]) for part in left]


@pytest.fixture(scope="module")
def students() -> list[list[tuple[float, list[float]]]]:
    """Two students on the same noise, in many repeats: one shifts what the other scales."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(SAMPLES, WIDTH, generator=generator).double() for _ in range(REPEATS)]
    return [[measured(make(x)) for x in noise] for make in (lambda x: x + 0.3, lambda x: 1.2 * x)]


def test_intervals_cover_the_truth(students):
    """Of |m|^2 and tr (C^(1/2) - 1)^2, less the bias that the jackknife sees too."""
    for found, truth in zip(students, (WIDTH * 0.09, WIDTH * 0.04), strict=True):
        covered = 0
        for value, left_out in found:
            interval = estimate([value], [left_out])
            covered += abs(value - bias(left_out, value) - truth) <= interval.margin
        assert 0.9 <= covered / REPEATS <= 0.99


def test_errors_are_the_spread_over_repeats(students):
    for found in students:
        spread = np.std([value for value, _ in found], ddof=1)
        typical = math.sqrt(np.mean([variance(left_out) for _, left_out in found]))
        assert typical == pytest.approx(spread, rel=0.15)


def cells(*found) -> pd.DataFrame:
    """Of students "a", "b", ... with one block for each of their (value, left out)."""
    rows = [
        {
            "task": "t", "family": "solver", "guidance": 1.0, "dtype": "float32", "samples": SAMPLES, "status": "ok",
            "reason": "", "device": "cpu", "nfe": 1.0, "student": name, "steps": 1, "seed_block": block, "fd": value,
            "fd_jackknife": left_out,
        }
        for name, blocks in zip("abc", found, strict=False)
        for block, (value, left_out) in enumerate(blocks)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_equal_students_are_told_apart_in_one_of_twenty(students):
    """Halves of the repeats of one student, on other noise: as two students that are equal, unpaired."""
    first, second = students[0][: REPEATS // 2], students[0][REPEATS // 2 :]
    told = [
        not Estimate(a - b, math.sqrt(variance(x) + variance(y)), 2 * len(x) - 2).is_zero
        for (a, x), (b, y) in zip(first, second, strict=True)
    ]
    assert np.mean(told) <= 0.1


def test_pairs_share_what_both_have(students):
    """A student and one that is nearly the same: the paired error is far below that of independent noise."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, WIDTH, generator=generator).double()
    table = cells([measured(x + 0.3)], [measured(x + 0.31)])
    gap = difference(table, ("a", 1), ("b", 1), "fd")
    alone = aggregate(table)["fd_se"]
    assert gap.error < 0.2 * math.hypot(*alone) and not gap.is_zero and gap.value < 0
    again = difference(cells([measured(x + 0.3)], [measured(x + 0.3)]), ("a", 1), ("b", 1), "fd")
    assert again.value == 0 and again.is_zero


def test_blocks_are_pooled_and_do_without_groups(students):
    pooled = estimate([value for value, _ in students[0][:4]], [left_out for _, left_out in students[0][:4]])
    assert pooled.freedom == 4 * 19
    assert pooled.error == pytest.approx(math.sqrt(sum(variance(part) for _, part in students[0][:4])) / 4)
    assert estimate([1.0, 2.0, 6.0], [None] * 3) == Estimate(3.0, pytest.approx(math.sqrt(7 / 3)), 2)
    single = estimate([1.0], [None])
    assert math.isnan(single.error) and not single.is_zero and Estimate(0.0, math.nan, 0).is_zero


def test_blocks_that_one_lacks_are_left_out():
    table = cells([(1.0, None), (2.0, None), (3.0, None)], [(1.5, None), (2.5, None)])
    assert difference(table, ("a", 1), ("b", 1), "fd") == Estimate(-0.5, 0.0, 1)
    assert math.isnan(difference(table, ("a", 1), ("c", 1), "fd").value)


def test_the_table_of_differences(students):
    shown = difference_table(cells(*(found[:1] for found in students)), "fd", {"fd": "lower"})["1 step"]
    assert shown["b"] == "best" and shown["a"].startswith("0.") and " ± " in shown["a"]
