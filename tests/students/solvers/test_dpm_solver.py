"""DPM-Solver and DPM-Solver++: orders, identities, ends of the time axis, agreement with diffusers."""

import diffusers
import pytest
import torch

from students.diffusion.analytic import GaussianMixture
from students.diffusion.grids import make_grid
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import SCHEDULES, VE, Flow, VPLinear
from students.errors import FewstepError
from students.nfe import count_nfe
from students.solvers.dpm_solver import dpm_solver, dpm_solver_fast, fast_orders
from students.solvers.dpm_solver_pp import (
    dpm_solver_pp,
    dpm_solver_pp_2s,
    dpm_solver_pp_sde,
    multistep,
    multistep_update,
)
from students.solvers.euler import ddim
from students.student import SolverStudent
from tests.conftest import make_mixture
from tests.students.solvers.orders import error, observed_order, starts

DETERMINISTIC = {
    "1": (dpm_solver, {"order": 1}),
    "2": (dpm_solver, {"order": 2}),
    "3": (dpm_solver, {"order": 3}),
    "fast": (dpm_solver_fast, {}),
    "2m": (dpm_solver_pp, {}),
    "3m": (dpm_solver_pp, {"order": 3}),
    "2s": (dpm_solver_pp_2s, {}),
}
deterministic = pytest.mark.parametrize("solver, options", DETERMINISTIC.values(), ids=DETERMINISTIC)


def solve(solver, schedule, n_steps=8, grid="log_snr", t_max=None, t_min=None, **options):
    times = make_grid(grid, schedule, n_steps, t_max, t_min)
    return solver(make_mixture(schedule), starts(schedule, float(times[0])), times, **options)


# Orders


ORDERS = {
    "1": (dpm_solver, {"order": 1}, 1),
    "2": (dpm_solver, {"order": 2}, 2),
    "3": (dpm_solver, {"order": 3}, 3),
    "2m": (dpm_solver_pp, {"lower_order_final": False}, 2),
    "3m": (dpm_solver_pp, {"order": 3, "lower_order_final": False, "n_steps": (128, 256)}, 3),
    "2s": (dpm_solver_pp_2s, {}, 2),
}


@pytest.mark.parametrize("name", ["vp_linear", "ve", "flow"])
@pytest.mark.parametrize("solver, options, order", ORDERS.values(), ids=ORDERS)
def test_converges_at_its_order(solver, options, order, name):
    assert observed_order(solver, SCHEDULES[name](), **options) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("name", ["2", "3", "2m", "2s"])
def test_converges_at_its_order_on_flow_in_uniform_time(name):
    solver, options, order = ORDERS[name]
    assert observed_order(solver, Flow(), grid="uniform", t_max=0.999, **options) == pytest.approx(order, abs=0.2)


@deterministic
def test_flow_from_pure_noise_converges(solver, options):
    """From alpha = 0, where the first step is of first order: its error falls as 1 / n^2."""
    coarse, fine = (error(solver, Flow(), n, "uniform", t_max=1.0, **options) for n in (30, 120))
    assert fine < (2e-3 if options != {"order": 1} else 5e-3)
    assert coarse / fine > (10 if options != {"order": 1} else 3.5)


def test_lowering_the_order_at_the_end_costs_accuracy():
    low, high = (error(dpm_solver_pp, VE(), 256, order=3, lower_order_final=low) for low in (True, False))
    assert low > 10 * high


# Identities


