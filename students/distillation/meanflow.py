"""Mean flows (Geng et al. 2025 [2505.13447]): the average velocity between two times, learned from scratch."""

import torch
from torch import Tensor

from students.base import Student
from students.diffusion.denoiser import Denoiser, expand
from students.diffusion.schedules import Flow
from students.distillation.method import Batch, Distillation, tangent, untrained, with_numbers


class MeanFlow(Distillation):
    """u(z, r, t) is the mean velocity from r to t on the path through z_t = (1 - t) x_0 + t eps. With v = eps - x_0,

        u_target = v - (t - r) (v . d_z u + d_t u)    (Eq. 10, the MeanFlow identity),
        loss = sg(w) |u - sg(u_target)|^2,    w = 1 / (|u - u_target|^2 + c)^p    (Eq. 22)

    the derivative along (v, 0, 1) by one Jacobian-vector product, which counts as one evaluation. t and r are
    logistic-normal (-0.4, 1.6^2), the larger being t; a variance of 1, the paper's for ImageNet, leaves t = 1, where
    sampling starts, to trainings a hundred times as long. In a share of `flow_share` of a batch r = t, where the target
    is v itself. c = 1e-3, and p = 1 for images; for vectors 1/2, as |u - u_target|^2 varies so much between rows of few
    dimensions that the weights move the minimum. From scratch: no teacher is asked for anything.
    """

    evaluations = 1.25
    budget = 0.8
    vector_settings = {"batch_size": 512}
    ranges = {"flow_share": (0, 1)}

    def __init__(self, teacher, start, *, flow_share: float = 0.75):
        super().__init__(teacher, start)
        self.flow_share, self.evaluations = flow_share, 2 - flow_share
        self.power = 1.0 if len(start.shape) > 1 else 0.5

    def build(self, stage, trained):
        fresh = with_numbers(untrained(self.start), 1)
        fresh.schedule, fresh.prediction = Flow(), "flow"
        return fresh

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        x0, n = batch.x0, len(batch.x0)
        apart = round((1 - self.flow_share) * n)
        times = torch.sigmoid(-0.4 + 1.6 * torch.randn(2, n, generator=generator, device=x0.device))
        t, r = times.max(0).values, times.min(0).values
        r = torch.cat([r[:apart], t[apart:]])
        z = expand(1 - t, x0) * x0 + expand(t, x0) * batch.noise
        target = v = batch.noise - x0
        if apart:
            labels = None if batch.labels is None else batch.labels[:apart]
            with torch.no_grad():
                at, along = (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
                _, slope = tangent(
                    lambda z, r, t: mean_velocity(self.model, z, r, t, labels),
                    tuple(part[:apart] for part in at),
                    tuple(part[:apart] for part in along),
                )
            target = torch.cat([v[:apart] - expand(t - r, z)[:apart] * slope, v[apart:]])
        error = (mean_velocity(self.model, z, r, t, batch.labels) - target).square().flatten(1).sum(1)
        return (error / (error.detach() + 1e-3) ** self.power).mean()

    def student(self, trained):
        return MeanFlowStudent(trained[""])


def mean_velocity(model: Denoiser, z: Tensor, r: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """u(z, r, t), from the network told t and t - r (the paper's best embedding, Table 1c)."""
    return model.evaluate(z, t, labels, (t - r)[:, None])


class MeanFlowStudent(Student):
    """x_r = x_t - (t - r) u(x_t, r, t) on a uniform grid."""

    takes_guidance = False

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.shape, self.classes = denoiser.shape, denoiser.classes
        self.prior = getattr(denoiser, "prior", None)

    def networks(self):
        return [self.denoiser.network]

    def generate(self, n_steps, noise, labels, guidance):
        x = noise()
        times = torch.linspace(1, 0, n_steps + 1, device=x.device)
        for t, r in times.unfold(0, 2, 1):
            x = x - (t - r) * mean_velocity(self.denoiser, x, r.expand(len(x)), t.expand(len(x)), labels)
        return x
