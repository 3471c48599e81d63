"""Steps by the average velocity between two times, as of mean flows (Geng et al. 2025 [2505.13447])."""

import torch
from torch import Tensor, nn

from students.diffusion.denoiser import Denoiser
from students.student import Student


def mean_velocity(model: Denoiser, z: Tensor, r: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """u(z, r, t), from the network told t and t - r, (N,) each (the paper's best embedding, Table 1c)."""
    return model.evaluate(z, t, condition, (t - r)[:, None])


class MeanVelocityStudent(Student):
    """x_r = x_t - (t - r) u(x_t, r, t) on a uniform grid from the model's last time, where x is noise, to 0."""

    takes_guidance = False
    uses_teacher = False
    build = staticmethod(Denoiser.from_record)

    def __init__(self, model: Denoiser, prior: Tensor | None = None):
        self.denoiser, self.prior = model, prior
        self.shape, self.classes = model.shape, model.classes

    def networks(self) -> list[nn.Module]:
        return [self.denoiser.network]

    def generate(self, n_steps, noise, conditions, guidance):
        x = noise()
        times = torch.linspace(self.denoiser.schedule.t_max, 0, n_steps + 1, device=x.device)
        for t, r in times.unfold(0, 2, 1):
            x = x - (t - r) * mean_velocity(self.denoiser, x, r.expand(len(x)), t.expand(len(x)), conditions)
        return x
