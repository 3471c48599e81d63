"""Vector samples against an exact Gaussian mixture: sliced Wasserstein distance, modes found, outliers."""

from weakref import WeakKeyDictionary

import torch
from scipy.stats import chi2, norm
from torch import Tensor

from bench.measure.statistics import FeatureStats, Reference
from students.diffusion.analytic import GaussianMixture

PROJECTIONS = 256
SEED = 0
COVERED_SIGMAS, OUTLIER_SIGMAS = 3, 4
COVERED_SHARE = 0.5
_known_projections: WeakKeyDictionary[FeatureStats, Tensor] = (
    WeakKeyDictionary()
)  # of real rows, for all cells of a run


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = PROJECTIONS, seed: int = SEED) -> float:
    """The sliced Wasserstein-2 distance of two sets of vectors (N, D) and (M, D) (Bonneel et al. 2015).

    The root mean square, over random directions, of the 1-d Wasserstein-2 distance of the projected samples,
    which is exact for any N and M. The directions are fixed by the seed. In float64.
    """
    return _distance(*(sorted_projections(rows, projections, seed) for rows in (a, b)))


def sorted_projections(rows: Tensor, projections: int = PROJECTIONS, seed: int = SEED) -> Tensor:
    """The rows (N, D) along each direction, in order: (projections, N) float64."""
    rows = rows.double()
    directions = torch.randn(
        projections, rows.shape[1], generator=torch.Generator().manual_seed(seed), dtype=rows.dtype
    )
    directions = directions / directions.norm(dim=1, keepdim=True)
    return (directions @ rows.T).sort(dim=1).values


def _distance(a: Tensor, b: Tensor) -> float:
    # both quantile functions are constant between consecutive multiples of 1 / N and of 1 / M
    edges = torch.cat([torch.arange(1, n + 1, dtype=a.dtype) / n for n in (a.shape[1], b.shape[1])]).sort().values
    widths = edges.diff(prepend=edges.new_zeros(1))
    middles = edges - widths / 2
    a, b = (rows[:, (middles * rows.shape[1]).long().clamp(max=rows.shape[1] - 1)] for rows in (a, b))
    return ((a - b).square() @ widths).mean().sqrt().item()


def mahalanobis(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """(N, K) Mahalanobis distances of x (N, D) to every component."""
    offset = x.to(mixture.means)[:, None, :] - mixture.means
    along = torch.einsum("nkd,kde->nke", offset, mixture.axes)
    variances = mixture.variances.clamp(min=torch.finfo(mixture.variances.dtype).tiny)
    return (along.square() / variances).sum(-1).sqrt()


def sigma_radius(sigmas: float, dim: int) -> float:
    """The Mahalanobis radius that holds as much of a D-dimensional Gaussian as `sigmas` holds of a 1-d one."""
    return chi2.isf(2 * norm.sf(sigmas), dim) ** 0.5


def mode_coverage(mixture: GaussianMixture, x: Tensor) -> float:
    """The fraction of components that hold at least half of the samples they should.

    A component holds the samples that lie within its 3-sigma contour (see `sigma_radius`) and are nearer to it,
    in its own Mahalanobis distance, than to any other; it should hold weight * 99.73 % of all.
    """
    distance, nearest = mahalanobis(mixture, x).min(dim=1)
    inside = nearest[distance <= sigma_radius(COVERED_SIGMAS, x.shape[1])]
    share = inside.bincount(minlength=len(mixture.weights)) / len(x)
    expected = mixture.weights * (1 - 2 * norm.sf(COVERED_SIGMAS))
    return (share >= COVERED_SHARE * expected).double().mean().item()


def outlier_fraction(mixture: GaussianMixture, x: Tensor) -> float:
    """The fraction of samples outside the 4-sigma contour of every component; 6e-5 or less for exact samples."""
    radius = sigma_radius(OUTLIER_SIGMAS, x.shape[1])
    return (mahalanobis(mixture, x) > radius).all(dim=1).double().mean().item()


def swd(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """`sliced_wasserstein` to the training half, which are exact samples of the mixture."""
    real = reference.train["samples"]
    if real not in _known_projections:
        _known_projections[real] = sorted_projections(real.rows())
    return (_distance(sorted_projections(generated["samples"].rows()), _known_projections[real]),)


def modes(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float, float]:
    """`mode_coverage` and `outlier_fraction`."""
    x = generated["samples"].rows()
    return mode_coverage(reference.mixture, x), outlier_fraction(reference.mixture, x)  # type: ignore[arg-type]
