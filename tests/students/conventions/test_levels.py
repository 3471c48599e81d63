"""The level lists of the conventions, each against the authors' formula, written out here in plain floats."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from students.conventions import CONVENTIONS
from students.conventions import levels as lists
from students.conventions.levels import Setting
from students.errors import UnsupportedSteps
from students.models.cards import load_family
from students.options import describe
from students.solvers.dpm_solver import fast_orders

EVERYTHING = 0.0, math.inf  # a teacher that has seen every level


def levels(name, n, evaluations=None, orders=None, limits=EVERYTHING, **options):
    return getattr(lists, name)(Setting(n, *limits, evaluations or n, orders), **options).tolist()


def close(found, expected, rel=1e-12):
    assert len(found) == len(expected)
    assert found == pytest.approx(expected, rel=rel, abs=0)


def power_law(high, low, intervals, rho):
    return [
        (high ** (1 / rho) + i / intervals * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(intervals + 1)
    ]


# EDM


@pytest.mark.parametrize("n", [2, 5, 18, 40, 256])
@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_edm(n, rho):
    """t_steps of generate.py: num_steps levels from 80 to 0.002, then 0."""
    close(levels("edm", n, rho=rho), [*power_law(80.0, 0.002, n - 1, rho), 0.0])


def test_edm_begins_and_ends_where_it_is_said():
    found = levels("edm", 18)
    assert (found[0], found[-1]) == (pytest.approx(80, rel=1e-12), 0)
    assert found[-2] == pytest.approx(0.002, rel=1e-12)
    close(levels("edm", 4, sigma_min=0.01, sigma_max=50.0), [*power_law(50.0, 0.01, 3, 7), 0.0])
    # max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max): narrowed before the levels are spaced
    close(levels("edm", 4, limits=(0.02, 30.0)), [*power_law(30.0, 0.02, 3, 7), 0.0])


# diff-sampler


@pytest.mark.parametrize("n", [1, 3, 9])
def test_diff_sampler(n):
    close(levels("diff_sampler_polynomial", n), power_law(80.0, 0.002, n, 7))
    close(levels("diff_sampler_polynomial", n, rho=1.0), np.linspace(80.0, 0.002, n + 1).tolist())
    close(levels("diff_sampler_logsnr", n), np.geomspace(80.0, 0.002, n + 1).tolist())


@pytest.mark.parametrize("n", [1, 3, 9])
@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_diff_sampler_time_uniform(n, rho):
    eps = 1e-3
    beta_d = 2 * (math.log(0.002**2 + 1) / eps - math.log(80**2 + 1)) / (eps - 1)
    beta_min = math.log(80**2 + 1) - 0.5 * beta_d
    times = [(1 + i / n * (eps ** (1 / rho) - 1)) ** rho for i in range(n + 1)]
    expected = [math.sqrt(math.expm1(0.5 * beta_d * t**2 + beta_min * t)) for t in times]
    # 0.002^2 is lost beside 1 in the sum that the logarithm takes, to eight digits
    close(levels("diff_sampler_time_uniform", n, rho=rho), expected, rel=1e-8)
    close(levels("diff_sampler_time_uniform", n, rho=rho)[::n], [80.0, 0.002], rel=1e-10)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_diff_sampler_discrete(n):
    """log alpha is linear between the steps of LDM, t = (k + 1) / 1000; even t from 1 to 1 / 1000."""
    alpha_bar, product = [], 1.0
    for k in range(1000):
        root = 0.00085**0.5 + k / 999 * (0.012**0.5 - 0.00085**0.5)
        product *= 1 - root**2
        alpha_bar.append(product)
    expected = []
    for i in range(n + 1):
        place = (1 + i / n * (1e-3 - 1)) * 1000 - 1
        k = min(int(place), 998)
        low, high = (0.5 * math.log(alpha_bar[j]) for j in (k, k + 1))
        log_alpha = low + (place - k) * (high - low)
        expected.append(math.sqrt(1 - math.exp(2 * log_alpha)) / math.exp(log_alpha))
    close(levels("diff_sampler_discrete", n), expected, rel=1e-10)


# DPM-Solver


def vp_sigma(t):
    """sigma / alpha of Song's VP process: log alpha = -t^2 (20 - 0.1) / 4 - 0.1 t / 2."""
    return math.sqrt(math.expm1(2 * (t**2 * (20 - 0.1) / 4 + 0.1 * t / 2)))


