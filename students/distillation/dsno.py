"""Fast sampling of diffusion models via operator learning (Zheng et al. 2022 [2211.13449])."""

import torch
from torch import Tensor

from students.base import FewStepStudent
from students.diffusion.denoiser import EDM, Denoiser, edm_scalings
from students.diffusion.schedules import VE
from students.distillation.method import PAIRS, Batch, Distillation, Pairs, trainable
from students.networks.temporal import along_time
from students.solvers.euler import ddim

STEPS, STATES = 32, 4


class TrajectoryOperator(Distillation):
    """DSNO: one call maps noise to the whole trajectory. For M levels t_i, from the first to the data end, it predicts

        x_i = alpha_i (G_i + t_i / t_max (x - G_i)),    alpha_i = 1 / sqrt(1 + t_i^2),    x = t_max eps,

    where G_i is an estimate of x0, so that x_i is where DDIM's step with it lands. The states meet in the temporal
    convolutions alone (students/networks/temporal.py). With the teacher's states y_i, in the paper's coordinates,

        loss = sum_i w_i |x_i - y_i|_1 / sum_i w_i,    w_i = max(1, 1 / t_i) = max(1, alpha_i / sigma_i)

    The weights, M = 4, two Fourier modes and the even spacing of the states among the solver's steps are those of the
    authors' code (neuraloperator/DSNO-pytorch). The student starts from the teacher; its network knows t_i only.
    An image costs one call of the student but the work of M of the teacher, which is what training counts.
    """

    source = PAIRS
    pairs = Pairs(count=16_000, solver="ddim", steps=STEPS, path=STATES + 1)
    evaluations = STATES
    budget = 1.4
    settings = {"batch_size": 64, "lr": 4e-3}

    def build(self, stage, trained):
        return Operator(trainable(self.start, VE), self.sigmas(STEPS)[:: STEPS // STATES][1:])

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        schedule, levels = self.model.schedule, self.model.levels
        x = batch.noise * schedule.t_max
        estimates = self.model.estimates(x, batch.labels)
        column = levels.to(x).reshape(-1, *[1] * (x.ndim - 1))
        states = estimates + column / schedule.t_max * (x[:, None] - estimates)
        error = (states - batch.path[:, 1:]) / (1 + column**2).sqrt()
        weights = (1 / levels).clamp(min=1)
        return error.abs().flatten(2).mean((0, 2)) @ (weights / weights.sum()).to(x)

    def student(self, trained):
        schedule = trained[""].schedule
        return FewStepStudent(trained[""], ddim, {1: [schedule.t_max, schedule.t_min]})


class Operator(Denoiser):
    """A denoiser of pure noise alone, whose network runs on a copy of the noise for each of the M `levels`."""

    def __init__(self, start: Denoiser, levels: Tensor):
        network = along_time(start.network, len(levels))
        super().__init__(network, start.schedule, EDM, start.shape, start.classes, start.sigma_data)
        self.register_buffer("levels", levels.to(next(network.parameters()).device), persistent=False)
        self.register_buffer("prior", getattr(start, "prior", None), persistent=False)

    def estimates(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, M, *shape) of x0, one for each level, from noise x (N, *shape) at the noise end."""
        states = len(self.levels)
        c_skip, c_out, c_in = edm_scalings(self.levels.new_tensor(self.schedule.t_max), self.sigma_data)
        inputs = (c_in.to(x.dtype) * x).repeat_interleave(states, 0)
        labels = None if labels is None else labels.repeat_interleave(states)
        f = self.evaluate(inputs, self.levels.log().repeat(len(x)) / 4, labels)
        return c_skip.to(x.dtype) * x[:, None] + c_out.to(x.dtype) * f.unflatten(0, (-1, states))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The estimate that leads to the data end."""
        return self.estimates(x, labels)[:, -1]
