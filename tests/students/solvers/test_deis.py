"""DEIS: exactness of its coefficients, orders, identities, ends of the time axis."""

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from scipy.integrate import quad

from students.diffusion.analytic import GaussianMixture
from students.diffusion.grids import GRIDS, make_grid
from students.diffusion.schedules import SCHEDULES, VE, Flow
from students.errors import FewstepError
from students.nfe import count_nfe
from students.solvers.deis import deis, deis_weights, lagrange_basis, multistep
from students.solvers.euler import ddim, slope
from students.solvers.pndm import ipndm_v
from students.student import SolverStudent
from tests.conftest import make_mixture
from tests.students.solvers.orders import error, observed_order, starts


def times_of(*values):
    return torch.tensor(values, dtype=torch.float64)


def solve(solver, schedule, n_steps=8, grid="log_snr", **options):
    times = make_grid(grid, schedule, n_steps)
    return solver(make_mixture(schedule), starts(schedule, float(times[0])), times, **options)


def integral(f, schedule, s, t):
    """int_s^t f(tau) u'(tau) dtau, adaptively, in asinh(u)."""
    start, end = (float(schedule.u(v).asinh()) for v in (s, t))
    integrand = lambda v: f(schedule.time_of_u(np.sinh(v)).item()) * np.cosh(v)
    return quad(integrand, start, end, epsabs=0, epsrel=1e-12, limit=500)[0]


def exact_weights(schedule, past, t):
    """int_s^t L_j u' dtau / (u_t - u_s)"""
    s, step = past[0].item(), (schedule.u(t) - schedule.u(past[0])).item()
    return [
        integral(lambda tau, L=L: L((tau - s) / (t.item() - s)), schedule, s, t) / step
        for L in lagrange_basis(past.tolist(), t.item())
    ]


# Coefficients


def test_lagrange_basis():
    past, end = [0.9, 0.5, 0.45, 0.1], 0.05
    for j, basis in enumerate(lagrange_basis(past, end)):
        values = [basis((time - past[0]) / (end - past[0])) for time in past]
        np.testing.assert_allclose(values, np.eye(4)[j], atol=1e-12)


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("t_min", [None, 0.0])
def test_the_integral_is_exact(grid, t_min, schedule):
    for n_steps in (2, 3, 6):
        times = make_grid(grid, schedule, n_steps, t_min=t_min)
        i = n_steps - 2 if n_steps < 6 else 3
        past, t = times[: i + 1].flip(0), times[i + 1]
        weights, exact = deis_weights(schedule, past, t), exact_weights(schedule, past, t)
        largest = max(map(abs, exact))
        np.testing.assert_allclose(weights, exact, rtol=0, atol=1e-10 * largest)
        assert sum(weights) == pytest.approx(1, abs=1e-12 * largest)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_step_is_exact_for_a_slope_polynomial_in_time(order, schedule):
    """With d a polynomial of degree `order` in t the last step is exact, of the next degree it is not."""
    times = times_of(0.9, 0.7, 0.6, 0.35, 0.3, 0.1)[: order + 3]
    for degree in (order, order + 1):
        d = Polynomial([0.3, -2.0, 1.0, 4.0, -3.0][: degree + 1])

        def denoise(x, t, d=d):
            return x / schedule.scale(t) - schedule.u(t) * d(t.item())  # the x0 whose slope is d(t)

        denoise.schedule = schedule
        x = torch.ones(1, 1, dtype=torch.float64)
        before, after = (deis(denoise, x, ts, order=order) for ts in (times[:-1], times))
        s, t = times[-2:]
        exact = schedule.scale(t) * (before / schedule.scale(s) + integral(d, schedule, s, t))
        mistake = ((after - exact) / schedule.scale(t)).abs().item()
        assert mistake < 1e-11 if degree == order else mistake > 1e-4


# Orders


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_converges_at_order_plus_one(order, schedule):
    assert observed_order(deis, schedule, (128, 256), order=order) == pytest.approx(order + 1, abs=0.3)


