"""The Fréchet distance between two Gaussians, known as FID on Inception features (Heusel et al. 2017 [1706.08500])."""

import math

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh, eigvalsh, svdvals

from bench.measure.statistics import FeatureStats, Reference
from students.errors import FewstepError


def frechet_distance(mean1, cov1, mean2, cov2) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in float64.

    Takes arrays or CPU tensors, (F,) and (F, F). Rounding below zero is returned as 0. Raises FewstepError for
    shapes that do not match and for values that are not finite.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(value, dtype=np.float64) for value in (mean1, cov1, mean2, cov2))
    if mean1.ndim != 1 or mean1.shape != mean2.shape or not cov1.shape == cov2.shape == mean1.shape * 2:
        shapes = ", ".join(str(value.shape) for value in (mean1, cov1, mean2, cov2))
        raise FewstepError(f"Fréchet distance takes means (F,) and covariances (F, F) of one size, got {shapes}")
    if not all(np.isfinite(value).all() for value in (mean1, cov1, mean2, cov2)):
        raise FewstepError(
            "Fréchet distance of statistics that are not finite: look for NaN or infinity in the samples"
        )
    shift = mean1 - mean2
    distance = shift @ shift + np.trace(cov1) + np.trace(cov2) - 2 * trace_sqrt_product(cov1, cov2)
    return max(float(distance), 0.0)


def trace_sqrt_product(cov1: np.ndarray, cov2: np.ndarray) -> float:
    """tr (C1 C2)^(1/2) for symmetric positive semi-definite C1 and C2.

    With C2 = L L^T, the eigenvalues of C1 C2 are those of the symmetric L^T C1 L, which LAPACK's sygv (type 2)
    forms and solves in one call. If either matrix is singular (fewer samples than features), rounding would turn
    each zero eigenvalue e into sqrt(e); then C = R R^T with R of full column rank, and the trace is the sum of
    the singular values of R1^T R2.
    """
    try:
        cholesky(cov1, lower=True)
        return float(np.sqrt(eigvalsh(cov1, cov2, type=2, driver="gv").clip(min=0)).sum())
    except LinAlgError:
        return float(svdvals(_root(cov1).T @ _root(cov2)).sum())


def _root(cov: np.ndarray) -> np.ndarray:
    """R (F, rank) with R R^T = cov."""
    values, vectors = eigh(cov)
    kept = values > len(values) * np.finfo(np.float64).eps * abs(values).max()
    return vectors[:, kept] * np.sqrt(values[kept])


def _distance(a: FeatureStats, b: FeatureStats) -> tuple[float]:
    return (frechet_distance(a.mean(), a.covariance(), b.mean(), b.covariance()),)


def feature_distance(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """Fréchet distance of features to the training half."""
    return _distance(generated["features"], reference.train["features"])


def heldout_distance(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """Fréchet distance of features to the held-out half, which no student and no extractor has seen.

    NaN for that half itself.
    """
    ours, theirs = generated["features"], reference.heldout["features"]
    return (math.nan,) if ours.mean().equal(theirs.mean()) else _distance(ours, theirs)


def sample_distance(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """Fréchet distance of pixels to the training half."""
    return _distance(generated["samples"], reference.train["samples"])


def exact_distance(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """Fréchet distance of vectors to the exact moments of the mixture."""
    return _distance(generated["samples"], FeatureStats.from_moments(*reference.mixture.moments()))  # type: ignore[union-attr]
