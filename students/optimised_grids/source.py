"""What grids are found from: a teacher's trajectories for tuning seeds, with every network evaluation counted."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from students.diffusion.denoiser import guided
from students.diffusion.grids import make_grid
from students.diffusion.noise import SeedNoise
from students.models.found_grids import TUNING_SEED
from students.models.teacher import Teacher
from students.solvers.pndm import ipndm

FINE_STEPS = 64
BATCH, BATCH_VALUES = 256, 2**18  # images, and numbers in them, that are under way at once


@dataclass(frozen=True)
class Found:
    """times: steps -> n + 1 decreasing times. settings: how they were found, for the record."""

    times: dict[int, list[float]]
    settings: dict = field(default_factory=dict)


class Trajectory:
    """The fine solution of the probability-flow ODE for a batch of seeds.

    times: (F + 1,). states: (F + 1, N, *shape). estimates: of the clean image at all times but the last,
    (F, N, *shape). noise: what the seeds draw next. denoise: with the batch's conditions joined in.
    """

    def __init__(self, denoise, times: Tensor, noise: SeedNoise):
        self.denoise, self.times, self.noise = denoise, times, noise
        start = noise() * denoise.schedule.sigma(times[0])
        states, estimates = [start], []

        def keep(index: int, time: Tensor, x: Tensor, x0: Tensor) -> None:
            states.append(x)
            estimates.append(x0)

        ipndm(denoise, start, times, callback=keep)
        self.states, self.estimates = torch.stack(states), torch.stack(estimates)


class Source:
    """A teacher, and `images` tuning seeds. `evaluations` counts its network's, a row of a batch each."""

    def __init__(self, teacher: Teacher, images: int):
        self.teacher, self.schedule = teacher, teacher.schedule
        self.seeds = range(TUNING_SEED, TUNING_SEED + images)
        self.evaluations = 0

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.evaluations += len(x)
        return self.teacher.denoiser(x, t, condition)

    def trajectories(self) -> Iterator[Trajectory]:
        """The fine solutions, a batch at a time: iPNDM in FINE_STEPS steps on EDM's grid, as GITS takes it."""
        times = make_grid("polynomial", self.schedule, FINE_STEPS)
        batch = max(1, min(BATCH, BATCH_VALUES // math.prod(self.teacher.shape)))
        device = next(iter(self.teacher.denoiser.state_dict().values())).device
        for start in range(0, len(self.seeds), batch):
            noise = SeedNoise(self.seeds[start : start + batch], self.teacher.shape, device)
            classes = self.teacher.classes
            conditions = None if classes is None else noise.classes(classes, self.teacher.prior)
            yield Trajectory(guided(self, conditions, 1.0), times, noise)