@pytest.mark.parametrize(("evaluations", "end"), [(10, 1e-3), (15, 1e-3), (16, 1e-4), (50, 1e-4)])
def test_dpm_solver(evaluations, end):
    n = 10
    uniform = [vp_sigma(1 + i / n * (end - 1)) for i in range(n + 1)]
    quadratic = [vp_sigma((1 + i / n * (end**0.5 - 1)) ** 2) for i in range(n + 1)]
    close(levels("dpm_solver_time_uniform", n, evaluations), uniform, rel=1e-10)
    close(levels("dpm_solver_time_quadratic", n, evaluations), quadratic, rel=1e-10)
    close(levels("dpm_solver_logsnr", n, evaluations), np.geomspace(vp_sigma(1), vp_sigma(end), n + 1).tolist(), 1e-10)
    close(levels("dpm_solver_logsnr", n, evaluations, t_end=0.01)[-1:], [vp_sigma(0.01)], 1e-10)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 12, 20])
def test_the_steps_of_dpm_solver_fast_are_equally_long_in_log_snr(n):
    orders = fast_orders(n)
    found = levels("dpm_solver_logsnr", n, orders=tuple(orders), t_end=1e-3)
    reached = np.cumsum([0, *orders])
    expected = np.geomspace(vp_sigma(1), vp_sigma(1e-3), len(orders) + 1)
    close(np.array(found)[reached].tolist(), expected.tolist(), 1e-10)
    assert len(found) == n + 1


# Discrete processes


def ddpm_sigmas():
    product, found = 1.0, []
    for k in range(1000):
        product *= 1 - (1e-4 + k / 999 * (0.02 - 1e-4))
        found.append(math.sqrt(1 / product - 1))
    return found


DDPM = ddpm_sigmas()
PUBLISHED = {  # [2305.08891] Table 2, for 10 steps, which counts from 1
    "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
    "linspace": [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1],
    "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_spacings(name):
    close(levels(name, 10), [*(DDPM[step - 1] for step in PUBLISHED[name]), 0.0], rel=1e-9)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@pytest.mark.parametrize("n", [2, 4, 7, 16, 50])
@pytest.mark.parametrize("name", PUBLISHED)
def test_spacings_are_those_of_diffusers(name, n, betas, zero_snr):
    ends = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}[betas]
    scheduler = DDIMScheduler(
        beta_start=ends[0],
        beta_end=ends[1],
        beta_schedule=betas,
        timestep_spacing=name,
        rescale_betas_zero_snr=zero_snr,
        clip_sample=False,
    )
    scheduler.set_timesteps(n)
    alpha_bar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    expected = ((1 - alpha_bar) / alpha_bar).sqrt()
    found = levels(name, n, betas=betas, zero_snr=zero_snr)
    close(found[:-1], expected.tolist(), rel=3e-3 if zero_snr else 1e-3)  # theirs is a product in float32
    assert found[-1] == 0
    assert math.isinf(found[0]) == (zero_snr and name != "leading")


def test_zero_terminal_snr():
    """sqrt(alpha_bar) <- (sqrt(alpha_bar) - last) first / (first - last), of steps 999, 499 and 0."""
    root = [1 / math.sqrt(1 + sigma**2) for sigma in DDPM]
    first, last = root[0], root[-1]
    moved = [(root[k] - last) * first / (first - last) for k in (999, 499)]
    expected = math.sqrt(1 / moved[1] ** 2 - 1)
    found = levels("trailing", 2, zero_snr=True)
    assert math.isinf(found[0]) and moved[0] == 0
    assert found[1] == pytest.approx(expected, rel=1e-10)
    assert levels("linspace", 4, zero_snr=True)[3] == pytest.approx(DDPM[0], rel=1e-10)


