"""What an update sees: noise, data and noise-image pairs, each drawn independently, and as much of it as is needed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NOISE, DATA, PAIRS = "noise", "data", "pairs"


@dataclass(frozen=True)
class Data:
    """x0: (N, *shape), images in [-1, 1] or vectors. condition: (N,) classes, or None."""

    x0: Tensor
    condition: Tensor | None = None


@dataclass(frozen=True)
class PairRows:
    """noise: (N, *shape) standard normal, x0: (N, *shape) what a teacher's sampler made of it, condition: (N,) or None.

    path: (N, M, *shape), the states between, in VE coordinates from the noise end to the data end; None if not kept.
    """

    noise: Tensor
    x0: Tensor
    condition: Tensor | None = None
    path: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """What a method says that it needs (`Distillation.needs`); the rest is None.

    The types leave that None out, so that a method need not check what it has asked for.

    noise: (N, *shape) standard normal. condition: (N,) classes drawn from the prior for that noise, None for an
    unconditional teacher.
    """

    noise: Tensor = None  # type: ignore[assignment]
    condition: Tensor | None = None
    data: Data = None  # type: ignore[assignment]
    pairs: PairRows = None  # type: ignore[assignment]


class Batches:
    """Draws batches of `n` rows; all randomness comes from the generator that a call is given.

    samples, labels: the data, images as uint8. flips: mirror half of the images. classes, prior: of the conditions for
    noise. pairs: a PairSet (pairs.py).
    """

    def __init__(self, needs, n: int, samples: Tensor, labels: Tensor | None, *, flips=False, classes=None, prior=None,
                 pairs=None):  # fmt: skip
        self.needs, self.n = frozenset(needs), n
        self.samples, self.labels, self.flips = samples, labels, flips
        self.classes = classes
        if classes is not None:
            prior = torch.ones(classes) if prior is None else prior
            self.prior = prior.float().to(samples.device)
        self.pairs = pairs

    def __call__(self, generator: torch.Generator) -> Batch:
        drawn: dict[str, Any] = {}
        if DATA in self.needs:
            drawn["data"] = Data(*draw_data(self.samples, self.labels, self.n, generator, self.flips))
        if NOISE in self.needs:
            shape, device = (self.n, *self.samples.shape[1:]), self.samples.device
            drawn["noise"] = torch.randn(shape, generator=generator, device=device)
            if self.classes is not None:
                drawn["condition"] = torch.multinomial(self.prior, self.n, replacement=True, generator=generator)
        if PAIRS in self.needs:
            index = torch.randint(self.pairs.count, (self.n,), generator=generator, device=self.samples.device)
            drawn["pairs"] = self.pairs.rows(index, self.samples.device)
        return Batch(**drawn)


def scaled(samples: Tensor) -> Tensor:
    """Images (uint8) as float32 in [-1, 1]; vectors in float32 as they are."""
    return samples / 127.5 - 1 if samples.dtype == torch.uint8 else samples.float()


def draw_data(
    samples: Tensor, labels: Tensor | None, n: int, generator: torch.Generator, flips: bool = False
) -> tuple[Tensor, Tensor | None]:
    """n random rows of the data: images as float32 in [-1, 1], with `flips` half of them mirrored, or vectors."""
    rows = torch.randint(len(samples), (n,), generator=generator, device=samples.device)
    x0 = scaled(samples[rows])
    if flips:
        flipped = torch.rand(n, generator=generator, device=samples.device) < 0.5
        x0 = torch.where(flipped[:, None, None, None], x0.flip(3), x0)
    return x0, None if labels is None else labels[rows]
