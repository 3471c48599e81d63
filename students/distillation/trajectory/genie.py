"""GENIE, higher-order denoising diffusion solvers (Dockhorn et al. 2022 [2210.05475]): a solver that was trained."""

import torch
from torch import Tensor

from students.diffusion.denoiser import Denoiser, expand
from students.distillation.functions import tangent
from students.distillation.method import Distillation
from students.networks.genie_head import GenieHead
from students.networks.network import as_network
from students.samplers import Sampler
from students.samplers.taylor import noise_and_features
from students.training.batches import Batch


class Genie(Distillation):
    """In VE coordinates, x_0 + gamma eps, where DDIM is Euler's method on dx/dgamma = eps(x, gamma), the student takes
    steps of the second truncated Taylor method (Eq. 9), with h from one level to the next:

        x_next = x + h eps + h^2 / 2 k,    k = d eps / d gamma = (d eps / dx) eps + (d eps / d gamma at fixed x)

    k is distilled from forward-mode derivatives of the teacher (Eq. 12) into a small head on its last features:

        loss = gamma^2 |head(x, gamma) - k|^2,    x = x_0 + gamma n, times uniform in the teacher's schedule

    The teacher stays as it is, and the weights are those of the head. An exact teacher has no features: there a
    deeper head sees x and eps alone. In training, a derivative counts one evaluation, as eps and the head do.
    """

    evaluations = 3
    budget = 1.25
    settings = {"lr": 2e-3}

    def build(self, stage, trained):
        if isinstance(self.teacher, Denoiser):
            network = as_network(self.teacher.network)
            head = GenieHead(self.teacher.shape, network.feature_channels, network.patch)
        else:
            head = GenieHead(self.teacher.shape, width=64, layers=3)
        return head.to(next(iter(self.teacher.state_dict().values())).device)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        own, x0, condition = self.source.schedule, batch.data.x0, batch.data.condition
        t = torch.rand(len(batch.noise), generator=generator, device=generator.device, dtype=torch.float64)
        gamma = own.u(own.t_min + t * (own.t_max - own.t_min))
        x = x0 + expand(gamma, x0) * batch.noise
        with torch.no_grad():
            eps, features = noise_and_features(self.teacher, x, gamma, condition)
            k = derivative(self.teacher, x, gamma, eps, condition)
        error = expand(gamma, x) * (self.model(x, gamma, eps, features) - k)
        return error.square().mean()

    def sampler(self, model):
        return Sampler("taylor")


def derivative(denoiser, x: Tensor, gamma: Tensor, eps: Tensor, condition: Tensor | None) -> Tensor:
    """d eps / d gamma along dx/dgamma = eps, for x (N, *shape) in VE coordinates and gamma (N,)."""

    def noise(x: Tensor, gamma: Tensor) -> Tensor:
        return (x - denoiser(x, gamma, condition)) / expand(gamma, x)

    return tangent(noise, (x, gamma), (eps, torch.ones_like(gamma)))[1]
