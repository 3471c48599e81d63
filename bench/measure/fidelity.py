"""KID, precision and recall, and inception score on kept rows: what torch-fidelity computes of them.

The first two are loops of our own about its kernel and its definition: it would take KID in float64 from a copy of
all rows, and compute distances among the same 50,000 real rows again for every cell.
"""

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from bench.measure.statistics import FeatureStats, Reference
from students.errors import FewstepError

KID_SUBSET_SIZE = 1000
KID_SEED = 2020
NEIGHBOURS = 3
ROWS = 200  # at a time against all others: their squared distances to 50,000 rows take 40 MB
_known_radii: WeakKeyDictionary[FeatureStats, dict[int, Tensor]] = WeakKeyDictionary()  # of real rows, for a whole run
ISC = {"splits": 10, "shuffle": True, "rng_seed": 2020}


def kid_subsets(n1: int, n2: int) -> dict[str, int]:
    """100 subsets of 1000 rows as usual; all rows at once where one side has no more than 1000."""
    smaller = min(n1, n2)
    if smaller > KID_SUBSET_SIZE:
        return {"kid_subsets": 100, "kid_subset_size": KID_SUBSET_SIZE}
    return {"kid_subsets": 1, "kid_subset_size": smaller}


def kid(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """Kernel distance to the training half (Binkowski et al. 2018 [1801.01401]), the mean over `kid_subsets`.

    The unbiased squared MMD with the kernel (x.y / F + 1)^3; it can be slightly negative. In float64: third
    powers of float32 sums leave noise as large as a small KID.
    """
    sides = [stats["features"].rows().numpy() for stats in (generated, reference.train)]
    subsets, size = kid_subsets(*map(len, sides)).values()
    if size < 2:
        raise FewstepError("KID needs at least 2 samples on each side, got {} and {}".format(*map(len, sides)))
    random = np.random.RandomState(KID_SEED)

    def subset(rows: np.ndarray) -> np.ndarray:
        return rows[random.choice(len(rows), size, replace=False)].astype(np.float64)

    return (float(np.mean([squared_mmd(*map(subset, sides)) for _ in range(subsets)])),)


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of the squared MMD of rows (N, F) and as many others, with the kernel (x.y / F + 1)^3.

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j).
    """
    n, features = x.shape

    def total(a: np.ndarray, b: np.ndarray) -> float:
        """The sum of the kernel over all pairs."""
        products = a @ b.T
        products /= features
        products += 1
        return np.vdot(products * products, products)

    def alike(a: np.ndarray) -> float:
        """That over the pairs of a row with itself."""
        return (((a * a).sum(1) / features + 1) ** 3).sum()

    own = sum(total(a, a) - alike(a) for a in (x, y))
    return own / (n * (n - 1)) - 2 * total(x, y) / n**2


def precision_recall(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float, float]:
    """Improved precision and recall against the training half, k = 3 (Kynkaanniemi et al. 2019 [1904.06991]).

    The share of samples inside a ball about a real image that reaches to its k-th nearest neighbour, and of real
    images inside such a ball about a sample. Both depend on how many samples there are on each side: compare only
    numbers of the same counts.
    """
    rows = [stats["features"].rows() for stats in (generated, reference.train)]
    n, n_real = map(len, rows)
    if min(n, n_real) <= NEIGHBOURS:
        raise FewstepError(
            f"precision and recall need more than {NEIGHBOURS} samples on each side, got {n} and {n_real}"
        )
    ours, real = (side.to(reference.device) for side in rows)
    our_radii = radii(ours, NEIGHBOURS)
    real_radii = known_radii(reference.train["features"], NEIGHBOURS, reference.device)
    realistic, covered = 0, torch.zeros(n_real, dtype=torch.bool, device=reference.device)
    for part, reach in zip(ours.split(ROWS), our_radii.split(ROWS), strict=True):
        distances = squared_distances(part, real)
        realistic += int((distances <= real_radii).any(1).sum())
        covered |= (distances <= reach[:, None]).any(0)
    return realistic / n, covered.double().mean().item()


def radii(rows: Tensor, k: int) -> Tensor:
    """The squared distance of every row to its k-th nearest other one, (N,)."""
    parts = (squared_distances(part, rows) for part in rows.split(ROWS))
    nearest = [distances.topk(k + 1, largest=False).values for distances in parts]  # with the row itself
    return torch.cat(nearest)[:, -1]


def known_radii(real: FeatureStats, k: int, device) -> Tensor:
    """`radii` of real rows, computed once a run."""
    known = _known_radii.setdefault(real, {})
    if k not in known:
        known[k] = radii(real.rows().to(device), k)
    return known[k]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 as |b_j|^2 - 2 a_i.b_j + |a_i|^2, (len(a), len(b)); torch.cdist would copy all of b for it."""
    norms_a, norms_b = (torch.linalg.vector_norm(rows, dim=1).square() for rows in (a, b))
    return torch.addmm(norms_b, a, b.T, alpha=-2).add_(norms_a[:, None]).clamp_(min=0)


def inception_score(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """exp E KL(p(y|x) | p(y)) (Salimans et al. 2016 [1606.03498]), the mean over 10 splits."""
    logits = generated["logits"].rows()
    if len(logits) < ISC["splits"]:
        raise FewstepError(f"the inception score needs at least {ISC['splits']} samples, got {len(logits)}")
    return (isc_features_to_metric(logits, **ISC)[KEY_METRIC_ISC_MEAN],)
