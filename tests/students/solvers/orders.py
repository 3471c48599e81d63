"""The convergence order of a solver, measured on a Gaussian mixture in float64."""

from functools import lru_cache

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from students.diffusion.grids import make_grid
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import Schedule
from tests.conftest import make_mixture

NOISE_LEVELS = 80.0, 0.1  # sigma / alpha at both ends; the components of the mixture are 0.2 to 0.4 wide


def starts(schedule: Schedule, t_max: float, n: int = 8) -> Tensor:
    """n states (n, 2) of the noisy marginal at t_max, the same every time."""
    mixture = make_mixture(schedule)
    x0, _ = mixture.sample(range(n))
    noise = SeedNoise(range(n, 2 * n), mixture.shape, dtype=torch.float64)
    return schedule.alpha(t_max) * x0 + schedule.sigma(t_max) * noise()


@lru_cache
def reference(schedule: Schedule, t_max: float, t_min: float) -> Tensor:
    """The probability-flow ODE from `starts` to t_min by Dormand-Prince 8(5,3): dz/dv = z - D with v = log u."""
    mixture = make_mixture(schedule)
    x = starts(schedule, t_max)

    def slope(v, z):
        t = schedule.time_of_u(np.exp(v))
        z = torch.from_numpy(z).reshape(x.shape)
        return (z - mixture(schedule.scale(t) * z, t)).flatten().numpy()

    span = [float(schedule.u(t).log()) for t in (t_max, t_min)]
    z = solve_ivp(slope, span, (x / schedule.scale(t_max)).flatten().numpy(), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    return schedule.scale(t_min) * torch.from_numpy(z).reshape(x.shape)


def error(solver, schedule: Schedule, n_steps: int, grid="log_snr", t_max=None, t_min=None, **options) -> float:
    """The root-mean-square distance from `reference` after n_steps."""
    start, end = (float(schedule.time(-torch.tensor(level, dtype=torch.float64).log())) for level in NOISE_LEVELS)
    t_max, t_min = t_max or start, t_min or end
    x = solver(
        make_mixture(schedule), starts(schedule, t_max), make_grid(grid, schedule, n_steps, t_max, t_min), **options
    )
    return (x - reference(schedule, t_max, t_min)).square().mean().sqrt().item()


def observed_order(
    solver, schedule: Schedule, n_steps=(32, 64, 128), grid="log_snr", t_max=None, t_min=None, **options
) -> float:
    """Minus the least-squares slope of log error against log n.

    From t_max to t_min, by default the times of the two NOISE_LEVELS; options go to the solver.
    """
    errors = [error(solver, schedule, n, grid, t_max, t_min, **options) for n in n_steps]
    return -np.polyfit(np.log(n_steps), np.log(errors), 1)[0]