@pytest.mark.parametrize("solver", [dpm_solver, dpm_solver_pp])
@pytest.mark.parametrize("grid", ["log_snr", "uniform"])
def test_first_order_is_ddim(solver, grid, schedule):
    torch.testing.assert_close(
        solve(solver, schedule, grid=grid, order=1), solve(ddim, schedule, grid=grid), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("name", ["fast", "2m", "3m"])
def test_one_evaluation_is_ddim(name, schedule):
    solver, options = DETERMINISTIC[name]
    torch.testing.assert_close(solve(solver, schedule, 1, **options), solve(ddim, schedule, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3])
def test_noise_prediction_is_exact_for_a_constant_eps(order):
    """With eps constant, any order crosses any interval exactly."""
    schedule = VPLinear()
    eps = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    denoise = lambda x, t: (x - schedule.sigma(t) * eps) / schedule.alpha(t)
    denoise.schedule = schedule
    x0 = torch.tensor([[0.5, 0.1]], dtype=torch.float64)
    x = schedule.alpha(0.9) * x0 + schedule.sigma(0.9) * eps
    out = dpm_solver(denoise, x, torch.tensor([0.9, 0.1], dtype=torch.float64), order=order)
    torch.testing.assert_close(out, schedule.alpha(0.1) * x0 + schedule.sigma(0.1) * eps)


@pytest.mark.parametrize("solver, options, degree", [(dpm_solver_pp, {}, 1), (dpm_solver_pp, {"order": 3}, 2)])
def test_multistep_is_exact_for_a_polynomial_in_lam(solver, options, degree):
    """With x0 a polynomial in lam of degree order - 1, the last of `order` steps is exact up to 2M's midpoint rule."""
    schedule = VE()
    polynomial = lambda lam: sum(c * lam**k for k, c in enumerate((0.3, -0.5, 0.2)[: degree + 1]))
    calls = []

    def denoise(x, t):
        calls.append(t)
        return polynomial(schedule.lam(t)) * torch.ones_like(x)

    denoise.schedule = schedule
    times = make_grid("log_snr", schedule, degree + 1, 1.0, 0.95)
    x = solver(denoise, torch.ones(1, 1, dtype=torch.float64), times, lower_order_final=False, **options)
    before = solver(denoise, torch.ones(1, 1, dtype=torch.float64), times[:-1], lower_order_final=False, **options)
    # x_t = sigma_t / sigma_s x_s + sigma_t int e^lam x0 dlam, by a fine midpoint rule
    start, end = schedule.lam(times[-2:])
    n = 10_000
    lam = start + (torch.arange(n, dtype=torch.float64) + 0.5) / n * (end - start)
    integral = (lam.exp() * polynomial(lam)).mean() * (end - start)
    exact = times[-1] / times[-2] * before + times[-1] * integral
    tolerance = 1e-12 if degree == 2 else (end - start).item() ** 3
    torch.testing.assert_close(x, exact, rtol=0, atol=tolerance)


@deterministic
def test_single_gaussian_in_the_limit(solver, options):
    """x(s) = x(t) sqrt((c^2 + s^2) / (c^2 + t^2)) in VE coordinates."""
    c, schedule = 0.5, VE(t_max=20.0, t_min=0.05)
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[c**2, 0.0], [0.0, c**2]]], schedule)
    x = torch.tensor([[12.0, -7.0]], dtype=torch.float64)
    out = solver(gaussian, x, make_grid("log_snr", schedule, 600), **options)
    exact = x * ((c**2 + 0.05**2) / (c**2 + 20.0**2)) ** 0.5
    tolerance = 5e-3 if options == {"order": 1} else 2e-5
    torch.testing.assert_close(out, exact, rtol=tolerance, atol=0)


# Both ends of the time axis


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["ve", "flow", "vp_linear"])
@deterministic
def test_ends_at_zero_noise(solver, options, name, n_steps):
    out = solve(solver, SCHEDULES[name](), n_steps, grid="uniform", t_min=0.0, **options)
    assert out.isfinite().all()
    assert out.abs().max() < 3


def test_sde_is_finite_at_both_ends():
    noise = SeedNoise(range(8), (2,), dtype=torch.float64)
    for schedule in (VE(), Flow()):
        for n_steps in (1, 2, 5):
            out = solve(dpm_solver_pp_sde, schedule, n_steps, grid="uniform", t_min=0.0, noise=noise)
            assert out.isfinite().all()
            assert out.abs().max() < 3


