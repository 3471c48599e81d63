"""Distillation of guided diffusion (Meng et al. 2022 [2210.03142]): the guidance scale becomes an input."""

import torch
from torch import Tensor

from students.diffusion.denoiser import expand, guided
from students.distillation.functions import draw_scales, log_normal
from students.distillation.method import needs_guidance
from students.distillation.trajectory.progressive import Progressive
from students.samplers import Sampler
from students.training.batches import Batch


class Guidance(Progressive):
    """Stage one, with w uniform between 1 and 4 (the paper's w, 0 to 4, is one less),

        loss = w(SNR) |D_student(x, sigma, w) - (D(x, sigma) + w (D(x, sigma, c) - D(x, sigma)))|^2    (Eq. 1)

    so that one evaluation does what took two; then progressive distillation of that, w an input throughout (Sec. 3.2).
    """

    stages = ("16", "8", "4", "2", "1")
    shares = (0.2, 0.2, 0.2, 0.2, 0.2)
    budget = 1.2

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        needs_guidance("guidance", teacher)

    def build(self, stage, trained):
        model = super().build(stage, trained)
        model.network.add_extra(1)
        return model

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        x0 = batch.data.x0
        self.scales = draw_scales(len(x0), generator)
        if self.stage != self.stages[0]:
            return super().loss(batch, step, generator)
        sigma = log_normal(len(x0), -0.8, 1.4, self.teacher.schedule, generator)
        x = x0 + expand(sigma, x0) * batch.noise
        with torch.no_grad():
            target = guided(self.teacher, batch.data.condition, expand(self.scales[:, 0], x))(x, sigma)
        return self.weighted(self.evaluate(self.model, x, sigma, batch), target, sigma)

    def evaluate(self, denoiser, x, sigma, batch):
        return denoiser(x, sigma, batch.data.condition, self.scales)

    def sampler(self, model):
        return Sampler("guided_levels", super().sampler(model).options)
