"""Diversity measures against their definitions, and on samples that leave something out."""

import math

import numpy as np
import pytest
import torch

from bench.measure import METRICS, metric_columns
from bench.measure.diversity import mean_distance
from bench.measure.statistics import FeatureStats, Reference
from students.errors import FewstepError


def stats(rows) -> FeatureStats:
    found = FeatureStats(keep_rows=True)
    found.update(torch.as_tensor(rows, dtype=torch.float32))
    return found


def compute(name: str, ours, real, representation: str = "features"):
    reference = Reference(train={representation: stats(real)})
    return METRICS[name].compute({representation: stats(ours)}, reference)


@pytest.fixture
def rows() -> np.random.Generator:
    return np.random.default_rng(0)


def test_density_and_coverage_are_those_of_the_definition(rows):
    real, ours = rows.standard_normal((430, 3)), 0.7 * rows.standard_normal((210, 3)) + 0.4
    reach = np.sort(np.linalg.norm(real[:, None] - real[None], axis=-1), axis=1)[:, 5]
    inside = np.linalg.norm(ours[:, None] - real[None], axis=-1) <= reach
    density, coverage = compute("coverage", ours, real)
    assert density == pytest.approx(inside.sum() / (5 * 210), rel=1e-12)
    assert coverage == pytest.approx(inside.any(0).mean(), rel=1e-12)


def test_more_samples_than_real_images_change_nothing(rows):
    real, ours = rows.standard_normal((50, 3)), rows.standard_normal((210, 3))
    assert compute("coverage", ours, real) == compute("coverage", ours[:50], real)


def test_real_images_have_density_and_coverage_near_one_and_a_single_mode_does_not(rows):
    real = rows.standard_normal((2, 2000, 2)) + 20 * rows.integers(0, 4, (2, 2000, 1))
    one_mode = rows.standard_normal((2000, 2))
    density, coverage = compute("coverage", real[0], real[1])
    assert density == pytest.approx(1, abs=0.05) and coverage > 0.95
    density, coverage = compute("coverage", one_mode, real[1])
    assert density == pytest.approx(1, abs=0.05) and coverage == pytest.approx(1 / 4, abs=0.04)


def test_too_few_real_images_for_five_neighbours():
    with pytest.raises(FewstepError, match="more than 5 real images, got 5"):
        compute("coverage", torch.randn(9, 2), torch.randn(5, 2))


@pytest.mark.parametrize("different", [1, 4, 32])
def test_the_vendi_score_counts_orthogonal_samples(different):
    rows = torch.eye(32)[torch.arange(320) % different] * torch.linspace(1, 9, 320)[:, None]
    expected = different if 320 % different == 0 else None
    assert compute("vendi", rows, rows) == pytest.approx((expected,), rel=1e-6)


def test_the_vendi_score_is_that_of_the_matrix_of_all_pairs(rows):
    x = rows.standard_normal((50, 7)) + 1
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / 50).clip(1e-300)
    assert compute("vendi", x, x)[0] == pytest.approx(math.exp(-(values * np.log(values)).sum()), rel=1e-5)


def test_classes_that_are_left_out_are_missed(rows):
    def logits(labels):
        return 5 * torch.eye(10)[torch.as_tensor(labels)]

    real = np.arange(1000) % 10
    assert compute("classes", logits(real), logits(real), "logits") == (10.0, 0.0)
    found, distance = compute("classes", logits(real % 4), logits(real), "logits")
    p = np.bincount(real % 4, minlength=10) / 1000
    assert found == 4 and distance == pytest.approx(((p - 0.1) ** 2 / 0.1).sum(), rel=1e-9)


def test_the_spread_is_the_mean_distance_of_pairs_relative_to_real_images(rows):
    real = rows.standard_normal((450, 5))
    distances = np.linalg.norm(real[:, None] - real[None], axis=-1)
    assert mean_distance(torch.tensor(real)) == pytest.approx(distances.sum() / (450 * 449), rel=1e-6)
    assert compute("spread", real / 2, real)[0] == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(FewstepError, match="two of them"):
        compute("spread", real[:1], real)


def test_columns():
    assert metric_columns("coverage", "digits_cnn") == ("density_digits_cnn", "coverage_digits_cnn")
    assert metric_columns("vendi", "inception") == ("vendi",)
