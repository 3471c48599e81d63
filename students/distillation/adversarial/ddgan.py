"""Denoising diffusion GANs (Xiao et al. 2021 [2112.07804]): a conditional GAN for every large denoising step."""

import math

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.diffusion.preconditioning import edm_scalings
from students.diffusion.schedules import VE
from students.distillation.adversarial.core import Adversarial
from students.distillation.functions import normal, randint
from students.distillation.method import trainable
from students.networks.discriminator import Discriminator
from students.samplers import Sampler
from students.samplers.posterior import latent, posterior
from students.training.batches import Batch

LATENT = 16


class DenoisingGAN(Adversarial):
    """Of T steps, the one from level s to t is a GAN that is told x_s,

        real: x_t ~ q(x_t | x_0), x_s ~ q(x_s | x_t)    fake: x_0' = G(x_s, z, s), x_t' ~ q(x_t | x_s, x_0')
        D: -log D(x_t, x_s, s) - log(1 - D(x_t', x_s, s)) + r1/2 |grad D|^2    G: -log D(x_t', x_s, s)

    (Sec. 3.2), z ~ N(0, I) of at most LATENT numbers; the first x_s is pure noise, of which nothing is left in x_t. A
    stage for each T in 8, 4, 2, 1, each from the network of the one before, as the paper trains a network for each T.
    The paper starts from scratch; here the first stage starts from the teacher, which is G without z.
    """

    vector_r1 = 1.0
    stages = ("8", "4", "2", "1")
    shares = (1 / 4,) * 4
    budget = 0.7  # with three times the updates one step of the digits is 1.4 instead of 0.8

    def build(self, stage, trained):
        self.path = torch.cat([self.visits(int(stage))[:-1], torch.zeros(1)])
        size = min(LATENT, math.prod(self.start.shape))
        return trainable(self.before(stage, trained) or self.start, VE, extra=size)

    def discriminator(self):
        return Discriminator(self.start.shape, states=2, classes=self.start.classes)

    def states(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """x_t and x_s of data (N, *shape), and the levels s > t, (N,) each."""
        x0 = batch.data.x0
        levels = self.path.to(x0.device)
        i = randint(len(levels) - 1, len(x0), generator)
        s, t = levels[i], levels[i + 1]
        x_t = x0 + expand(t, x0) * batch.noise
        more = torch.where(i > 0, (s**2 - t**2).sqrt(), s)
        x_s = expand(i > 0, x0) * x_t + expand(more, x0) * normal(x0, generator)
        return x_t, x_s, s, t

    def generate(self, x_s: Tensor, s: Tensor, t: Tensor, condition: Tensor | None, generator) -> Tensor:
        """x_t' (N, *shape)."""
        x0 = self.model(x_s, s, condition, latent(self.model, normal(x_s, generator)))
        return posterior(x0, x_s, torch.where(s == self.path[0], torch.inf, s), t, normal(x_s, generator))

    def logits(self, x_t: Tensor, x_s: Tensor, s: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """D of the two states, each brought to size one as a denoiser's network sees it."""
        seen = [expand(edm_scalings(u, self.start.sigma_data)[2], x) * x for x, u in ((x_t, t), (x_s, s))]
        return self.critic(torch.cat(seen, dim=1), s.log() / 4, condition)

    def discriminator_loss(self, batch, step, generator):
        x_t, x_s, s, t = self.states(batch, generator)
        condition = batch.data.condition
        with torch.no_grad():
            fake = self.generate(x_s, s, t, condition, generator)
        x_t.requires_grad_()
        return self.judged(self.logits(x_t, x_s, s, t, condition), self.logits(fake, x_s, s, t, condition), x_t)

    def loss(self, batch, step, generator):
        _, x_s, s, t = self.states(batch, generator)
        fake = self.generate(x_s, s, t, batch.data.condition, generator)
        return self.game.generator(self.logits(fake, x_s, s, t, batch.data.condition))

    def sampler(self, model):
        return Sampler("posterior", {"levels": self.levels_of(int(self.stage))})
