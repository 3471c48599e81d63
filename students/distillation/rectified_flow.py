"""Rectified flow and reflow (Liu et al. 2022 [2209.03003]; InstaFlow [2309.06380]): straight paths need few steps."""

import torch
from torch import Tensor

from students.base import SolverStudent
from students.diffusion.denoiser import expand
from students.diffusion.schedules import Flow
from students.diffusion.straightness import straightness
from students.distillation.method import DATA, PAIRS, Batch, Distillation, Pairs, trainable
from students.solvers.euler import euler

SAMPLES, SEED = 512, 0


class RectifiedFlow(Distillation):
    """The 1-flow, from data: with x_t = (1 - t) x_0 + t eps and t uniform,

        loss = |v(x_t, t) - (eps - x_0)|^2,    v = (x_t - D(x_t, t)) / t    (Eq. 1)

    sampled by Euler's method on a uniform grid. The paper trains it from scratch, InstaFlow starts from a diffusion
    model, as is done here: on the same pairs of independent noise and data their flows are the same in the limit.
    """

    source = DATA
    evaluations = 1
    budget = 0.2

    def build(self, stage, trained):
        return trainable(self.start, Flow, dropout=self.source == DATA, grid="uniform")

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        schedule, n = self.model.schedule, len(batch.x0)
        t = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
        t = schedule.t_min + (schedule.t_max - schedule.t_min) * t
        x = expand(1 - t, batch.x0) * batch.x0 + expand(t, batch.x0) * batch.noise
        error = (self.model(x, t, batch.labels) - batch.x0) / expand(t, x)
        return error.square().mean()

    def student(self, trained):
        return FlowStudent(trained[""], euler, grid="uniform")

    def report(self, model):
        """`straightness` of the flow that was trained, and that of the teacher's, both in flow coordinates."""
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.randn(SAMPLES, *self.start.shape, generator=generator)
        labels = None
        if model.classes is not None:
            labels = torch.randint(model.classes, (SAMPLES,), generator=generator)
        device = next(model.parameters()).device
        noise, labels = noise.to(device), None if labels is None else labels.to(device)
        return {
            "straightness": straightness(model.eval(), noise, labels),
            "teacher_straightness": straightness(self.teacher, noise, labels),
        }


class FlowStudent(SolverStudent):
    """A distilled network that is still an ODE, sampled by a solver on a grid."""

    family = "distilled"
    takes_guidance = False


class Reflow(RectifiedFlow):
    """The 2-flow: the same loss on the (noise, image) pairs of the flow before, which do not cross (Algorithm 1)."""

    source = PAIRS
    after = "rectified_flow"
    pairs = Pairs(count=10_000, solver="euler", steps=16)
    budget = 0.9


class Reflow3(Reflow):
    """The 3-flow, on the pairs of the 2-flow."""

    after = "reflow"
    budget = 0.85
