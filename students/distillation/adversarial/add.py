"""Adversarial diffusion distillation (Sauer et al. 2023 [2311.17042]): an encoder judges, the teacher corrects."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.diffusion.schedules import VE
from students.distillation.adversarial.core import HINGE, Adversarial, noised
from students.distillation.functions import matching_levels, normal, squared
from students.distillation.method import trainable
from students.errors import FewstepError
from students.networks.discriminator import EncoderDiscriminator, FeatureDiscriminator
from students.options import Range
from students.training.batches import Batch
from students.training.encoder import encoder_weights, load_encoder


class AdversarialDiffusion(Adversarial):
    """With x' = G(x_s, s) at one of the four levels s that sampling visits, the first of which is pure noise,

        G: -sum_k h_k(F_k(x')) + distillation c(t) |x' - D(x' + t eps, t)|^2    (Eq. 1, 2, 4)
        heads: hinge loss + r1/2 |gradient by F_k(x_0)|^2                         (Eq. 3)

    F_k are the hidden tensors of a frozen encoder, h_k small heads, told the class by projection. D is the teacher at a
    random level t, without a gradient through it, and c(t) = alpha_t = 1 / sqrt(1 + t^2), the exponential weighting of
    the paper's ablations. The student starts as the teacher.

    encoder: its weights, by default those of the task; an encoder for training (students/training/encoder.py), never
    the extractor that measures. Vectors have none: there the heads read the hidden tensors of the network that students
    start from, frozen, at its least noise level. The paper's successor [2403.12015] judges by a diffusion model, too.
    """

    @dataclass(frozen=True)
    class Options(Adversarial.Options):
        distillation: Annotated[float, Range(0, 1e6)] = 2.5
        encoder: str | None = None

    game = HINGE
    vector_settings = Adversarial.vector_settings | {"lr": 5e-4}
    evaluations = 3

    def prepare(self):
        self.encoder = None
        if len(self.start.shape) == 1 and self.options.encoder is not None:
            raise FewstepError("add: encoders are of images, and vectors have none: leave encoder out")
        if len(self.start.shape) == 3:
            path = Path(self.options.encoder or encoder_weights(self.source.name or ""))
            self.encoder = load_encoder(path, self.start.shape, next(self.start.parameters()).device)

    def feature_spaces(self):
        return ["encoder" if self.encoder is not None else "teacher"]

    def discriminator(self):
        if self.encoder is not None:
            return EncoderDiscriminator(self.encoder, self.start.classes)
        return FeatureDiscriminator(trainable(self.start, VE).requires_grad_(False))

    def generate(self, batch: Batch, generator: torch.Generator) -> Tensor:
        x0 = batch.data.x0
        i, levels = self.starts(len(x0), generator), self.path.to(x0.device)
        return self.model(noised(x0, levels, i, batch.noise), levels[i], batch.data.condition)

    def judge(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        return self.critic(x, x.new_full((len(x),), self.model.schedule.t_min), condition)

    def discriminator_loss(self, batch, step, generator):
        condition = batch.data.condition
        with torch.no_grad():
            made = self.generate(batch, generator)
        real, features = self.judge(batch.data.x0, condition)
        return self.judged(real, self.judge(made, condition)[0], features)

    def loss(self, batch, step, generator):
        condition = batch.data.condition
        made = self.generate(batch, generator)
        t = matching_levels(len(made), self.start.sigma_data, self.teacher.schedule, generator)
        with torch.no_grad():
            target = self.teacher(made + expand(t, made) * normal(made, generator), t, condition)
        distillation = (squared(made, target) / (1 + t**2).sqrt().to(made)).mean()
        return {
            "adversarial": self.game.generator(self.judge(made, condition)[0]),
            "distillation": self.options.distillation * distillation,
        }