def test_warm_up_of_low_order_shows_where_the_grid_is_coarse_at_the_noise_end():
    """On a uniform grid from pure noise of flow matching, the first step's 1 / n^2 is all there is."""
    assert observed_order(deis, Flow(), (128, 256), grid="uniform", t_max=0.9) == pytest.approx(2, abs=0.1)


def test_higher_orders_are_better_in_few_steps(schedule):
    errors = [error(deis, schedule, 20, order=order) for order in (0, 1, 2)]
    assert errors[0] > 2.5 * errors[1]
    assert errors[1] > 1.5 * errors[2]


# Identities


@pytest.mark.parametrize("grid", sorted(GRIDS))
def test_order_zero_is_ddim(grid, schedule):
    x, y = solve(deis, schedule, grid=grid, order=0), solve(ddim, schedule, grid=grid)
    torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_step_is_ddim(order, schedule):
    torch.testing.assert_close(solve(deis, schedule, 1, order=order), solve(ddim, schedule, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ve", "flow"])
def test_is_ipndm_v_where_u_is_time(name):
    schedule = SCHEDULES[name]()
    torch.testing.assert_close(solve(deis, schedule), solve(ipndm_v, schedule), rtol=0, atol=1e-11)


def test_is_not_ipndm_v_elsewhere():
    schedule = SCHEDULES["vp_linear"]()
    assert (solve(deis, schedule) - solve(ipndm_v, schedule)).abs().max() > 1e-3


def test_single_gaussian_in_the_limit():
    """x(s) = x(t) sqrt((c^2 + s^2) / (c^2 + t^2)) in VE coordinates."""
    c, schedule = 0.5, VE(t_max=20.0, t_min=0.05)
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[c**2, 0.0], [0.0, c**2]]], schedule)
    x = times_of(12.0, -7.0)[None]
    out = deis(gaussian, x, make_grid("log_snr", schedule, 400))
    torch.testing.assert_close(out, x * ((c**2 + 0.05**2) / (c**2 + 20.0**2)) ** 0.5, rtol=1e-6, atol=0)


# Ends, cost, precision, errors


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_ends_at_zero_noise(order, n_steps, schedule):
    times = make_grid("uniform", schedule, n_steps, t_min=0.0)
    out = deis(make_mixture(schedule), starts(schedule, float(times[0])), times, order=order)
    assert out.isfinite().all()
    assert out.abs().max() < 4


@pytest.mark.parametrize("order", [0, 3])
def test_nfe(order, schedule):
    student = SolverStudent(make_mixture(schedule), deis, order=order)
    with count_nfe(student) as nfe:
        student.sample(6, seeds=range(3))
    assert nfe.per_image == 6


@pytest.mark.parametrize("n_steps", [1, 2, 4, 8])
def test_float32_loses_little(n_steps, schedule):
    """Also from u = 22026, the noise end of the cosine schedule."""
    times = make_grid("quadratic", schedule, n_steps)
    x = starts(schedule, float(times[0])).float()
    single, double = (deis(make_mixture(schedule), start, times) for start in (x, x.double()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-6)


@pytest.mark.parametrize("order", [-1, 4, 1.5])
def test_other_orders_are_refused(order):
    with pytest.raises(FewstepError, match="0, 1, 2 or 3"):
        solve(deis, VE(), order=order)


def test_multistep_continues_from_a_history():
    schedule = Flow()
    mixture, times = make_mixture(schedule), make_grid("uniform", schedule, 6)
    states = []

    def recorder(x, t):
        states.append(x)
        return mixture(x, t)

    recorder.schedule = schedule
    whole = deis(recorder, starts(schedule, 1.0), times)
    history = [(times[i], slope(schedule, states[i], mixture(states[i], times[i]), times[i])) for i in (2, 1, 0)]
    rest = multistep(mixture, states[3], times[3:], 4, deis_weights, history)
    torch.testing.assert_close(rest, whole, rtol=0, atol=1e-13)
