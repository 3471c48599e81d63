"""GENIE, higher-order denoising diffusion solvers (Dockhorn et al. 2022 [2210.05475]): a solver that was trained."""

import copy

import torch
from torch import Tensor, nn

from students.base import SolverStudent
from students.diffusion.denoiser import expand, under
from students.diffusion.schedules import VE
from students.distillation.method import Batch, Distillation, tangent
from students.networks.genie_head import GenieHead, last_layer
from students.solvers.euler import corrected_step


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
        if hasattr(self.teacher, "network"):
            head = GenieHead(self.teacher.shape, *last_layer(self.teacher.network)[1:])
        else:
            head = GenieHead(self.teacher.shape, width=64, layers=3)
        return head.to(next(iter(self.teacher.state_dict().values())).device)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        own = self.levels_of.schedule
        t = torch.rand(len(batch.noise), generator=generator, device=generator.device, dtype=torch.float64)
        gamma = own.u(own.t_min + t * (own.t_max - own.t_min))
        x = batch.x0 + expand(gamma, batch.x0) * batch.noise
        with torch.no_grad():
            eps, features = noise_and_features(self.teacher, x, gamma, batch.labels)
            k = derivative(self.teacher, x, gamma, eps, batch.labels)
        error = expand(gamma, x) * (self.model(x, gamma, eps, features) - k)
        return error.square().mean()

    def student(self, trained):
        grid = getattr(self.levels_of, "grid", "log_snr")
        return TaylorStudent(TaylorDenoiser(self.levels_of, trained[""]), taylor, grid, supported_steps=range(2, 1001))


def noise_and_features(denoiser, x: Tensor, gamma: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """eps = (x - D) / gamma, and what the last layer of the denoiser's network saw, None of an exact denoiser."""
    seen = []
    layer = last_layer(denoiser.network)[0] if hasattr(denoiser, "network") else nn.Identity()
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(*inputs))
    x0 = denoiser(x, gamma, labels)
    hook.remove()
    return (x - x0) / expand(gamma, x), seen[0] if seen else None


def derivative(denoiser, x: Tensor, gamma: Tensor, eps: Tensor, labels: Tensor | None) -> Tensor:
    """d eps / d gamma along dx/dgamma = eps, for x (N, *shape) in VE coordinates and gamma (N,)."""

    def noise(x: Tensor, gamma: Tensor) -> Tensor:
        return (x - denoiser(x, gamma, labels)) / expand(gamma, x)

    return tangent(noise, (x, gamma), (eps, torch.ones_like(gamma)))[1]


class TaylorDenoiser(nn.Module):
    """The teacher and the head in one call: (x0, k), each (N, *shape), for states of the teacher's own schedule."""

    def __init__(self, teacher, head: GenieHead):
        super().__init__()
        self.teacher, self.head = copy.deepcopy(teacher), head
        if hasattr(teacher, "network"):
            vars(self.teacher.network).pop("forward", None)  # a compiled one hides its layers from hooks
        self.view = under(self.teacher, VE)
        self.schedule, self.shape, self.classes = teacher.schedule, teacher.shape, teacher.classes
        self.prior = getattr(teacher, "prior", None)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        alpha, gamma = self.schedule.alpha(t), self.schedule.u(t)
        x, gamma = x / expand(alpha, x), gamma.to(x.device).expand(len(x))
        eps, features = noise_and_features(self.view, x, gamma, labels)
        return x - expand(gamma, x) * eps, self.head(x, gamma, eps, features)


def taylor(denoise, x: Tensor, times: Tensor, *, noise=None) -> Tensor:
    """The second truncated Taylor method, for denoisers that return (x0, k); one evaluation a step."""
    schedule = denoise.schedule
    for s, t in times.unfold(0, 2, 1):
        x0, k = denoise(x, s)
        x = corrected_step(schedule, x, x0, (schedule.u(t) - schedule.u(s)) / 2 * k, s, t)
    return x


class TaylorStudent(SolverStudent):
    """The trained solver on the teacher's own grid, in two steps or more: what the head gets wrong in gamma k, a step
    from gamma all the way to the data multiplies by gamma / 2, which at the noise end is more than the data's size.
    """

    family = "distilled"
    takes_guidance = False
