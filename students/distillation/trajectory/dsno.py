"""Fast sampling of diffusion models via operator learning (Zheng et al. 2022 [2211.13449])."""

import torch
from torch import Tensor

from students.diffusion.schedules import VE
from students.distillation.method import Distillation, Pairs, trainable
from students.samplers import Sampler
from students.samplers.trajectory import Operator
from students.training.batches import PAIRS, Batch

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

    needs = {PAIRS}
    pairs = Pairs(count=16_000, solver="ddim", steps=STEPS, path=STATES + 1)
    evaluations = STATES
    budget = 1.4
    settings = {"batch_size": 64, "lr": 4e-3}

    def build(self, stage, trained):
        start = trainable(self.start, VE)
        start.network.add_states(STATES)  # type: ignore[operator]
        levels = self.sigmas(STEPS)[:: STEPS // STATES][1:]
        operator = Operator(start.network, start.schedule, start.shape, start.classes, start.sigma_data, levels)
        return operator.to(next(start.parameters()).device)

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        schedule, levels = self.model.schedule, self.model.levels
        x = batch.pairs.noise * schedule.t_max
        estimates = self.model.estimates(x, batch.pairs.condition)
        column = levels.to(x).reshape(-1, *[1] * (x.ndim - 1))
        states = estimates + column / schedule.t_max * (x[:, None] - estimates)
        error = (states - batch.pairs.path[:, 1:]) / (1 + column**2).sqrt()  # type: ignore[index]
        weights = (1 / levels).clamp(min=1)
        return error.abs().flatten(2).mean((0, 2)) @ (weights / weights.sum()).to(x)

    def sampler(self, model):
        return Sampler("trajectory")