# Cost


@pytest.mark.parametrize(
    "solver, options, nfe",
    [
        (dpm_solver, {"order": 2}, 12),
        (dpm_solver, {"order": 3}, 18),
        (dpm_solver_pp, {}, 6),
        (dpm_solver_pp, {"order": 3}, 6),
        (dpm_solver_pp_2s, {}, 12),
        (dpm_solver_pp_sde, {}, 6),
    ],
)
def test_nfe_of_six_steps(solver, options, nfe, schedule):
    student = SolverStudent(make_mixture(schedule), solver, **options)
    with count_nfe(student) as counted:
        out = student.sample(6, seeds=range(4))
    assert counted.per_image == nfe
    assert out.dtype == torch.float32
    assert out.isfinite().all()


@pytest.mark.parametrize("budget", range(1, 13))
def test_fast_spends_its_budget(budget, schedule):
    student = SolverStudent(make_mixture(schedule), dpm_solver_fast)
    with count_nfe(student) as nfe:
        student.sample(budget, seeds=range(2))
    assert nfe.per_image == budget


def test_fast_orders():
    assert [fast_orders(k) for k in (1, 2, 3, 4, 5, 6, 9)] == [
        [1],
        [2],
        [2, 1],
        [3, 1],
        [3, 2],
        [3, 2, 1],
        [3, 3, 2, 1],
    ]


# Stochastic


@pytest.mark.parametrize("name", ["vp_linear", "flow"])
def test_sde_reproduces_the_moments(name):
    mixture = make_mixture(SCHEDULES[name]())
    out = SolverStudent(mixture, dpm_solver_pp_sde).sample(50, seeds=range(10_000)).double()
    mean, covariance = mixture.moments()
    # about three standard errors
    torch.testing.assert_close(out.mean(0), mean, rtol=0, atol=0.025)
    torch.testing.assert_close(out.T.cov(), covariance, rtol=0, atol=0.025)


# diffusers


def trained_betas() -> list[float]:
    """The betas of VPLinear at t_i = (i + 1) / 1000."""
    alpha = VPLinear().alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    return (1 - (alpha / torch.cat([torch.ones(1, dtype=torch.float64), alpha[:-1]])) ** 2).tolist()


def run_scheduler(scheduler, times, noise=None):
    """A scheduler from its own start over `times`, its single-precision sigmas replaced by exact ones."""
    schedule = VPLinear()
    mixture, x = make_mixture(schedule), starts(schedule, float(times[0]))
    scheduler.sigmas = schedule.u(times)
    for i, index in enumerate(scheduler.timesteps):
        x0 = mixture(x, times[i])
        extra = {} if noise is None else {"variance_noise": noise()}
        x = scheduler.step(x0, index, x, **extra).prev_sample
    return x


def scheduler_times(scheduler) -> torch.Tensor:
    """The times of our VPLinear at the timesteps a scheduler chose, and at its last sigma."""
    last = 0.0 if scheduler.config.final_sigmas_type == "zero" else 1 / 1000
    return torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.tensor([last], dtype=torch.float64)])


def multistep_scheduler(n_steps, final_sigmas_type, **options):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=trained_betas(),
        prediction_type="sample",
        timestep_spacing="linspace",
        final_sigmas_type=final_sigmas_type,
        **options,
    )
    scheduler.set_timesteps(n_steps)
    return scheduler


SINGLE = {"rtol": 0, "atol": 1e-6}  # DPMSolverMultistepScheduler rounds its state to float32


