"""Distillation of guided diffusion (Meng et al. 2022 [2210.03142]): the guidance scale becomes an input."""

import torch
from torch import Tensor

from students.base import FewStepStudent
from students.diffusion.denoiser import expand, guided
from students.distillation.method import Batch, log_normal, with_numbers
from students.distillation.progressive import Progressive, ProgressiveStudent
from students.errors import FewstepError, Unsupported
from students.solvers.euler import ddim

LARGEST = 4.0


def needs_guidance(name: str, teacher) -> None:
    """Raise FewstepError unless the teacher knows classes and the absence of one."""
    if getattr(teacher, "classes", None) is None:
        raise FewstepError(f"{name} distils classifier-free guidance, which an unconditional teacher has not: "
                           "take a class-conditional one, trained with label dropout")  # fmt: skip
    if not getattr(teacher, "has_no_class", True):
        raise FewstepError(f"{name} distils classifier-free guidance: this teacher was trained without label dropout")


def draw_scales(n: int, generator: torch.Generator) -> Tensor:
    """(n, 1) guidance scales, uniform from 1 (none) to LARGEST."""
    return 1 + (LARGEST - 1) * torch.rand(n, 1, generator=generator, device=generator.device)


class Guidance(Progressive):
    """Stage one, with w uniform between 1 and 4 (the paper's w, 0 to 4, is one less),

        loss = w(SNR) |D_student(x, sigma, w) - (D(x, sigma) + w (D(x, sigma, c) - D(x, sigma)))|^2    (Eq. 1)

    so that one evaluation does what took two; then progressive distillation of that, w an input throughout (Sec. 3.2).
    """

    stages = ("16", "8", "4", "2", "1")
    shares = (0.2, 0.2, 0.2, 0.2, 0.2)
    budget = 1.2

    def __init__(self, teacher, start, *, weight: str = "truncated_snr"):
        super().__init__(teacher, start, weight=weight)
        needs_guidance("guidance", teacher)

    def build(self, stage, trained):
        return with_numbers(super().build(stage, trained), 1)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        self.scales = draw_scales(len(batch.x0), generator)
        if self.stage != self.stages[0]:
            return super().loss(batch, step, generator)
        sigma = log_normal(len(batch.x0), -0.8, 1.4, self.teacher.schedule, generator)
        x = batch.x0 + expand(sigma, batch.x0) * batch.noise
        with torch.no_grad():
            target = guided(self.teacher, batch.labels, expand(self.scales[:, 0], x))(x, sigma)
        error = (self.evaluate(self.model, x, sigma, batch) - target).square().flatten(1).mean(1)
        return (self.weight(1 / sigma**2).to(error) * error).mean()

    def evaluate(self, denoiser, x, sigma, batch):
        return denoiser(x, sigma, batch.labels, self.scales)

    def student(self, trained):
        return ProgressiveStudent(
            {
                int(stage): ScaledStudent(model, ddim, {int(stage): self.sigmas(int(stage)).tolist()})
                for stage, model in trained.items()
            }
        )


class ScaledStudent(FewStepStudent):
    """A student whose network takes the guidance scale, 1 to 4, as an input."""

    takes_guidance = True

    def check(self, n_steps, guidance=1.0):
        super().check(n_steps, guidance)
        if not 1 <= guidance <= LARGEST:
            raise Unsupported(f"the student was distilled for guidance from 1 to {LARGEST:g}, not {guidance:g}")

    def generate(self, n_steps, noise, labels, guidance):
        def scaled(x, t):
            return self.denoiser(x, t, labels, x.new_full((len(x), 1), guidance))

        scaled.schedule = self.denoiser.schedule
        times = self.times(n_steps)
        return self.solver(scaled, noise() * scaled.schedule.sigma(times[0]), times, noise=noise, **self.solver_options)
