"""BOOT (Gu et al. 2023 [2306.05544]): data-free distillation that pulls itself along the signal-ODE."""

import torch
from torch import Tensor

from students.base import Student
from students.diffusion.denoiser import expand
from students.distillation.method import NOISE, Batch, Distillation, randint, squared


class Boot(Distillation):
    """The student y(eps, t) predicts, from pure noise and a level, the signal y_t = x_t - t eps of the path from eps:

        y_s = (s/t) y_t + (1 - s/t) D(y_t + t eps, t)    (the signal-ODE's DDIM step, Eq. 9)
        loss = |y(eps, s) - sg(y_s)|^2 / (1 - s/t)^2 + beta |y(eps, t_max) - D(t_max eps, t_max)|^2    (Eqs. 10, 11)

    s the next level of a grid of `levels`, y_t by a moving average of the student. No data: noise alone. The student
    starts from the teacher, whose input at pure noise is eps and whose output is the signal.
    """

    source = NOISE
    evaluations = 5
    budget = 1.0
    target_decay = 0.95
    ranges = {"levels": (2, 10_000), "beta": (0, 1e6)}

    def __init__(self, teacher, start, *, levels: int = 32, beta: float = 1.0):
        super().__init__(teacher, start)
        self.levels, self.beta = self.sigmas(levels), beta

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        eps, labels = batch.noise, batch.labels
        levels = self.levels.to(eps.device)
        i = randint(len(levels) - 1, len(eps), generator)
        t, s = levels[i], levels[i + 1]
        first = levels[:1].expand(len(eps))
        with torch.no_grad():
            y = signal(self.target, eps, t, labels)
            ratio = expand(s / t, eps)
            y = ratio * y + (1 - ratio) * self.teacher(y + expand(t, eps) * eps, t, labels)
            boundary = self.teacher(expand(first, eps) * eps, first, labels)
        bootstrap = squared(signal(self.model, eps, s, labels), y) / (1 - s / t).to(eps) ** 2
        return (bootstrap + self.beta * squared(signal(self.model, eps, first, labels), boundary)).mean()

    def student(self, trained):
        return BootStudent(trained[""])


def signal(model, eps: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """y(eps, t): the raw network on eps, in units of sigma_data, which is what EDM's denoiser becomes at pure noise."""
    return model.sigma_data * model.evaluate(eps, t.log() / 4, labels)


class BootStudent(Student):
    """One evaluation: the signal at the data end."""

    supported_steps = (1,)
    takes_guidance = False

    def __init__(self, denoiser):
        self.denoiser = denoiser
        self.shape, self.classes = denoiser.shape, denoiser.classes
        self.prior = getattr(denoiser, "prior", None)

    def networks(self):
        return [self.denoiser.network]

    def generate(self, n_steps, noise, labels, guidance):
        eps, end = noise(), self.denoiser.schedule.t_min
        return signal(self.denoiser, eps, torch.full((len(eps),), end, dtype=torch.float64, device=eps.device), labels)
