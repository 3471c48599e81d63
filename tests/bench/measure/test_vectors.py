import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance_nd

from bench.measure.statistics import FeatureStats, Reference
from bench.measure.vectors import (
    mahalanobis,
    mode_coverage,
    modes,
    outlier_fraction,
    sigma_radius,
    sliced_wasserstein,
    swd,
)
from students.data import load_data
from students.diffusion.analytic import GaussianMixture
from students.diffusion.schedules import VPLinear


@pytest.fixture(scope="module")
def gaussians():
    return load_data("gaussians")


def stats_of(rows):
    stats = FeatureStats(keep_rows=True)
    stats.update(rows)
    return {"samples": stats}


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_a_shift_in_one_dimension_is_its_length():
    x = normal(500, 1).double()
    assert sliced_wasserstein(x, x + 1.75) == pytest.approx(1.75, rel=1e-12)


def test_a_shift_in_many_dimensions():
    x = normal(200, 16).double()
    shift = torch.full((16,), 0.5)
    assert sliced_wasserstein(x, x + shift, projections=4000) == pytest.approx(shift.norm().item() / 4, rel=0.03)


def test_unequal_counts():
    x = normal(60, 3)
    assert sliced_wasserstein(x, x.repeat(5, 1)) == pytest.approx(0, abs=1e-7)
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    # quantile functions differ by 1 on (1/3, 1/2) and (2/3, 1): W2^2 = 1/6 + 1/3
    assert sliced_wasserstein(a, b) == pytest.approx(0.5**0.5, rel=1e-12)
    assert sliced_wasserstein(b, a) == pytest.approx(0.5**0.5, rel=1e-12)


def test_one_dimension_against_optimal_matching():
    a, b = normal(7, 1).numpy(), normal(7, 1, seed=1).numpy() * 2
    matched = np.sqrt(np.square(np.sort(a[:, 0]) - np.sort(b[:, 0])).mean())
    assert sliced_wasserstein(torch.tensor(a), torch.tensor(b)) == pytest.approx(matched, rel=1e-6)
    assert matched >= wasserstein_distance_nd(a, b) - 1e-9


def test_exact_halves_are_close_and_their_distance_is_repeatable(gaussians):
    train, heldout = gaussians.train.samples, gaussians.heldout.samples
    near = sliced_wasserstein(heldout, train)
    assert near < 0.05 and near == sliced_wasserstein(heldout, train)
    reference = Reference(train=stats_of(train), mixture=gaussians.mixture)
    assert swd(stats_of(heldout), reference)[0] == pytest.approx(near, rel=1e-6)
    assert swd(stats_of(heldout + torch.tensor([0.2, 0.0])), reference)[0] == pytest.approx(0.2 / 2**0.5, rel=0.1)


def test_exact_samples_cover_every_mode(gaussians):
    coverage, outliers = modes(stats_of(gaussians.heldout.samples[:2000]), Reference(mixture=gaussians.mixture))
    assert coverage == 1.0 and outliers <= 0.001


def test_dropped_and_thinned_modes(gaussians):
    x, component = gaussians.mixture.sample(range(8000))
    assert mode_coverage(gaussians.mixture, x[component != 2]) == 7 / 8
    assert mode_coverage(gaussians.mixture, x[(component != 2) & (component != 5)]) == 6 / 8
    fifth = (component == 2) & (torch.arange(8000) % 5 > 0)
    assert mode_coverage(gaussians.mixture, x[~fifth]) == 7 / 8
    third = (component == 2) & (torch.arange(8000) % 4 == 0)
    assert mode_coverage(gaussians.mixture, x[~third]) == 1.0


def test_samples_between_the_modes(gaussians):
    x, _ = gaussians.mixture.sample(range(900))
    centre = torch.zeros(100, 2, dtype=x.dtype)
    assert outlier_fraction(gaussians.mixture, torch.cat([x, centre])) == pytest.approx(0.1, abs=0.0015)
    assert modes(stats_of(centre), Reference(mixture=gaussians.mixture)) == (0.0, 1.0)


@pytest.mark.parametrize("dim", [1, 2, 64])
def test_contours_hold_as_much_as_in_one_dimension(dim):
    x = normal(40_000, dim)
    assert (x.norm(dim=1) > sigma_radius(2, dim)).double().mean().item() == pytest.approx(0.0455, abs=0.004)
    assert sigma_radius(3, 1) == pytest.approx(3, rel=1e-9)


def test_mahalanobis_distances():
    mixture = GaussianMixture([1, 1], [[0.0, 0], [3, 0]], [[[4.0, 0], [0, 1]], [[1, 0], [0, 0]]], VPLinear())
    distances = mahalanobis(mixture, torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    assert distances[0].tolist() == pytest.approx([1.0, 1.0]) and distances[1, 0].item() == pytest.approx(3.0)
    assert distances[1, 1] > 1e100  # off a component without width
