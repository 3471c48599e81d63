"""Progressive distillation (Salimans & Ho 2022 [2202.00512]): one step learns to do two, again and again."""

import torch
from torch import Tensor, nn

from students.base import FewStepStudent, Student
from students.diffusion.denoiser import expand
from students.diffusion.schedules import VE
from students.distillation.method import Batch, Distillation, jump, randint, trainable
from students.errors import unknown
from students.solvers.euler import ddim

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
    weight: "truncated_snr", the paper's choice, "snr+1" or "snr". first: steps of the teacher in the first stage.
    """

    stages = ("8", "4", "2", "1")
    shares = (1 / 6, 1 / 6, 1 / 3, 1 / 3)  # the paper trains the last two twice as long
    evaluations = 3
    budget = 0.95
    settings = {"batch_size": 64}

    def __init__(self, teacher, start, *, weight: str = "truncated_snr"):
        super().__init__(teacher, start)
        if weight not in WEIGHTS:
            raise unknown("weight", weight, WEIGHTS)
        self.weight = WEIGHTS[weight]
        self.own_teacher = self.teacher

    def build(self, stage, trained):
        earlier = [trained[name] for name in self.stages if name in trained and int(name) > int(stage)]
        self.teacher = earlier[-1] if earlier else self.own_teacher
        return trainable(earlier[-1] if earlier else self.start, VE)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        n = int(self.stage)
        levels = self.sigmas(2 * n).to(batch.noise.device)
        i = 2 * randint(n, len(batch.noise), generator)
        s, m, t = levels[i], levels[i + 1], levels[i + 2]
        x_s = batch.x0 + expand(s, batch.x0) * batch.noise
        with torch.no_grad():
            x_m = jump(x_s, self.evaluate(self.teacher, x_s, s, batch), s, m)
            x_t = jump(x_m, self.evaluate(self.teacher, x_m, m, batch), m, t)
            ratio = expand(t / s, x_s)
            target = (x_t - ratio * x_s) / (1 - ratio)
        error = (self.evaluate(self.model, x_s, s, batch) - target).square().flatten(1).mean(1)
        return (self.weight(1 / s**2).to(error) * error).mean()

    def evaluate(self, denoiser, x: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        return denoiser(x, sigma, batch.labels)

    def student(self, trained):
        return ProgressiveStudent(
            {
                int(stage): FewStepStudent(model, ddim, {int(stage): self.sigmas(int(stage)).tolist()})
                for stage, model in trained.items()
            }
        )


class ProgressiveStudent(Student):
    """One network for each step count."""

    def __init__(self, members: dict[int, FewStepStudent]):
        first = next(iter(members.values()))
        self.members = members
        self.shape, self.classes, self.prior = first.shape, first.classes, first.prior
        self.supported_steps = tuple(sorted(members))

    def networks(self) -> list[nn.Module]:
        return [network for member in self.members.values() for network in member.networks()]

    def check(self, n_steps, guidance=1.0):
        super().check(n_steps)
        self.members[n_steps].check(n_steps, guidance)

    def generate(self, n_steps, noise, labels, guidance):
        return self.members[n_steps].generate(n_steps, noise, labels, guidance)