@pytest.mark.parametrize("n_steps, lower", [(8, True), (20, False)])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("order", [1, 2])
def test_agrees_with_diffusers_multistep(order, final, n_steps, lower):
    scheduler = multistep_scheduler(
        n_steps, final, solver_order=order, algorithm_type="dpmsolver++", lower_order_final=lower
    )
    times = scheduler_times(scheduler)
    ours = dpm_solver_pp(
        make_mixture(), starts(VPLinear(), float(times[0])), times, order=order, lower_order_final=lower
    )
    torch.testing.assert_close(ours, run_scheduler(scheduler, times), **SINGLE)


def half_second_derivative(schedule, x, history, s, t):
    """3M as diffusers has it: the quadratic term weighs half of what the integral gives it."""
    full = multistep_update(schedule, x, history, s, t)
    if len(history) < 3:
        return full
    (lam_0, x0), (lam_1, x0_1), (lam_2, x0_2) = history
    h = schedule.lam(t) - lam_0
    d_2 = ((x0 - x0_1) / (lam_0 - lam_1) - (x0_1 - x0_2) / (lam_1 - lam_2)) / (lam_0 - lam_2)
    return full - schedule.alpha(t) * (h**2 / 2 - (torch.expm1(-h) + h)) * d_2


@pytest.mark.parametrize("n_steps, lower", [(8, True), (20, False)])
def test_third_order_of_diffusers_has_half_the_second_derivative(n_steps, lower):
    scheduler = multistep_scheduler(
        n_steps, "sigma_min", solver_order=3, algorithm_type="dpmsolver++", lower_order_final=lower
    )
    times = scheduler_times(scheduler)
    x = starts(VPLinear(), float(times[0]))
    ours = multistep(make_mixture(), x, times, half_second_derivative, 3, lower)
    torch.testing.assert_close(ours, run_scheduler(scheduler, times), **SINGLE)


def test_third_order_of_diffusers_converges_at_order_two():
    theirs = lambda denoise, x, times: multistep(denoise, x, times, half_second_derivative, 3, False)
    assert observed_order(theirs, VPLinear()) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_sde_agrees_with_diffusers(final):
    scheduler = multistep_scheduler(10, final, solver_order=2, algorithm_type="sde-dpmsolver++", lower_order_final=True)
    times = scheduler_times(scheduler)
    noise = lambda: SeedNoise(range(8), (2,), dtype=torch.float64)
    ours = dpm_solver_pp_sde(make_mixture(), starts(VPLinear(), float(times[0])), times, noise=noise())
    torch.testing.assert_close(ours, run_scheduler(scheduler, times, noise()), **SINGLE)


@pytest.mark.parametrize(
    "algorithm, solver", [("dpmsolver++", dpm_solver_pp_2s), ("dpmsolver", lambda *a: dpm_solver(*a, order=2))]
)
def test_agrees_with_diffusers_singlestep(algorithm, solver):
    """Second order on a grid uniform in lam, whose odd times are the midpoints."""
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        trained_betas=trained_betas(),
        prediction_type="sample",
        solver_order=2,
        algorithm_type=algorithm,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(10)
    times = make_grid("log_snr", VPLinear(), 10)
    theirs = run_scheduler(scheduler, times)
    ours = solver(make_mixture(), starts(VPLinear(), 1.0), times[::2])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


# What a user can get wrong


@pytest.mark.parametrize("solver", [dpm_solver, dpm_solver_pp])
@pytest.mark.parametrize("order", [0, 4])
def test_refuses_other_orders(solver, order):
    with pytest.raises(FewstepError, match="choose 1, 2 or 3"):
        solve(solver, VPLinear(), order=order)


@deterministic
def test_float32_state_stays_float32(solver, options, schedule):
    times = make_grid("log_snr", schedule, 8)
    x = starts(schedule, float(times[0])).float()
    out = solver(make_mixture(schedule), x, times, **options)
    exact = solver(make_mixture(schedule), x.double(), times, **options)
    assert out.dtype == torch.float32
    # noise prediction multiplies the rounding of eps by e^h, and fast steps are long
    tolerance = 1e-2 if solver is dpm_solver_fast else 1e-5
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=tolerance)
