"""Latent consistency distillation (Luo et al. 2023 [2310.04378]): a consistency function of the guided ODE."""

import torch
from torch import Tensor

from students.diffusion.denoiser import expand, guided
from students.distillation.consistency import ConsistencyDistillation, noise_levels
from students.distillation.guidance import ScaledStudent, draw_scales, needs_guidance
from students.distillation.method import Batch, jump, randint, squared, with_numbers
from students.solvers.consistency import consistency


class LatentConsistency(ConsistencyDistillation):
    """Algorithm 1, on the augmented probability-flow ODE, whose state has the guidance scale w as a constant:

        loss = d(f(x, s, w), f_ema(x_t, t, w)),    x_t = x_0^w + t/s (x - x_0^w),

    x_0^w the guided teacher's (Eq. 8), t lying `skip` of the grid's `levels` below s (skipping-step, Sec. 4.3), d as in
    consistency distillation, f the identity at the data end. Sampled by the multistep consistency sampler.
    """

    evaluations = 4
    ranges = {"levels": (2, 10_000), "skip": (1, 10_000)}

    def __init__(self, teacher, start, *, levels: int = 100, skip: int = 5):
        super().__init__(teacher, start)
        needs_guidance("lcm", teacher)
        self.levels, self.skip = self.sigmas(levels), skip

    def build(self, stage, trained):
        return with_numbers(super().build(stage, trained), 1)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        levels = self.levels.to(batch.noise.device)
        i = randint(len(levels) - 1, len(batch.x0), generator)
        s, t = levels[i], levels[(i + self.skip).clamp(max=len(levels) - 1)]
        scales = draw_scales(len(batch.x0), generator)
        x = batch.x0 + expand(s, batch.x0) * batch.noise
        with torch.no_grad():
            x_t = jump(x, guided(self.teacher, batch.labels, expand(scales[:, 0], x))(x, s), s, t)
            target = self.target(x_t, t, batch.labels, scales)
        return (self.edm_weight(s) * squared(self.model(x, s, batch.labels, scales), target)).mean()

    def student(self, trained):
        model = trained[""]
        return ScaledStudent(model, consistency, noise_levels(model.schedule, model.sigma_data))
