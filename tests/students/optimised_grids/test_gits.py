"""GITS: the cheapest paths are those of a search over all; grids lie in their schedule and help Euler's method."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from students.data import load_data
from students.diffusion.grids import GRIDS, make_grid
from students.diffusion.noise import SeedNoise
from students.models.teacher import as_teacher
from students.optimised_grids import gits
from students.optimised_grids.source import FINE_STEPS, Source
from students.solvers.euler import euler, heun
from tests.conftest import make_mixture


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.15])
def test_the_cheapest_path_of_all(gamma):
    costs = np.random.default_rng(0).random((8, 8))
    paths = gits.cheapest_paths(costs, 7, gamma)
    for n in range(1, 8):
        every = [(0, *inner, 7) for inner in combinations(range(1, 7), n - 1)]
        price = {path: sum(gamma**k * costs[leap] for k, leap in enumerate(pairwise(path))) for path in every}
        assert tuple(paths[n]) == min(price, key=price.get), n


def test_a_straight_trajectory_costs_nothing():
    point = make_mixture()
    denoise = lambda x, t, condition=None: torch.ones_like(x)
    denoise.schedule, denoise.shape = point.schedule, (2,)
    source = Source(as_teacher(denoise), 4)
    source.teacher.denoiser.register_buffer("one", torch.ones(1))
    [trajectory] = source.trajectories()
    assert gits.leap_costs(point.schedule, trajectory).abs().max() < 1e-4 * trajectory.states[0].abs().max()


def test_a_leap_costs_what_euler_s_step_is_further_from_the_chord():
    """By its definition, for one leap of one image, from the states alone."""
    source = Source(as_teacher(make_mixture()), 1)
    schedule, i, j = source.schedule, 20, 40
    [trajectory] = source.trajectories()
    states, times = trajectory.states.double(), trajectory.times
    z = torch.stack([state[0] / schedule.alpha(t) for state, t in zip(states, times, strict=True)])
    there = euler(trajectory.denoise, trajectory.states[i], times[[i, j]])[0].double() / schedule.alpha(times[j])
    x, y = z[-1] - z[0]

    def off_chord(point) -> float:
        return (abs(x * (point - z[0])[1] - y * (point - z[0])[0]) / torch.hypot(x, y)).item()

    cost = gits.leap_costs(schedule, trajectory)[i, j, 0].item()
    assert cost == pytest.approx(off_chord(there) - off_chord(z[j]), rel=1e-3, abs=1e-5)


def test_grids_decrease_and_end_at_the_data_for_any_schedule(schedule):
    found = gits.find(Source(as_teacher(make_mixture(schedule, conditional=True)), 16), range(1, 9))
    for n, times in found.times.items():
        assert len(times) == n + 1 and (np.diff(times) < 0).all()
        assert times[0] == schedule.t_max and times[-1] == schedule.t_min


def test_euler_is_closer_to_the_fine_solution_than_on_the_worst_named_grid():
    mixture = load_data("gaussians").mixture
    source = Source(as_teacher(mixture), 256)
    found = gits.find(source, range(1, 9))
    assert source.evaluations == 256 * FINE_STEPS
    start = SeedNoise(range(200), (2,))() * mixture.schedule.sigma(mixture.schedule.t_max)
    fine = heun(mixture, start, make_grid("log_snr", mixture.schedule, 200))

    def error(grid, n: int) -> float:
        return (euler(mixture, start, make_grid(grid, mixture.schedule, n)) - fine).norm(dim=1).mean().item()

    for n in range(2, 9):
        assert error(found.times[n], n) < max(error(grid, n) for grid in GRIDS), n
