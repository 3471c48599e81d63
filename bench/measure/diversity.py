"""How much of the data samples cover, whatever their quality: density and coverage, Vendi score, classes, spread."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bench.measure.fidelity import ROWS, known_radii, squared_distances
from bench.measure.statistics import FeatureStats, Reference
from students.errors import FewstepError

NEIGHBOURS = 5
_known_spreads: WeakKeyDictionary[FeatureStats, float] = WeakKeyDictionary()  # of real rows, for a whole run


def density_coverage(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float, float]:
    """Density and coverage against the training half, k = 5 (Naeem et al. 2020 [2002.09797], Eq. 4 and 5).

    About every real image lies the ball that reaches to its k-th nearest neighbour. Density is the mean number of balls
    a sample is in, divided by k, which may exceed 1; coverage the share of balls that hold a sample. Of the samples as
    many as there are real images are taken, the first: enough of them would find every ball.
    """
    ours, real = (stats["features"].rows().to(reference.device) for stats in (generated, reference.train))
    ours = ours[: len(real)]
    if len(real) <= NEIGHBOURS:
        raise FewstepError(f"density and coverage need more than {NEIGHBOURS} real images, got {len(real)}")
    reach = known_radii(reference.train["features"], NEIGHBOURS, reference.device)
    within, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=reference.device)
    for part in ours.split(ROWS):
        inside = squared_distances(part, real) <= reach
        within += int(inside.sum())
        covered |= inside.any(0)
    return within / (NEIGHBOURS * len(ours)), covered.double().mean().item()


def vendi(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """exp(-sum_i l_i log l_i), l_i the eigenvalues of K / N, K_ij the cosine of features i and j: how many different
    samples there seem to be, from 1 to N (Friedman & Dieng 2023 [2210.02410], Def. 3.1).

    Those of K / N are those of X^T X / N too, X the features (N, F) scaled to length one, so N may be large.
    """
    rows = generated["features"].rows().double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    values = torch.linalg.eigvalsh(rows.T @ rows / len(rows)).clamp(min=0)
    return (torch.special.entr(values / values.sum()).sum().exp().item(),)


def classes(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float, float]:
    """How many of the extractor's classes are found, and how far their shares p are from those of real images, q.

    A class is found if it has half of its share or more. The distance is chi-square's, sum_c (p_c - q_c)^2 / q_c, over
    the classes that real images, of the training half, are seen as.
    """
    p, q = (shares(stats["logits"].rows()) for stats in (generated, reference.train))
    known = q > 0
    found = (p[known] >= q[known] / 2).sum().item()
    return float(found), ((p - q)[known].square() / q[known]).sum().item()


def shares(logits: Tensor) -> Tensor:
    """(K,) the share of rows (N, K) whose largest logit is that of a class."""
    return logits.argmax(1).bincount(minlength=logits.shape[1]).double() / len(logits)


def spread(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """The mean distance of two samples' features, relative to that of two real images of the training half."""
    real = reference.train["features"]
    if real not in _known_spreads:
        _known_spreads[real] = mean_distance(real.rows().to(reference.device))
    return (mean_distance(generated["features"].rows().to(reference.device)) / _known_spreads[real],)


def mean_distance(rows: Tensor) -> float:
    """The mean of |a - b| over all pairs of different rows (N, F)."""
    if len(rows) < 2:
        raise FewstepError("a distance of two samples needs two of them")
    total = sum(squared_distances(part, rows).sqrt().double().sum().item() for part in rows.split(ROWS))
    return total / (len(rows) * (len(rows) - 1))
