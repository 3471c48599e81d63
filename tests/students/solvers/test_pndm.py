"""PNDM, iPNDM and iPNDM with variable steps: coefficients, orders, identities, agreement with diffusers."""

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from students.diffusion.analytic import GaussianMixture
from students.diffusion.grids import make_grid
from students.diffusion.schedules import SCHEDULES, VE, Flow, VPLinear
from students.errors import FewstepError, UnsupportedSteps
from students.nfe import count_nfe
from students.solvers.euler import ddim
from students.solvers.pndm import ADAMS_BASHFORTH, ipndm, ipndm_v, pndm, variable_weights
from students.student import SolverStudent
from tests.conftest import make_mixture
from tests.students.solvers.orders import error, observed_order, starts

multistep_solvers = pytest.mark.parametrize("solver", [ipndm, ipndm_v])
all_solvers = pytest.mark.parametrize("solver", [pndm, ipndm, ipndm_v])


def solve(solver, schedule, n_steps=8, grid="log_snr", **options):
    times = make_grid(grid, schedule, n_steps)
    return solver(make_mixture(schedule), starts(schedule, float(times[0])), times, **options)


# Coefficients


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equal_steps_have_the_classical_coefficients(order):
    times = torch.linspace(0.9, 0.2, 8, dtype=torch.float64)
    weights = variable_weights(VE(), times[:order].flip(0), times[order])
    np.testing.assert_allclose(weights, ADAMS_BASHFORTH[order - 1], rtol=0, atol=1e-12)


def test_the_classical_coefficients():
    assert ADAMS_BASHFORTH[3] == (55 / 24, -59 / 24, 37 / 24, -9 / 24)
    for weights in ADAMS_BASHFORTH:
        assert sum(weights) == pytest.approx(1, abs=1e-15)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.05, 1.0), min_size=2, max_size=5),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.sampled_from(sorted(SCHEDULES)),
)
def test_any_grid_integrates_polynomials_exactly(steps, coefficients, name):
    """On k past evaluations, polynomials in u of degree k - 1."""
    schedule = SCHEDULES[name]()
    u = np.cumsum(steps)[::-1].copy()
    times = schedule.time_of_u(torch.from_numpy(u) * (0.2 if name == "flow" else 1))
    past, t = times[:-1].flip(0), times[-1]
    weights = variable_weights(schedule, past, t)
    polynomial = np.polynomial.Polynomial(coefficients[: len(past)])
    start, end = schedule.u(past[0]).item(), schedule.u(t).item()
    exact = (polynomial.integ()(end) - polynomial.integ()(start)) / (end - start)
    assert np.dot(weights, polynomial(schedule.u(past).numpy())) == pytest.approx(exact, abs=1e-9)


# Orders


def test_variable_steps_converge_at_order_four_where_fixed_coefficients_drop_to_two(schedule):
    """On a grid uniform in log-SNR, far from uniform in u."""
    assert observed_order(ipndm_v, schedule, (128, 256)) == pytest.approx(4, abs=0.3)
    assert observed_order(ipndm, schedule, (128, 256)) == pytest.approx(2, abs=0.1)
    assert error(ipndm, schedule, 256) > 10 * error(ipndm_v, schedule, 256)


@pytest.mark.parametrize("max_order", [1, 2, 3])
def test_variable_steps_converge_at_max_order(max_order, schedule):
    order = observed_order(ipndm_v, schedule, (128, 256), max_order=max_order)
    assert order == pytest.approx(max_order, abs=0.3)


def test_pndm_converges_at_order_four_on_equal_steps_in_u():
    """Its Runge-Kutta warm-up is of that order too; lower-order warm-up shows as order two."""
    options = {"grid": "uniform", "n_steps": (128, 256)}
    assert observed_order(pndm, Flow(), **options) == pytest.approx(4, abs=0.3)
    assert observed_order(ipndm, Flow(), **options) == pytest.approx(2, abs=0.1)


def test_pndm_converges_at_order_two_on_equal_steps_in_time():
    assert observed_order(pndm, VPLinear(), (128, 256), grid="uniform") == pytest.approx(2, abs=0.1)


# Identities


@multistep_solvers
@pytest.mark.parametrize("grid", ["log_snr", "uniform", "quadratic"])
def test_max_order_one_is_ddim(solver, grid, schedule):
    x, y = solve(solver, schedule, grid=grid, max_order=1), solve(ddim, schedule, grid=grid)
    torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@multistep_solvers
def test_one_step_is_ddim(solver, schedule):
    torch.testing.assert_close(solve(solver, schedule, 1), solve(ddim, schedule, 1), rtol=0, atol=1e-12)


