"""What can be measured: one table of metrics; extractors.py has that of feature extractors. Neither imports torch.

A metric is a function `f(generated, reference) -> numbers`, one number a column: `generated` maps a
representation to the FeatureStats of the samples, `reference` is a Reference (both in statistics.py).
Representations: "features" and "logits" of the task's extractor; "agreement", whether the largest logit is that of
the label; "samples", which are uint8 images scaled to [0, 1] and flattened, or vectors as they are; "faithfulness",
distances to the teacher's sample of the same noise (faithfulness.py).
"""

from dataclasses import dataclass

from bench.identity import code_hash
from students.spec import import_object


@dataclass(frozen=True)
class Metric:
    """One line of METRICS.

    target: "module:function". better: "lower" or "higher", for every column but those in `opposite`.
    needs: representation -> "moments" or "rows". columns: names of the numbers, `{extractor}` where they
    depend on it (see `metric_columns`). kind: of task, "image" or "vector". heldout: whether it looks at the
    held-out half too. smooth: whether its uncertainty is estimated from the samples of a cell (jackknife.py).
    """

    name: str
    target: str
    better: str
    needs: dict[str, str]
    columns: tuple[str, ...]
    kind: str
    summary: str
    opposite: tuple[str, ...] = ()
    heldout: bool = False
    smooth: bool = False

    def compute(self, generated: dict, reference) -> tuple[float, ...]:
        """The numbers, in the order of `columns`."""
        return import_object(self.target)(generated, reference)

    def code(self) -> str:
        """The hash of the code that computes it."""
        return code_hash(self.target.partition(":")[0])


_IMAGE, _VECTOR = "image", "vector"
TEACHER_SOLVER, TEACHER_STEPS = "heun", 32  # of the teacher's own images, see faithfulness.py

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "fd", "bench.measure.frechet:feature_distance", "lower", {"features": "moments"},
            ("fd_{extractor}",), _IMAGE, "Fréchet distance of features to the training half", smooth=True,
        ),
        Metric(
            "fd_heldout", "bench.measure.frechet:heldout_distance", "lower", {"features": "moments"},
            ("fd_{extractor}_heldout",), _IMAGE, "Fréchet distance of features to the held-out half", heldout=True,
            smooth=True,
        ),
        Metric(
            "kid", "bench.measure.fidelity:kid", "lower", {"features": "rows"},
            ("kid_{extractor}",), _IMAGE, "kernel distance (MMD) of features to the training half",
        ),
        Metric(
            "prc", "bench.measure.fidelity:precision_recall", "higher", {"features": "rows"},
            ("precision_{extractor}", "recall_{extractor}"), _IMAGE, "precision and recall of features, k = 3",
        ),
        Metric(
            "coverage", "bench.measure.diversity:density_coverage", "higher", {"features": "rows"},
            ("density_{extractor}", "coverage_{extractor}"), _IMAGE, "density and coverage of features, k = 5",
        ),
        Metric(
            "vendi", "bench.measure.diversity:vendi", "higher", {"features": "rows"},
            ("vendi_{extractor}",), _IMAGE, "Vendi score of features: how many different samples there seem to be",
        ),
        Metric(
            "spread", "bench.measure.diversity:spread", "higher", {"features": "rows"},
            ("spread_{extractor}",), _IMAGE, "mean distance of two samples' features, relative to real images'",
        ),
        Metric(
            "classes", "bench.measure.diversity:classes", "higher", {"logits": "rows"},
            ("classes_{extractor}", "class_distance_{extractor}"), _IMAGE,
            "classes of the extractor found, and chi-square distance of their shares to real images'",
            opposite=("class_distance_{extractor}",),
        ),
        Metric(
            "is", "bench.measure.fidelity:inception_score", "higher", {"logits": "rows"},
            ("is_{extractor}",), _IMAGE, "inception score on the extractor's classes",
        ),
        Metric(
            "agreement", "bench.measure.agreement:agreement", "higher", {"agreement": "moments"},
            ("agreement_{extractor}",), _IMAGE, "samples seen as their class by the extractor",
        ),
        Metric(
            "fd_pixel", "bench.measure.frechet:sample_distance", "lower", {"samples": "moments"},
            ("fd_pixel",), _IMAGE, "Fréchet distance of pixels to the training half",
        ),
        Metric(
            "memorisation", "bench.measure.memorisation:memorisation", "lower", {"samples": "rows"},
            ("memorised", "nn_ratio"), _IMAGE, "copies of training images", opposite=("nn_ratio",),
            heldout=True,
        ),
        Metric(
            "faithfulness", "bench.measure.faithfulness:faithfulness", "lower", {"faithfulness": "moments"},
            ("teacher_pixel", "teacher_{extractor}"), _IMAGE,
            "distance to the teacher's image of the same noise, in pixels and in features",
        ),
        Metric(
            "fd_exact", "bench.measure.frechet:exact_distance", "lower", {"samples": "moments"},
            ("fd_exact",), _VECTOR, "Fréchet distance to the exact moments", smooth=True,
        ),
        Metric(
            "swd", "bench.measure.vectors:swd", "lower", {"samples": "rows"},
            ("swd",), _VECTOR, "sliced Wasserstein-2 distance to exact samples", smooth=True,
        ),
        Metric(
            "modes", "bench.measure.vectors:modes", "higher", {"samples": "rows"},
            ("mode_coverage", "outliers"), _VECTOR, "modes found, and samples far from all", opposite=("outliers",),
        ),
        Metric(
            "faithfulness_vector", "bench.measure.faithfulness:faithfulness", "lower", {"faithfulness": "moments"},
            ("teacher_distance",), _VECTOR, "distance to the teacher's sample of the same noise",
        ),
    )
}  # fmt: skip


# The extractors whose Fréchet distance is called FID, with this suffix; in spatial features it is called sFID
FID = {
    "inception": "",
    "inception768": "768",
    "inception_clean": "_clean",
    "inception768_clean": "768_clean",
    "inception_spatial": "_spatial",
}
SFID = "fid_spatial", "sfid"


def metric_columns(name: str, extractor: str | None) -> tuple[str, ...]:
    """The columns of a metric: `fd_digits_cnn`; for Inception features `fid`, `kid`, ..., or `fid768`, `kid768`, ..."""
    if extractor not in FID:
        return tuple(column.format(extractor=extractor) for column in METRICS[name].columns)
    columns = (column.replace("fd_{extractor}", "fid_{extractor}") for column in METRICS[name].columns)
    return tuple(column.replace("_{extractor}", FID[extractor]).replace(*SFID) for column in columns)


def extractor_columns(extractor: str | None) -> set[str]:
    """The columns of all metrics that look through the extractor."""
    return {
        column
        for name, metric in METRICS.items()
        for template, column in zip(metric.columns, metric_columns(name, extractor), strict=True)
        if "{extractor}" in template
    }
