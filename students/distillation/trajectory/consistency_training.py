"""Consistency functions learned from data alone: CT [2303.01469], iCT [2310.14189] and easy tuning (ECM) [2406.14548].

Two states of the same noise and image, at neighbouring levels s > t, are to lead to the same image. As the levels draw
nearer while training goes on, what is left of the difference is the slope of the probability-flow ODE. Noise is
limited (`ConsistencyMethod.limited`).
"""

import math

import torch
from torch import Tensor

from students.diffusion.denoiser import expand, under
from students.diffusion.grids import polynomial
from students.diffusion.preconditioning import EDM
from students.diffusion.schedules import VE
from students.distillation.functions import as_target, log_normal, pseudo_huber, randint, squared
from students.distillation.method import trainable, untrained
from students.distillation.trajectory.consistency import ConsistencyMethod
from students.training.batches import Batch


class ConsistencyTraining(ConsistencyMethod):
    """CT, Algorithm 3. With N(k) levels of EDM's grid at update k of K, and the target's decay mu(k),

        loss = lambda(s) |f(x_0 + s eps, s) - f_ema(x_0 + t eps, t)|^2,
        N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1,    mu(k) = exp(s0 log(mu0) / N(k)),

    s0 = 2, s1 = 20, mu0 = 0.9, lambda EDM's. From scratch, without a teacher. (The paper's s1 = 150 for CIFAR-10
    makes the target an average over 700 updates, which 800,000 updates can afford and a few thousand cannot.) Without
    dropout (`untrained`), which the target, an average in evaluation mode, would not have.
    """

    evaluations = 2
    budget = 1.0
    settings = {"lr": 2e-3}
    target_decay = 0.9
    s0, s1 = 2, 20

    def build(self, stage, trained):
        return self.limited(untrained(under(self.start, VE)))

    def count(self, step: int) -> int:
        """N(k), the levels at update k."""
        done = step / self.steps
        return math.ceil(math.sqrt(done * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2) - 1) + 1

    def levels(self, step: int) -> Tensor:
        """(N(k),) levels of EDM's grid, decreasing."""
        schedule = self.model.schedule
        return polynomial(schedule, self.count(step) - 1, schedule.t_max, schedule.t_min)

    def neighbours(self, n: int, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Levels s > t, (n,) each."""
        levels = self.levels(step).to(generator.device)
        i = randint(len(levels) - 1, n, generator)
        return levels[i], levels[i + 1]

    def difference(self, ours: Tensor, target: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """(N,) d, weighted."""
        return self.edm_weight(s) * squared(ours, target)

    def target_of(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return self.target(x, t, condition)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        if self.target_ema is not None:
            self.target_ema.decay = math.exp(self.s0 * math.log(self.target_decay) / self.count(step))
        x0, condition = batch.data.x0, batch.data.condition
        s, t = self.neighbours(len(x0), step, generator)
        with as_target(self.model):
            target = self.target_of(x0 + expand(t, x0) * batch.noise, t, condition)
        ours = self.model(x0 + expand(s, x0) * batch.noise, s, condition)
        return self.difference(ours, target, s, t).mean()


class ImprovedConsistencyTraining(ConsistencyTraining):
    """iCT: no moving average in the target, pseudo-Huber distance, weights 1 / (s - t), log-normal levels, and

        N(k) = min(s0 2^floor(k / K'), s1) + 1,    K' = floor(K / (log2(s1 / s0) + 1)),    s0 = 10, s1 = 1280,

    the level s_i drawn with the probability that log(sigma / 2d) ~ N(-1.1, 2^2) lies between it and the next, d =
    sigma_data, the paper's 0.5 (Sec. 3.3-3.5). s1 is halved until K' is 1,000 updates or more, of which the paper has
    50,000: where levels double faster than they are learned, the function is worst at those between noise and data,
    which a second step starts from.
    """

    target_decay = None  # type: ignore[assignment]
    s0, s1 = 10, 1280
    settling = 1000  # updates at every count of levels, or more

    def count(self, step):
        doublings = min(math.log2(self.s1 / self.s0), max(self.steps // self.settling, 1) - 1)
        period = math.floor(self.steps / (doublings + 1))
        return self.s0 * 2 ** min(step // period, int(doublings)) + 1

    def neighbours(self, n, step, generator):
        levels = self.levels(step).to(generator.device)
        edges = torch.erf(((levels / (2 * self.model.sigma_data)).log() + 1.1) / (math.sqrt(2) * 2.0))
        i = torch.multinomial(edges[:-1] - edges[1:], n, replacement=True, generator=generator)
        return levels[i], levels[i + 1]

    def difference(self, ours, target, s, t):
        return pseudo_huber(ours, target) / (s - t).to(ours)

    def target_of(self, x, t, condition):
        return self.model(x, t, condition)


class EasyConsistencyTuning(ImprovedConsistencyTraining):
    """ECM: start from the teacher, a consistency function of levels s > t with t = 0, and draw t towards s,

        t / s = 1 - n(s) / q^a,    n(s) = 1 + k sigmoid(-b s),    a = floor(phases update / updates) + 1,

    q = 2, k = 8, b = 1 (Sec. 3.2, App.); log s ~ N(-1.1, 2^2), weights 1 / (s - t). EDM's parameterisation is the
    identity at level 0. There the target is the image itself, which is the denoising loss that the teacher had. The
    paper's dropout is left out, as a training without it came out better at every step count.
    """

    prediction = EDM
    budget = 1.9
    settings = {}
    phases, q, k, b = 8, 2.0, 8.0, 1.0

    def build(self, stage, trained):
        return self.limited(trainable(self.start, VE))

    def neighbours(self, n, step, generator):
        s = log_normal(n, -1.1, 2.0, self.model.schedule, generator)
        a = self.phases * step // self.steps + 1
        gap = (1 + self.k * torch.sigmoid(-self.b * s)) / self.q**a
        return s, s * (1 - gap).clamp(min=0)

    def target_of(self, x, t, condition):
        clean = t < self.model.schedule.t_min
        t = t.clamp(min=self.model.schedule.t_min)
        return torch.where(clean.reshape(-1, *[1] * (x.ndim - 1)), x, self.model(x, t, condition))