@pytest.mark.parametrize("n", [2, 5, 10, 20, 50, 100, 1000])
def test_ddim_linear(n):
    """generalized_steps over range(0, 1000, 1000 // n), reversed, with alpha_bar = 1 after the last."""
    close(levels("ddim_linear", n), [*(DDPM[k] for k in reversed(range(0, 1000, 1000 // n))), 0.0], rel=1e-9)


@pytest.mark.parametrize(("n", "taken"), [(3, 4), (16, 17), (300, 334)])
def test_ddim_linear_is_not_defined_where_it_would_take_more_steps(n, taken):
    with pytest.raises(UnsupportedSteps, match=f"are {taken}, not {n}: take a divisor of 1000, or convention=leading"):
        levels("ddim_linear", n)


@pytest.mark.parametrize("n", [2, 10, 20, 50, 100])
def test_ddim_quadratic(n):
    squares = [i / (n - 1) * 800**0.5 for i in range(n)]
    steps = [math.floor(root * root + 1e-9) for root in squares]
    assert steps[-1] == 800 and (len(set(steps)) < n) == (n > 29)
    close(levels("ddim_quadratic", n), [*(DDPM[k] for k in reversed(steps)), 0.0], rel=1e-9)


# Consistency models


@pytest.mark.parametrize(
    ("options", "points", "of"),
    [
        ({}, [0, 22, 39], 40),
        ({"points": [0, 17, 39]}, [0, 17, 39], 40),
        ({"points": [0, 106, 200], "of": 201}, [0, 106, 200], 201),
        ({"points": [0, 10, 20, 39]}, [0, 10, 20, 39], 40),
    ],
)
def test_consistency_models(options, points, of):
    grid = power_law(80.0, 0.002, of - 1, 7)
    close(levels("cm", len(points) - 1, **options), [grid[point] for point in points])


def test_the_cards_of_consistency_models_have_such_levels():
    cards = load_family("consistency")
    assert levels("cm", 2) == pytest.approx(cards["imagenet64-cd-lpips"].levels[2], rel=1e-12)
    assert levels("cm", 2, points=[0, 106, 200], of=201) == pytest.approx(cards["imagenet64-ct"].levels[2], rel=1e-12)
    assert levels("cm", 1) == pytest.approx(cards["imagenet64-ct"].levels[1], rel=1e-12)


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (3, {}, r"no points of 40 are known for 3 steps: name them, points=\[0,22,39\]"),
        (2, {"of": 151}, "no points of 151 are known"),
        (2, {"points": [0, 22, 38]}, "the last 39, the data end"),
        (2, {"points": [0, 22, 22, 39]}, "whole numbers that increase"),
        (2, {"points": [0, 1.5, 39]}, "whole numbers that increase"),
        (2, {"points": [-1, 5, 39]}, "whole numbers that increase"),
        (3, {"points": [0, 22, 39]}, "3 points make 2 steps, not 3"),
    ],
)
def test_points_that_are_none(n, options, message):
    with pytest.raises(UnsupportedSteps, match=message):
        levels("cm", n, **options)


# All


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_is_a_list_that_ends_as_its_line_says(name):
    rules = CONVENTIONS[name]
    n = 2 if name == "cm" else max(rules.least, 5)
    found = torch.tensor(levels(name, n))
    assert len(found) == n + 1 and (found.diff() < 0).all()
    assert (found[-1] == 0) == rules.to_zero
    assert not describe(getattr(lists, name)).keys() & {"grid", "convention", "afs", "order", "eta"}
