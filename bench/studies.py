"""What papers say of the parts of their methods: variants to train and measure, `python -m bench study dmd-table2`.

Importing this module imports no torch; bench/study.py runs a study.
"""

from dataclasses import dataclass, field

PANELS, CONVERGENCE = "panels", "convergence"


@dataclass(frozen=True)
class Variant:
    """A method with options, and settings of its training."""

    label: str
    method: str
    options: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Variants to compare in one step. seeds: how many trainings of each. figure: PANELS of samples in the plane, the
    CONVERGENCE of their trainings, or None."""

    summary: str
    variants: tuple[Variant, ...]
    seeds: int = 1
    figure: str | None = None


STUDIES = {
    "dmd-table2": Study(
        "DMD without each of its terms, and with other weights [2311.18828]",
        (
            Variant("full, weight of Eq. 8", "dmd"),
            Variant("no distribution matching", "dmd", {"matching": False}),
            Variant("no regression", "dmd", {"regression": False}),
            Variant("weight sigma/alpha", "dmd", {"weight": "sigma/alpha"}),
            Variant("weight sigma^3/alpha", "dmd", {"weight": "sigma^3/alpha"}),
        ),
    ),
    "dmd2-table3": Study(
        "from DMD to DMD2, part by part [2405.14867]",
        (
            Variant("dmd", "dmd"),
            Variant("no regression, one time-scale, no GAN", "dmd2", {"gan": 0.0}, {"every": 1}),
            Variant("no regression, two time-scales, no GAN", "dmd2", {"gan": 0.0}),
            Variant("dmd2: no regression, two time-scales, GAN", "dmd2"),
        ),
    ),
    "sid-alpha": Study(
        "the weight alpha of score identity distillation [2404.04057]",
        (Variant("alpha 1.0", "sid", {"alpha": 1.0}), Variant("alpha 1.2", "sid", {"alpha": 1.2})),
    ),
    "disback-convergence": Study(
        "quality against updates of the generator, with and without backtracking [2408.15991]",
        (
            Variant("disback", "disback"),
            Variant("diff_instruct", "diff_instruct"),
            Variant("dmd", "dmd"),
        ),
        seeds=3,
        figure=CONVERGENCE,
    ),
    "dmd-figure3": Study(
        "one-step samples of DMD without each of its terms [2311.18828]",
        (
            Variant("full", "dmd"),
            Variant("no regression", "dmd", {"regression": False}),
            Variant("no regression, no fake score", "dmd", {"regression": False, "fake": False}),
        ),
        figure=PANELS,
    ),
}