def test_variable_steps_are_fixed_steps_on_a_uniform_grid():
    x, y = (solve(solver, Flow(), grid="uniform") for solver in (ipndm, ipndm_v))
    torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    assert (solve(ipndm, Flow()) - solve(ipndm_v, Flow())).abs().max() > 1e-3


@all_solvers
def test_single_gaussian_in_the_limit(solver):
    """x(s) = x(t) sqrt((c^2 + s^2) / (c^2 + t^2)) in VE coordinates."""
    c, schedule = 0.5, VE(t_max=20.0, t_min=0.05)
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[c**2, 0.0], [0.0, c**2]]], schedule)
    x = torch.tensor([[12.0, -7.0]], dtype=torch.float64)
    out = solver(gaussian, x, make_grid("log_snr", schedule, 400))
    exact = x * ((c**2 + 0.05**2) / (c**2 + 20.0**2)) ** 0.5
    torch.testing.assert_close(out, exact, rtol=1e-6 if solver is ipndm_v else 2e-4, atol=0)


# Ends, cost, precision, errors


@all_solvers
@pytest.mark.parametrize("n_steps", [1, 2, 4, 6])
@pytest.mark.parametrize("name", ["ve", "flow", "vp_linear"])
def test_ends_at_zero_noise(solver, n_steps, name):
    if solver is pndm and n_steps < 4:
        return
    schedule = SCHEDULES[name]()
    times = make_grid("uniform", schedule, n_steps, t_min=0.0)
    out = solver(make_mixture(schedule), starts(schedule, float(times[0])), times)
    assert out.isfinite().all()
    assert out.abs().max() < 4


@pytest.mark.parametrize("solver, nfe", [(pndm, 15), (ipndm, 6), (ipndm_v, 6)])
def test_nfe_of_six_steps(solver, nfe, schedule):
    student = SolverStudent(make_mixture(schedule), solver)
    with count_nfe(student) as counted:
        student.sample(6, seeds=range(3))
    assert counted.per_image == nfe


@pytest.mark.parametrize("n_steps", [4, 8])
@multistep_solvers
def test_float32_loses_little(solver, n_steps, schedule):
    times = make_grid("quadratic", schedule, n_steps)
    x = starts(schedule, float(times[0])).float()
    single, double = (solver(make_mixture(schedule), start, times) for start in (x, x.double()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_pndm_needs_four_steps(n_steps):
    def denoise(x, t):
        pytest.fail("called")

    denoise.schedule = VPLinear()
    times = make_grid("uniform", VPLinear(), n_steps)
    with pytest.raises(UnsupportedSteps, match="4 or more"):
        pndm(denoise, torch.zeros(1, 2), times)


@multistep_solvers
@pytest.mark.parametrize("max_order", [0, 5])
def test_other_orders_are_refused(solver, max_order):
    with pytest.raises(FewstepError, match="1, 2, 3 or 4"):
        solve(solver, VE(), max_order=max_order)


# diffusers


def alpha_bars():
    return VPLinear().alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000) ** 2


def eps_of(mixture, x, t):
    return (x - mixture.schedule.alpha(t) * mixture(x, t)) / mixture.schedule.sigma(t)


def test_pndm_is_that_of_diffusers():
    mixture = make_mixture()
    bars = alpha_bars()
    betas = 1 - bars / torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    scheduler = diffusers.PNDMScheduler(
        trained_betas=betas.tolist(),
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=0,
        skip_prk_steps=False,
        set_alpha_to_one=True,
    )
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), bars, rtol=1e-4, atol=0)
    scheduler.alphas_cumprod = bars  # the same numbers without float32 rounding
    scheduler.set_timesteps(10)
    times = torch.tensor([*range(901, 0, -100), 0], dtype=torch.float64) / 1000
    theirs = ours = starts(VPLinear(), 0.901)
    for index in scheduler.timesteps:
        theirs = scheduler.step(eps_of(mixture, theirs, (index.double() + 1) / 1000), index, theirs).prev_sample
    assert len(scheduler.timesteps) == 19
    torch.testing.assert_close(pndm(mixture, ours, times), theirs, rtol=0, atol=1e-6)


def test_ipndm_is_that_of_diffusers():
    """Its betas are sigma, its network predicts v: eps = sigma x + alpha v."""
    schedule, mixture = VPLinear(), make_mixture()
    times = make_grid("log_snr", schedule, 10)
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(10)
    scheduler.alphas, scheduler.betas = schedule.alpha(times), schedule.sigma(times)
    theirs = ours = starts(schedule, 1.0)
    for t, index in zip(times, scheduler.timesteps, strict=False):
        v = (eps_of(mixture, theirs, t) - schedule.sigma(t) * theirs) / schedule.alpha(t)
        theirs = scheduler.step(v, index, theirs).prev_sample
    torch.testing.assert_close(ipndm(mixture, ours, times), theirs, rtol=0, atol=1e-10)
