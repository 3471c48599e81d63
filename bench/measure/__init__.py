"""What can be measured: one table of metrics, one of feature extractors. Importing this module imports no torch.

A metric is a function `f(generated, reference) -> numbers`, one number a column: `generated` maps a
representation to the FeatureStats of the samples, `reference` is a Reference (both in statistics.py).
Representations: "features" and "logits" of the task's extractor; "samples", which are uint8 images scaled to
[0, 1] and flattened, or vectors as they are.
"""

from dataclasses import dataclass
from pathlib import Path

from bench.identity import code_hash
from students.checkpoints.safetensors_file import verified_hash
from students.errors import unknown
from students.registry import import_object


@dataclass(frozen=True)
class Metric:
    """One line of METRICS.

    target: "module:function". better: "lower" or "higher", for every column but those in `opposite`.
    needs: representation -> "moments" or "rows". columns: names of the numbers, `{extractor}` where they
    depend on it. kind: of task, "image" or "vector".
    """

    name: str
    target: str
    better: str
    needs: dict[str, str]
    columns: tuple[str, ...]
    kind: str
    summary: str
    opposite: tuple[str, ...] = ()

    def compute(self, generated: dict, reference) -> tuple[float, ...]:
        """The numbers, in the order of `columns`."""
        return import_object(self.target)(generated, reference)

    def code(self) -> str:
        """The hash of the code that computes it."""
        return code_hash(self.target.partition(":")[0])


_IMAGE, _VECTOR = "image", "vector"

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "fd", "bench.measure.frechet:feature_distance", "lower", {"features": "moments"},
            ("fd_{extractor}",), _IMAGE, "Fréchet distance of features to the training half",
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
            "is", "bench.measure.fidelity:inception_score", "higher", {"logits": "rows"},
            ("is_{extractor}",), _IMAGE, "inception score on the extractor's classes",
        ),
        Metric(
            "fd_pixel", "bench.measure.frechet:sample_distance", "lower", {"samples": "moments"},
            ("fd_pixel",), _IMAGE, "Fréchet distance of pixels to the training half",
        ),
        Metric(
            "memorisation", "bench.measure.memorisation:memorisation", "lower", {"samples": "rows"},
            ("memorised", "nn_ratio"), _IMAGE, "copies of training images", opposite=("nn_ratio",),
        ),
        Metric(
            "fd_exact", "bench.measure.frechet:exact_distance", "lower", {"samples": "moments"},
            ("fd_exact",), _VECTOR, "Fréchet distance to the exact moments",
        ),
        Metric(
            "swd", "bench.measure.vectors:swd", "lower", {"samples": "rows"},
            ("swd",), _VECTOR, "sliced Wasserstein-2 distance to exact samples",
        ),
        Metric(
            "modes", "bench.measure.vectors:modes", "higher", {"samples": "rows"},
            ("mode_coverage", "outliers"), _VECTOR, "modes found, and samples far from all", opposite=("outliers",),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class ExtractorEntry:
    """A feature extractor whose weights ship. target: of a torch-fidelity FeatureExtractorBase subclass.

    `python -m <module>` makes the weights again.
    """

    target: str
    weights: Path

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]


WEIGHTS = Path(__file__).parent.parent / "weights"

EXTRACTORS = {
    "digits_cnn": ExtractorEntry("bench.measure.digits_cnn:DigitsExtractor", WEIGHTS / "digits_cnn.safetensors"),
}


def extractor_identity(name: str) -> dict:
    """What the numbers of an extractor depend on, for a cell's id.

    Raises FewstepError for an unknown name, and WeightsError for weights that are missing or altered.
    """
    if ":" in name:
        import_object(name)
        return {"name": name, "code": code_hash(name.partition(":")[0])}
    if name not in EXTRACTORS:
        raise unknown("extractor", name, [*EXTRACTORS, "package.module:attribute"])
    entry = EXTRACTORS[name]
    return {"name": name, "weights": verified_hash(entry.weights), "code": code_hash(entry.module)}
