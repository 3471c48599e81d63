"""BOOT's network, which predicts the signal of a trajectory from its noise and a level (Gu et al. [2306.05544])."""

import torch
from torch import Tensor, nn

from students.diffusion.denoiser import Denoiser
from students.student import Student


def signal(model: Denoiser, eps: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """y(eps, t) (N, *shape): the raw network on eps, in units of sigma_data, for levels t (N,).

    It is what EDM's denoiser becomes at pure noise.
    """
    return model.sigma_data * model.evaluate(eps, t.log() / 4, condition)


class SignalStudent(Student):
    """One evaluation: the signal at the data end."""

    supported_steps = (1,)
    takes_guidance = False
    uses_teacher = False
    build = staticmethod(Denoiser.from_record)

    def __init__(self, model: Denoiser, prior: Tensor | None = None):
        self.denoiser, self.prior = model, prior
        self.shape, self.classes = model.shape, model.classes

    def networks(self) -> list[nn.Module]:
        return [self.denoiser.network]

    def generate(self, n_steps, noise, conditions, guidance):
        eps, end = noise(), self.denoiser.schedule.t_min
        levels = torch.full((len(eps),), end, dtype=torch.float64, device=eps.device)
        return signal(self.denoiser, eps, levels, conditions)
