"""KID, precision and recall, and inception score on kept rows, by the functions of torch-fidelity."""

from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from bench.measure.statistics import FeatureStats, Reference
from students.errors import FewstepError

# Every argument is passed, so that a change of torch-fidelity's defaults changes no number.
KID = {
    "kid_kernel": "poly",
    "kid_kernel_poly_degree": 3,
    "kid_kernel_poly_gamma": None,  # 1 / F
    "kid_kernel_poly_coef0": 1,
    "rng_seed": 2020,
    "verbose": False,
}
KID_SUBSET_SIZE = 1000
# 500 rows against all others at a time: the distances of 50,000 x 50,000 rows never take more than 0.5 GB
PRC = {"prc_neighborhood": 3, "prc_batch_size": 500, "save_cpu_ram": True, "verbose": False}
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
    ours, real = generated["features"].rows().double(), reference.train["features"].rows().double()
    subsets = kid_subsets(len(ours), len(real))
    if subsets["kid_subset_size"] < 2:
        raise FewstepError(f"KID needs at least 2 samples on each side, got {len(ours)} and {len(real)}")
    return (kid_features_to_metric(ours, real, **subsets, **KID)[KEY_METRIC_KID_MEAN],)


def precision_recall(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float, float]:
    """Improved precision and recall against the training half, k = 3 (Kynkaanniemi et al. 2019 [1904.06991]).

    Both depend on how many samples there are on each side: compare only numbers of the same counts.
    """
    ours, real = generated["features"].rows(), reference.train["features"].rows()
    neighbours = PRC["prc_neighborhood"]
    if min(len(ours), len(real)) <= neighbours:
        raise FewstepError(
            f"precision and recall need more than {neighbours} samples on each side, got {len(ours)} and {len(real)}"
        )
    measured = prc_features_to_metric(ours, real, **PRC)
    return measured[KEY_METRIC_PRECISION], measured[KEY_METRIC_RECALL]


def inception_score(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """exp E KL(p(y|x) | p(y)) (Salimans et al. 2016 [1606.03498]), the mean over 10 splits."""
    logits = generated["logits"].rows()
    if len(logits) < ISC["splits"]:
        raise FewstepError(f"the inception score needs at least {ISC['splits']} samples, got {len(logits)}")
    return (isc_features_to_metric(logits, **ISC)[KEY_METRIC_ISC_MEAN],)
