"""How often a sample is seen as the class it was asked to be, by the extractor's own classifier."""

from bench.measure.statistics import FeatureStats, Reference


def agreement(generated: dict[str, FeatureStats], reference: Reference) -> tuple[float]:
    """The share of samples whose largest logit is that of their label, in [0, 1]."""
    return (generated["agreement"].mean().item(),)
