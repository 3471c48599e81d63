"""Progressive distillation (Salimans & Ho 2022 [2202.00512]): one step learns to do two, again and again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.diffusion.schedules import VE
from students.distillation.functions import jump, randint
from students.distillation.method import Distillation, trainable
from students.options import Choices
from students.samplers import Sampler
from students.training.batches import Batch

# of |x0 - D|^2, by the paper's names (Sec. 4); SNR = alpha^2 / sigma^2, here 1 / sigma^2
WEIGHTS = {
    "snr": lambda snr: snr,
    "truncated_snr": lambda snr: snr.clamp(min=1),
    "snr+1": lambda snr: snr + 1,
}


class Progressive(Distillation):
    """Algorithm 2. Of n steps, the student's i-th goes from level s to t as two of its teacher's do, over m:

        x_m = D + m/s (x_s - D),    x_t = D' + t/m (x_m - D'),    D = D(x_s, s), D' = D(x_m, m)
        target = (x_t - t/s x_s) / (1 - t/s),    loss = w(SNR(s)) |D_student(x_s, s) - target|^2

    where target is the x0 for which one DDIM step lands on x_t (App. G). Every stage halves the steps, starts from the
    model of the one before, and has it as its teacher. All lie on the teacher's grid, whose steps are nested.
    weight: "truncated_snr", the paper's choice, "snr+1" or "snr". clip: keep the x0 of teachers' steps in the range of
    images, as the authors' code does. Where most pixels lie at an end of that range, as in digits, clipping lifts them
    by what errors remain, at every stage anew, and makes students worse.
    """

    @dataclass(frozen=True)
    class Options:
        weight: Annotated[str, Choices(*WEIGHTS)] = "truncated_snr"
        clip: bool = False

    stages: ClassVar[Sequence[str]] = ("8", "4", "2", "1")
    shares: ClassVar[Sequence[float]] = (1 / 6, 1 / 6, 1 / 3, 1 / 3)  # the paper trains the last two twice as long
    evaluations = 3
    budget = 0.95
    settings = {"batch_size": 64}

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        self.weight = WEIGHTS[self.options.weight]
        self.own_teacher = self.teacher

    def build(self, stage, trained):
        before = self.before(stage, trained)
        self.teacher = before or self.own_teacher
        return trainable(before or self.start, VE)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        n, x0 = int(self.stage), batch.data.x0
        levels = self.sigmas(2 * n).to(x0.device)
        i = 2 * randint(n, len(x0), generator)
        s, m, t = levels[i], levels[i + 1], levels[i + 2]
        x_s = x0 + expand(s, x0) * batch.noise
        with torch.no_grad():
            x_m = self.step(self.teacher, x_s, s, m, batch)
            x_t = self.step(self.teacher, x_m, m, t, batch)
        return self.matched(x_s, s, x_t, t, batch)

    def step(self, denoiser, x: Tensor, s: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """DDIM's step of a teacher from s to t."""
        x0 = self.evaluate(denoiser, x, s, batch)
        return jump(x, x0.clamp(-1, 1) if self.options.clip else x0, s, t)

    def matched(self, x_s: Tensor, s: Tensor, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The loss of a student whose one step from x_s is to land on x_t."""
        ratio = expand(t / s, x_s)
        target = (x_t - ratio * x_s) / (1 - ratio)
        return self.weighted(self.evaluate(self.model, x_s, s, batch), target, s)

    def weighted(self, x0: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
        error = (x0 - target).square().flatten(1).mean(1)
        return (self.weight(1 / sigma**2).to(error) * error).mean()

    def evaluate(self, denoiser, x: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        return denoiser(x, sigma, batch.data.condition)

    def sampler(self, model):
        return Sampler("levels", {"levels": {self.stage: self.sigmas(int(self.stage)).tolist()}})
