"""Rectified flow and reflow (Liu et al. 2022 [2209.03003]; InstaFlow [2309.06380]): straight paths need few steps."""

from typing import ClassVar

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.diffusion.schedules import Flow
from students.diffusion.straightness import straightness
from students.distillation.method import Distillation, Pairs, trainable
from students.samplers import Sampler
from students.training.batches import DATA, NOISE, PAIRS, Batch

SAMPLES, SEED = 512, 0


class RectifiedFlow(Distillation):
    """The 1-flow, from data: with x_t = (1 - t) x_0 + t eps and t uniform,

        loss = |v(x_t, t) - (eps - x_0)|^2,    v = (x_t - D(x_t, t)) / t    (Eq. 1)

    sampled by Euler's method on a uniform grid. The paper trains it from scratch, InstaFlow starts from a diffusion
    model, as is done here: on the same pairs of independent noise and data their flows are the same in the limit.
    """

    needs = {NOISE, DATA}
    evaluations = 1
    budget = 0.2
    settings = {"dropout": 0.1}

    def build(self, stage, trained):
        return trainable(self.start, Flow)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        noise, x0, condition = self.ends(batch)
        schedule, n = self.model.schedule, len(x0)
        t = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * t
        x = expand(1 - t, x0) * x0 + expand(t, x0) * noise
        error = (self.model(x, t, condition) - x0) / expand(t, x)
        return error.square().mean()

    def ends(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Noise, images and classes, of which the paths are the straight lines."""
        return batch.noise, batch.data.x0, batch.data.condition

    def sampler(self, model):
        return Sampler("flow", {"grid": "uniform"})

    def report(self, model):
        """`straightness` of the flow that was trained, and that of the teacher's, both in flow coordinates."""
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.randn(SAMPLES, *self.start.shape, generator=generator)
        condition = None
        if model.classes is not None:
            condition = torch.randint(model.classes, (SAMPLES,), generator=generator)
        device = next(model.parameters()).device
        noise, condition = noise.to(device), None if condition is None else condition.to(device)
        return {
            "straightness": straightness(model.eval(), noise, condition),
            "teacher_straightness": straightness(self.teacher, noise, condition),
        }


class Reflow(RectifiedFlow):
    """The 2-flow: the same loss on the (noise, image) pairs of the flow before, which do not cross (Algorithm 1)."""

    needs = {PAIRS}
    after = "rectified_flow"
    pairs = Pairs(count=10_000, solver="euler", steps=16)
    budget = 0.9
    settings: ClassVar[dict] = {}

    def ends(self, batch):
        return batch.pairs.noise, batch.pairs.x0, batch.pairs.condition


class Reflow3(Reflow):
    """The 3-flow, on the pairs of the 2-flow."""

    after = "reflow"
    budget = 0.85
