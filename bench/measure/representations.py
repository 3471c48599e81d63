"""From samples to the rows that metrics compare: one table, REPRESENTATIONS.

A representation is a function of a View, a batch of samples, and gives (N, F) rows.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from bench.measure.faithfulness import distances
from bench.tasks import Task
from students.errors import FewstepError, unknown


def to_uint8(x: Tensor, rounding: str = "round") -> Tensor:
    """Images in [-1, 1] to 8 bits, values outside clipped; raises FewstepError for another rounding rule.

    round: floor(127.5 (x + 1) + 1/2), which is also EDM's floor(127.5 x + 128). Inverts v / 127.5 - 1.
    truncate: floor(127.5 (x + 1)), the rule of ADM and consistency models; darker by half a level on average.
    """
    levels = (x.float() + 1) * 127.5
    if rounding == "round":
        levels = levels + 0.5
    elif rounding != "truncate":
        raise unknown("rounding", rounding, ("round", "truncate"))
    return levels.floor().clamp(0, 255).to(torch.uint8)


class View:
    """A batch of samples as representations see it; what several of them need is computed once.

    samples: (N, C, H, W) uint8 or in [-1, 1], or vectors (N, D). conditions: (N,) classes they were asked to show.
    teachers: the teacher's samples of the same noise and, of images, their features; None where there is no teacher.
    """

    def __init__(
        self,
        samples: Tensor,
        task: Task,
        extractor=None,
        conditions: Tensor | None = None,
        teachers: Sequence[Tensor] | None = None,
    ):
        self.samples, self.task, self.extractor = samples, task, extractor
        self.conditions, self.teachers = conditions, teachers

    @cached_property
    def images(self) -> Tensor:
        """The samples in 8 bits."""
        return self.samples if self.samples.dtype == torch.uint8 else to_uint8(self.samples, self.task.rounding)

    @cached_property
    def extracted(self) -> tuple[Tensor, Tensor | None]:
        """Features and logits of the images."""
        return self.extractor.features(self.images)


def features(view: View) -> Tensor:
    return view.extracted[0]


def logits(view: View) -> Tensor:
    return view.extracted[1]  # type: ignore[return-value]


def samples(view: View) -> Tensor:
    """Vectors as they are; 8-bit images scaled to [0, 1] and flattened."""
    return view.samples if view.task.kind == "vector" else view.images.flatten(1).float() / 255


def agreement(view: View) -> Tensor:
    """(N, 1), whether the largest logit is that of the class asked for; FewstepError for an extractor of others."""
    seen, asked = logits(view), view.conditions
    if seen.shape[1] != view.task.classes:
        raise FewstepError(
            f"extractor {view.task.extractor!r} knows {seen.shape[1]} classes, task {view.task.name!r} has "
            f"{view.task.classes}: leave the metric 'agreement' out"
        )
    return (seen.argmax(1) == asked.to(seen.device)).float()[:, None]  # type: ignore[union-attr]


def faithfulness(view: View) -> Tensor:
    """Distances to the teacher's samples (bench/measure/faithfulness.py), and of images also to their features."""
    made = [view.samples] if view.task.kind == "vector" else [view.samples, features(view)]
    return distances(made, view.teachers)


REPRESENTATIONS: dict[str, Callable[[View], Tensor]] = {
    "features": features,
    "logits": logits,
    "samples": samples,
    "agreement": agreement,
    "faithfulness": faithfulness,
}


def represent(view: View, names: Iterable[str]) -> dict[str, Tensor]:
    """The rows of a batch in the representations named."""
    return {name: REPRESENTATIONS[name](view) for name in names}
