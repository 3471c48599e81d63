"""Samples of a cell, batch by batch, with what they cost; and whether they are what samples must be."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.measure.latency import synchronise
from bench.plan import Cell
from students.errors import FewstepError
from students.nfe import NFE, count_nfe

RANGE_SLACK = 1e-3
SEED_SLACK = 0.25


@dataclass(frozen=True)
class Batch:
    """The samples of some seeds, the conditions they were asked to show, their seconds and network evaluations."""

    seeds: range
    conditions: Tensor | None
    samples: Tensor
    seconds: float
    nfe: NFE


def sample(student, n_steps: int, seeds: range, conditions: Tensor | None, guidance: float) -> Tensor:
    """What `student.sample` returns; conditions and guidance are passed where there are any."""
    given: dict[str, Tensor | float] = {} if conditions is None else {"conditions": conditions}
    if guidance != 1:
        given["guidance"] = guidance
    return student.sample(n_steps, seeds=seeds, **given)


def draw(
    student, cell: Cell, seeds: range, conditions: Tensor | None, batch_size: int, device: torch.device
) -> Iterator[Batch]:
    """The samples of these seeds, in order. Where the device's memory is too small, batches are halved.

    conditions: one a seed, or None. Raises torch.OutOfMemoryError where a single sample does not fit.
    """
    size, start = batch_size, 0
    while start < len(seeds):
        part = slice(start, start + size)
        asked = None if conditions is None else conditions[part]
        begin = time.perf_counter()
        try:
            with count_nfe(student) as nfe:
                samples = sample(student, cell.steps, seeds[part], asked, cell.guidance)
            synchronise(device)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = (min(size, len(seeds) - start) + 1) // 2
            torch.cuda.empty_cache()
            continue
        yield Batch(seeds[part], asked, samples, time.perf_counter() - begin, nfe)
        start += size


def check_samples(samples, n: int, shape: tuple[int, ...], name: str) -> None:
    """Raise FewstepError unless samples are finite floats (n, *shape), in [-1, 1] for images."""
    if not torch.is_tensor(samples) or samples.shape != (n, *shape):
        got = tuple(samples.shape) if torch.is_tensor(samples) else type(samples).__name__
        raise FewstepError(f"{name} returned {got} for {n} seeds: sample() must return a tensor {(n, *shape)}")
    if not samples.is_floating_point():
        raise FewstepError(f"{name} returned {samples.dtype}: sample() must return float32 in [-1, 1]")
    if bad := (~samples.isfinite()).flatten(1).any(1).sum().item():
        raise FewstepError(f"{name} returned NaN or infinity in {bad} of {n} samples")
    low, high = samples.min().item(), samples.max().item()
    if len(shape) == 3 and (low < -1 - RANGE_SLACK or high > 1 + RANGE_SLACK):
        raise FewstepError(f"{name} returned values in [{low:.3g}, {high:.3g}]: images must lie in [-1, 1]; clamp them")


def check_seeds(alone: Tensor, batch: Tensor, name: str) -> None:
    """Raise FewstepError unless the first sample of a batch is the one its seed gives alone, up to rounding.

    Rounding is far below SEED_SLACK of the spread among the batch, another draw of noise far above it.
    """
    difference = (alone[0] - batch[0]).square().mean().sqrt()
    if len(batch) > 1 and difference > SEED_SLACK * (batch - batch.mean(0)).square().mean().sqrt():
        raise FewstepError(
            f"{name} gives a seed another sample in a batch than alone: draw all randomness from `noise` (SeedNoise)"
        )
