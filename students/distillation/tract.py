"""TRACT, transitive closure time-distillation (Berthelot et al. 2023 [2303.04248]): whole intervals in few stages."""

import torch
from torch import Tensor

from students.diffusion.denoiser import expand
from students.distillation.method import Batch, jump, randint
from students.distillation.progressive import Progressive
from students.errors import FewstepError


class Tract(Progressive):
    """Of the teacher's T steps, groups are cut, as many as the student shall have steps, and from anywhere in a group

        x_t = one DDIM step of the teacher,    x_e = the jump of the student's average from t to the end e,
        target = (x_e - e/s x_s) / (1 - e/s),    loss = w(SNR(s)) |D_student(x_s, s) - target|^2    (Sec. 3)

    so that the student jumps from every level of a group to its end. The first stage has the teacher, with `first`
    steps, as its teacher, the next one the student before, with a step for each of its groups. Progressive
    distillation, whose groups are two steps, needs a stage for every halving.
    """

    stages = ("4", "1")
    shares = (0.5, 0.5)
    budget = 1.9
    evaluations = 3
    settings = {"batch_size": 128}
    target_decay = 0.95  # the self-teacher's
    ranges = {"first": (8, 4096)}

    def __init__(self, teacher, start, *, weight: str = "truncated_snr", first: int = 32):
        super().__init__(teacher, start, weight=weight)
        if first % int(self.stages[0]):
            raise FewstepError(f"option first must be a multiple of {self.stages[0]}, the steps after it, got {first}")
        self.first = first

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        groups = int(self.stage)
        steps = self.first if self.teacher is self.own_teacher else int(self.stages[self.stages.index(self.stage) - 1])
        levels = self.sigmas(steps).to(batch.noise.device)
        i = randint(steps, len(batch.noise), generator)
        size = steps // groups
        end = (i // size + 1) * size
        s, t, e = levels[i], levels[i + 1], levels[end]
        x_s = batch.x0 + expand(s, batch.x0) * batch.noise
        with torch.no_grad():
            x_t = jump(x_s, self.evaluate(self.teacher, x_s, s, batch), s, t)
            x_e = jump(x_t, self.evaluate(self.target, x_t, t, batch), t, e)  # x_t itself where t is the end
            ratio = expand(e / s, x_s)
            target = (x_e - ratio * x_s) / (1 - ratio)
        error = (self.evaluate(self.model, x_s, s, batch) - target).square().flatten(1).mean(1)
        return (self.weight(1 / s**2).to(error) * error).mean()
