"""AYS: the bound against its closed form and by quadrature, its descent, and grids that lie in their schedule."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from students.diffusion.analytic import GaussianMixture
from students.diffusion.schedules import VE
from students.models.teacher import as_teacher
from students.optimised_grids import ays
from students.optimised_grids.source import Source
from tests.conftest import make_mixture

LEVELS = np.geomspace(80, 0.002, 161)


def gaussian_changes(c: float) -> np.ndarray:
    """E |D_i - D_j|^2 of one-dimensional Gaussian data of deviation c (the paper's App. A.3)."""
    inverse = 1 / (LEVELS**2 + c**2)
    return c**4 * abs(inverse[:, None] - inverse)


@pytest.mark.parametrize("c", [ays.C, 1.0, 0.2])
def test_the_bound_of_gaussian_data(c):
    bounds = ays.upper_bounds(LEVELS, gaussian_changes(c))
    for i, j in ((0, 20), (60, 100), (100, 101), (120, 160)):
        b = LEVELS[i]
        exact, _ = quad(lambda t, b=b: c**4 * (1 / (t**2 + c**2) - 1 / (b**2 + c**2)) / t**3, LEVELS[j], b, limit=500)
        assert bounds[i, j] == pytest.approx(exact, rel=1e-6 if c == ays.C else 0.02)


def test_forward_paths_have_the_changes_of_gaussian_data():
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[0.25, 0.0], [0.0, 0.25]]], VE())
    source = Source(as_teacher(gaussian), 2000)
    total = np.zeros((161, 161))
    for trajectory in source.trajectories():
        clean = 0.5 * trajectory.noise()
        total += ays.squared_changes(ays.forward_estimates(trajectory, clean, LEVELS)).numpy()
    pairs = [(20, 60), (60, 100), (90, 110), (100, 140)]
    exact = 2 * gaussian_changes(0.5)
    assert [total[pair] / 2000 for pair in pairs] == pytest.approx([exact[pair] for pair in pairs], rel=0.1)


def total(points, bounds) -> float:
    return sum(bounds[pair] for pair in pairwise(points))


def test_the_bound_decreases_with_every_sweep_and_subdivision():
    bounds = ays.upper_bounds(LEVELS, gaussian_changes(0.5))
    points = list(range(0, 161, 16))
    for _ in range(5):
        moved = ays.improve(points, range(1, 10), bounds, 4)
        assert total(moved, bounds) <= total(points, bounds) and min(np.diff(moved)) >= 4
        points = moved
    twice = ays.subdivide(points, bounds, 2)
    again = ays.subdivide(twice, bounds, 1)
    assert twice[::2] == points and again[::2] == twice and len(again) == 41
    assert total(again, bounds) < total(twice, bounds) < total(points, bounds)
    assert min(np.diff(twice)) >= 2 and min(np.diff(again)) >= 1


def test_sweeps_end_when_the_error_no_longer_falls():
    bounds = ays.upper_bounds(LEVELS, gaussian_changes(0.5))
    first = list(range(0, 161, 16))
    errors = iter([3.0, 2.0, 2.5])
    points, sweeps = ays.optimise(first, bounds, lambda points: next(errors))
    assert sweeps == 1 and points == ays.improve(first, range(1, 10), bounds, 4)
    settled, _ = ays.optimise(first, bounds, lambda points: total(points, bounds))
    assert settled == ays.improve(settled, range(1, 10), bounds, 4)


def test_other_step_counts_interpolate_log_linearly():
    schedule, levels = VE(), np.geomspace(80, 0.002, 41)
    for n in (1, 3, 8, 20, 40):
        assert ays.times_of(schedule, levels, n) == pytest.approx(np.geomspace(80, 0.002, n + 1).tolist())


def test_grids_decrease_and_end_at_the_data_for_any_schedule(schedule):
    found = ays.find(Source(as_teacher(make_mixture(schedule, conditional=True)), 16), range(1, 33))
    for n, times in found.times.items():
        assert len(times) == n + 1 and (np.diff(times) < 0).all()
        assert times[0] == schedule.t_max and times[-1] == schedule.t_min
    assert 0 < found.settings["bound"]["AYS"] < found.settings["bound"]["EDM"]


def test_evaluations_are_counted():
    source = Source(as_teacher(make_mixture()), 8)
    seen = 0

    def count(module, args):
        nonlocal seen
        seen += len(args[0])

    source.teacher.denoiser.register_forward_pre_hook(count)
    with torch.inference_mode():
        ays.find(source, [4])
    assert source.evaluations == seen > 0
