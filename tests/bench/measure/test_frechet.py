import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_statistics_to_metric

from bench.measure.frechet import exact_distance, feature_distance, frechet_distance, trace_sqrt_product
from bench.measure.statistics import FeatureStats, Reference
from students.errors import FewstepError

DIMS = 96


def covariance(spectrum, seed):
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return axes * spectrum @ axes.T


SPECTRA = {
    "flat": lambda: np.random.default_rng(0).uniform(0.5, 2, DIMS),
    "power law": lambda: np.arange(1.0, DIMS + 1) ** -1.5,
    "steep": lambda: np.logspace(0, -7, DIMS),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_agrees_with_the_general_square_root(spectrum):
    c1, c2 = (covariance(SPECTRA[spectrum](), seed) for seed in (1, 2))
    m1, m2 = np.random.default_rng(3).standard_normal((2, DIMS)) / DIMS
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-6)
    theirs = fid_statistics_to_metric({"mu": m1, "sigma": c1}, {"mu": m2, "sigma": c2}, verbose=False)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_closed_form_for_commuting_covariances():
    s1, s2 = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.25])
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    expected = 25 + ((np.sqrt(s1) - np.sqrt(s2)) ** 2).sum()
    got = frechet_distance([0, 3, 0], axes * s1 @ axes.T, [0, 0, 4], axes * s2 @ axes.T)
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ranks", [(20, 96), (96, 20), (20, 30), (1, 1)])
def test_singular_covariances(ranks):
    factors = [np.random.default_rng(seed).standard_normal((DIMS, rank)) for seed, rank in enumerate(ranks)]
    c1, c2 = (f @ f.T / len(f.T) for f in factors)
    # tr (C1 C2)^(1/2) is the nuclear norm of F1^T F2
    expected = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum() / np.sqrt(np.prod(ranks))
    assert trace_sqrt_product(c1, c2) == pytest.approx(expected, rel=1e-10)
    assert trace_sqrt_product(c2, c1) == pytest.approx(expected, rel=1e-10)


def test_fewer_samples_than_features():
    a, b = FeatureStats(), FeatureStats()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, DIMS, generator=generator)
    a.update(rows)
    b.update(rows + 2)
    assert frechet_distance(a.mean(), a.covariance(), b.mean(), b.covariance()) == pytest.approx(4 * DIMS, rel=1e-7)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_identical_statistics_have_no_distance(spectrum):
    c, m = covariance(SPECTRA[spectrum](), 1), np.ones(DIMS)
    assert 0 <= frechet_distance(m, c, m, c) < 1e-9 * np.trace(c)


def test_constant_samples():
    zero = np.zeros((2, 2))
    assert frechet_distance([0, 0], zero, [3, 4], zero) == 25
    assert frechet_distance([0, 0], zero, [0, 0], np.eye(2)) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_values_that_are_not_finite(bad, place):
    moments = [np.zeros(2), np.eye(2), np.zeros(2), np.eye(2)]
    moments[place] = moments[place].copy()
    moments[place].flat[0] = bad
    with pytest.raises(FewstepError, match="not finite"):
        frechet_distance(*moments)


@pytest.mark.parametrize("shapes", [(2, (2, 2), 3, (3, 3)), (2, (2, 3), 2, (2, 2)), (2, (2,), 2, (2, 2))])
def test_shapes_that_do_not_match(shapes):
    with pytest.raises(FewstepError, match="of one size, got"):
        frechet_distance(*map(np.zeros, shapes))


def test_distance_to_an_exact_mixture(mixture):
    x, _ = mixture.sample(range(20_000))
    generated, shifted = FeatureStats(), FeatureStats()
    generated.update(x)
    shifted.update(x + torch.tensor([0.5, 0.0]))
    reference = Reference(mixture=mixture)
    assert exact_distance({"samples": generated}, reference)[0] < 5e-4
    assert exact_distance({"samples": shifted}, reference)[0] == pytest.approx(0.25, abs=0.02)


def test_the_reference_is_the_training_half():
    far = FeatureStats.from_moments([9.0, 9], np.eye(2))
    near = FeatureStats.from_moments([1.0, 0], np.eye(2))
    at = FeatureStats.from_moments([0.0, 0], np.eye(2))
    reference = Reference(train={"features": near}, heldout={"features": far})
    assert feature_distance({"features": at}, reference) == pytest.approx((1.0,))
