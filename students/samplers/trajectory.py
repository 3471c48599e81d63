"""DSNO (Zheng et al. 2022 [2211.13449]): one call maps noise to the states of its trajectory, the last the image."""

import torch
from torch import Tensor, nn

from students.diffusion.denoiser import Denoiser
from students.diffusion.preconditioning import EDM, edm_scalings
from students.samplers.levels import LevelsStudent


class Operator(Denoiser):
    """A denoiser of pure noise alone, whose network runs on a copy of the noise for each of the M `levels`.

    network: one whose residual blocks join the M states of a row (`Network.add_states`).
    """

    levels: Tensor

    def __init__(self, network, schedule, shape, classes, sigma_data: float, levels):
        super().__init__(network, schedule, EDM, shape, classes, sigma_data)
        self.register_buffer("levels", torch.as_tensor(levels, dtype=torch.float64), persistent=False)

    def estimates(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(N, M, *shape) of x0, one for each level, from noise x (N, *shape) at the noise end."""
        states = len(self.levels)
        c_skip, c_out, c_in = edm_scalings(self.levels.new_tensor(self.schedule.t_max), self.sigma_data)
        inputs = (c_in.to(x.dtype) * x).repeat_interleave(states, 0)
        condition = None if condition is None else condition.repeat_interleave(states)
        f = self.evaluate(inputs, self.levels.log().repeat(len(x)) / 4, condition)
        return c_skip.to(x.dtype) * x[:, None] + c_out.to(x.dtype) * f.unflatten(0, (-1, states))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The estimate that leads to the data end."""
        return self.estimates(x, condition)[:, -1]

    def record(self) -> dict:
        return super().record() | {"states": self.levels.tolist()}

    @classmethod
    def from_record(cls, record: dict):
        plain = Denoiser.from_record(record)
        return cls(plain.network, plain.schedule, plain.shape, plain.classes, plain.sigma_data, record["states"])


class TrajectoryStudent(LevelsStudent):
    """One call, of which the state at the data end is taken."""

    build = staticmethod(Operator.from_record)

    def __init__(self, model: Operator, prior: Tensor | None = None):
        super().__init__(model, {1: [model.schedule.t_max, model.schedule.t_min]}, prior=prior)

    def networks(self) -> list[nn.Module]:
        """The network inside: a call of the operator runs it on M rows for each image."""
        return [self.denoiser.network]
