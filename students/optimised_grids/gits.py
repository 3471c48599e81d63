"""GITS: the grid whose Euler leaps leave the teacher's trajectories least (Chen et al. 2024 [2405.11326], Sec. 4).

On a fine grid t_0 > ... > t_F with states z and slopes d in straight coordinates (students/diffusion/schedules.py), one
Euler step over several points at once ends at

    z_i + (u_j - u_i) d_i,

and its cost c_ij says how much further than the trajectory itself that is from the straight line between the
trajectory's ends (the authors' `dev`), the mean over images. Dynamic programming then finds the n leaps of least

    c(0, i_1) + gamma (c(i_1, i_2) + gamma (c(i_2, i_3) + ...)).

gamma above 1 weighs later leaps more: what an early leap gets wrong the network still sees and pulls back towards the
data, what a late one does stays in the image. 1.15 is the default of the authors' code.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from students.optimised_grids.source import FINE_STEPS, Found, Source, Trajectory

IMAGES = 256  # the authors' num_warmup
GAMMA = 1.15
MOST_STEPS = FINE_STEPS


def find(source: Source, steps: Iterable[int]) -> Found:
    """The grid of each step count, up to MOST_STEPS."""
    total, images = torch.zeros(FINE_STEPS + 1, FINE_STEPS + 1, dtype=torch.float64), len(source.seeds)
    for trajectory in source.trajectories():
        total += leap_costs(source.schedule, trajectory).sum(-1).cpu()
        times = trajectory.times.tolist()
    paths = cheapest_paths((total / images).numpy(), max(steps := list(steps)), GAMMA)
    settings = {"gamma": GAMMA, "fine_steps": FINE_STEPS, "images": images}
    return Found({n: [times[i] for i in paths[n]] for n in steps}, settings)


def leap_costs(schedule, trajectory: Trajectory) -> Tensor:
    """(F + 1, F + 1, N): at [i, j] the cost of the leap from i to j > i, zero elsewhere."""
    points = len(trajectory.times)
    u = schedule.u(trajectory.times)
    z = torch.stack([x / schedule.scale(t) for x, t in zip(trajectory.states, trajectory.times, strict=True)])
    z = z.flatten(2).double()
    chord = torch.nn.functional.normalize(z[-1] - z[0], dim=-1)
    own = _off_chord(z, z[0], chord)
    costs = own.new_zeros(points, points, own.shape[1])
    for i, x0 in enumerate(trajectory.estimates.flatten(2).double()):
        d = (z[i] - x0) / u[i]
        there = z[i] + (u[i + 1 :] - u[i]).to(z).reshape(-1, 1, 1) * d
        costs[i, i + 1 :] = _off_chord(there, z[0], chord) - own[i + 1 :]
    return costs


def _off_chord(z: Tensor, start: Tensor, chord: Tensor) -> Tensor:
    """The distances (M, N) of points (M, N, D) from the lines through `start` (N, D) along `chord` (N, D)."""
    from_start = z - start
    return (from_start - (from_start * chord).sum(-1, keepdim=True) * chord).norm(dim=-1)


def cheapest_paths(costs: np.ndarray, most_steps: int, gamma: float) -> dict[int, list[int]]:
    """For n = 1 ... most_steps, the n + 1 indices, from the first to the last, whose discounted cost is least.

    costs: (F + 1, F + 1), only those above the diagonal count. most_steps: at most F.
    """
    last = len(costs) - 1
    leap = np.where(np.triu(np.ones(costs.shape, bool), 1), costs, np.inf)
    left = leap[:, last]  # the least cost from each point to the end, in as many leaps as the loop has come to
    choices: list[np.ndarray] = []
    paths = {1: [0, last]}
    for n in range(2, most_steps + 1):
        onward = leap + gamma * left
        choices.append(onward.argmin(1))
        left = onward.min(1)
        path = [0]
        for choice in reversed(choices):
            path.append(int(choice[path[-1]]))
        paths[n] = [*path, last]
    return paths
