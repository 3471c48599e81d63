"""DDIM, Euler, Heun, the midpoint method and Heun with churn: orders, identities, agreement with diffusers."""

import diffusers
import pytest
import torch

from students.diffusion.analytic import GaussianMixture
from students.diffusion.grids import make_grid
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import SCHEDULES, VE, VPLinear
from students.nfe import count_nfe
from students.solvers.deis import deis
from students.solvers.euler import corrected_step, ddim, dpm2, edm_stochastic, euler, euler_step, heun, slope
from students.solvers.pndm import ipndm
from students.student import SolverStudent
from tests.conftest import make_mixture
from tests.students.solvers.orders import observed_order, starts


def solve(solver, schedule, n_steps=8, grid="log_snr", **options):
    times = make_grid(grid, schedule, n_steps)
    return solver(make_mixture(schedule), starts(schedule, float(times[0])), times, **options)


# Orders


@pytest.mark.parametrize(
    "solver, options, order",
    [
        (ddim, {}, 1),
        (euler, {}, 1),
        (heun, {"lower_order_final": False}, 2),
        (dpm2, {"lower_order_final": False}, 2),
    ],
    ids=["ddim", "euler", "heun", "dpm2"],
)
def test_converges_at_its_order(solver, options, order, schedule):
    assert observed_order(solver, schedule, **options) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", [ddim, heun, dpm2])
def test_single_gaussian_in_the_limit(solver):
    """x(s) = x(t) sqrt((c^2 + s^2) / (c^2 + t^2)) in VE coordinates."""
    c, schedule = 0.5, VE(t_max=20.0, t_min=0.05)
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[c**2, 0.0], [0.0, c**2]]], schedule)
    x = torch.tensor([[12.0, -7.0]], dtype=torch.float64)
    exact = x * ((c**2 + 0.05**2) / (c**2 + 20.0**2)) ** 0.5
    mistakes = [(solver(gaussian, x, make_grid("log_snr", schedule, n)) / exact - 1).abs().max() for n in (100, 400)]
    assert mistakes[1] < (6e-3 if solver is ddim else 2e-4)
    assert mistakes[0] > 3.5 * mistakes[1]


# Identities


@pytest.mark.parametrize("grid", ["log_snr", "uniform", "quadratic"])
@pytest.mark.parametrize("n_steps", [1, 10])
def test_first_order_solvers_are_one(n_steps, grid, schedule):
    x = solve(ddim, schedule, n_steps, grid)
    for solver, options in ((euler, {}), (deis, {"order": 0}), (ipndm, {"max_order": 1})):
        torch.testing.assert_close(solve(solver, schedule, n_steps, grid, **options), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", [euler, heun, dpm2])
def test_one_evaluation_is_ddim(solver, schedule):
    torch.testing.assert_close(solve(solver, schedule, 1), solve(ddim, schedule, 1), rtol=0, atol=1e-10)


def test_straight_steps_are_exact_for_a_constant_estimate(schedule):
    """With D constant, z = x0 + u n; a step by slope or by estimate stays on that line."""
    x0, n = (torch.tensor([v], dtype=torch.float64) for v in ([0.5, -0.2], [1.0, 2.0]))
    s, t = 0.8, 0.1
    at = lambda time: schedule.alpha(time) * x0 + schedule.sigma(time) * n
    torch.testing.assert_close(euler_step(schedule, at(s), x0, s, t), at(t), rtol=0, atol=1e-14)
    d = slope(schedule, at(s), x0, s)
    along = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    moved = at(t) + schedule.scale(t) * (schedule.u(t) - schedule.u(s)) * along
    torch.testing.assert_close(corrected_step(schedule, at(s), x0, along, s, t), moved, rtol=0, atol=1e-14)
    torch.testing.assert_close(d, n - x0 if schedule == SCHEDULES["flow"]() else n, rtol=0, atol=1e-14)


def test_heun_is_the_trapezoid_rule_and_dpm2_the_midpoint_rule():
    """On a slope known at each time, d = u^2, one step from u = 1 to u = 0.25."""
    schedule = VE()
    asked = []

    def denoise(x, t):
        asked.append(t.item())
        return x - t**3

    denoise.schedule = schedule
    times, x = torch.tensor([1.0, 0.25], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert heun(denoise, x, times, lower_order_final=False).item() == pytest.approx(1 - 0.75 * (1 + 0.25**2) / 2)
    assert dpm2(denoise, x, times, lower_order_final=False).item() == pytest.approx(1 - 0.75 * 0.5**2)
    assert asked == pytest.approx([1, 0.25, 1, 0.5])


# The ends of the time axis, cost


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["ve", "flow", "vp_linear"])
@pytest.mark.parametrize("solver", [ddim, euler, heun, dpm2, edm_stochastic])
def test_ends_at_zero_noise(solver, name, n_steps):
    schedule = SCHEDULES[name]()
    times = make_grid("uniform", schedule, n_steps, t_min=0.0)
    noise = SeedNoise(range(8), (2,), dtype=torch.float64)
    out = solver(make_mixture(schedule), starts(schedule, float(times[0])), times, noise=noise)
    assert out.isfinite().all()
    assert out.abs().max() < 4


@pytest.mark.parametrize("name", ["ve", "flow"])
def test_ddim_with_noise_ends_at_zero_noise(name):
    schedule = SCHEDULES[name]()
    times = make_grid("uniform", schedule, 5, t_min=0.0)
    noise = SeedNoise(range(8), (2,), dtype=torch.float64)
    out = ddim(make_mixture(schedule), starts(schedule, float(times[0])), times, noise=noise, eta=1.0)
    assert out.isfinite().all()
    assert out.abs().max() < 4


@pytest.mark.parametrize("solver, nfe", [(ddim, 6), (euler, 6), (heun, 11), (dpm2, 11), (edm_stochastic, 11)])
def test_nfe_of_six_steps(solver, nfe, schedule):
    student = SolverStudent(make_mixture(schedule), solver)
    with count_nfe(student) as counted:
        out = student.sample(6, seeds=range(3))
    assert counted.per_image == nfe
    assert out.dtype == torch.float32


# Stochastic


def constant(schedule, x0):
    denoise = lambda x, t: x0.expand_as(x)
    denoise.schedule = schedule
    return denoise


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine", "ve"])
def test_ddim_with_eta_one_draws_from_the_ddpm_posterior(name):
    """q(x_t | x_s, x0): precision and mean from the two Gaussians q(x_t | x0) and q(x_s | x_t), by Bayes."""
    schedule = SCHEDULES[name]()
    x0, x = (torch.tensor([v], dtype=torch.float64) for v in ([0.7, -0.4], [1.3, 0.6]))
    s, t = torch.tensor([0.6, 0.35], dtype=torch.float64)
    a = schedule.alpha(s) / schedule.alpha(t)
    beta = schedule.sigma(s) ** 2 - a**2 * schedule.sigma(t) ** 2  # the variance of q(x_s | x_t)
    precision = 1 / schedule.sigma(t) ** 2 + a**2 / beta
    mean = (schedule.alpha(t) * x0 / schedule.sigma(t) ** 2 + a * x / beta) / precision
    run = lambda draw: ddim(constant(schedule, x0), x, torch.stack([s, t]), noise=lambda: draw, eta=1.0)
    torch.testing.assert_close(run(torch.zeros_like(x)), mean, rtol=0, atol=1e-12)
    std = run(torch.ones_like(x)) - mean
    torch.testing.assert_close(std, precision.rsqrt().expand_as(std), rtol=0, atol=1e-12)


def test_ddim_with_eta_one_has_ddpm_s_beta_tilde():
    """(1 - abar_{t-1}) / (1 - abar_t) beta_t, on DDPM's discrete times."""
    schedule, x = VPLinear(), torch.zeros(1, 1, dtype=torch.float64)
    times = torch.tensor([0.5, 0.499], dtype=torch.float64)
    abar_s, abar_t = schedule.alpha(times) ** 2
    run = lambda draw: ddim(constant(schedule, x), x, times, noise=lambda: draw, eta=1.0)
    variance = (run(torch.ones_like(x)) - run(torch.zeros_like(x))) ** 2
    assert variance.item() == pytest.approx(((1 - abar_t) / (1 - abar_s) * (1 - abar_s / abar_t)).item(), rel=1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_keeps_the_marginal(eta, schedule):
    """With x = alpha x0 + sigma n, a step for the same x0 leaves variance sigma_t^2, whatever eta."""
    s, t = torch.tensor([0.7, 0.4], dtype=torch.float64)
    x0 = torch.tensor([[0.5]], dtype=torch.float64)
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    run = lambda n, draw: ddim(
        constant(schedule, x0),
        schedule.alpha(s) * x0 + schedule.sigma(s) * n,
        torch.stack([s, t]),
        noise=lambda: draw,
        eta=eta,
    )
    mean = run(zero, zero)
    torch.testing.assert_close(mean, schedule.alpha(t) * x0)
    variance = (run(one, zero) - mean) ** 2 + (run(zero, one) - mean) ** 2
    torch.testing.assert_close(variance.squeeze(), schedule.sigma(t) ** 2)
    assert ((run(zero, one) - mean) > 0.01).all()


@pytest.mark.parametrize("solver, options", [(edm_stochastic, {"s_noise": 1.0}), (ddim, {"eta": 1.0})])
@pytest.mark.parametrize("name", ["vp_linear", "ve", "flow"])
def test_stochastic_samplers_reproduce_the_moments(name, solver, options):
    schedule = SCHEDULES[name]()
    student = SolverStudent(make_mixture(schedule), solver, **options)
    x = student.sample(64 if solver is edm_stochastic else 400, seeds=range(2000)).double()
    alpha, sigma = schedule.alpha(schedule.t_min), schedule.sigma(schedule.t_min)
    mean, covariance = make_mixture(schedule).moments()
    mean, covariance = alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(2)
    products = torch.einsum("nd,ne->nde", x - mean, x - mean)
    for values, expected in ((x, mean), (products, covariance)):
        assert ((values.mean(0) - expected).abs() < 4 * values.std(0) / len(x) ** 0.5).all()


def test_churn_raises_the_noise_level_as_alg_2_says():
    """x + sqrt(t_hat^2 - t^2) S_noise n, asked at t_hat = t (1 + gamma), inside [S_min, S_max] only."""
    schedule, asked = VE(), []

    def denoise(x, t):
        asked.append((t.item(), x.item()))
        return x  # slope 0: the state moves by churn alone

    denoise.schedule = schedule
    times = torch.tensor([60.0, 10.0, 1.0, 0.01], dtype=torch.float64)
    noise = lambda: torch.ones(1, 1, dtype=torch.float64)
    options = {"s_churn": 0.6, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.5}
    edm_stochastic(denoise, torch.zeros(1, 1, dtype=torch.float64), times, noise=noise, **options)
    first, second = 1.5 * 10 * (1.2**2 - 1) ** 0.5, 1.5 * (1.2**2 - 1) ** 0.5
    expected = [(60, 0), (10, 0), (12, first), (1, first), (1.2, first + second)]
    for got, wanted in zip(asked, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-12)


def test_churn_is_limited_and_can_be_off():
    student = lambda **options: SolverStudent(make_mixture(VE()), edm_stochastic, **options)
    torch.testing.assert_close(
        student(s_churn=0.0).sample(6), SolverStudent(make_mixture(VE()), heun).sample(6), rtol=0, atol=0
    )
    limit = 6 * (2**0.5 - 1)
    assert student(s_churn=limit).sample(6).equal(student(s_churn=1e9).sample(6))


# diffusers


def trained_betas() -> list[float]:
    """beta_i = 1 - (alpha_i / alpha_{i-1})^2 of VPLinear at t_i = (i + 1) / 1000."""
    alpha = VPLinear().alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    return (1 - (alpha / torch.cat([torch.ones(1, dtype=torch.float64), alpha[:-1]])) ** 2).tolist()


def test_ddim_is_that_of_diffusers():
    schedule, mixture = VPLinear(), make_mixture()
    scheduler = diffusers.DDIMScheduler(
        trained_betas=trained_betas(),
        prediction_type="sample",
        timestep_spacing="leading",
        steps_offset=0,
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.alphas_cumprod = schedule.alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000) ** 2
    scheduler.set_timesteps(10)
    times = torch.tensor([*range(901, 0, -100), 0], dtype=torch.float64) / 1000
    for eta in (0.0, 1.0):
        noise = SeedNoise(range(8), (2,), dtype=torch.float64)
        again = SeedNoise(range(8), (2,), dtype=torch.float64)
        ours = ddim(mixture, starts(schedule, 0.901), times, noise=noise, eta=eta)
        theirs = starts(schedule, 0.901)
        for index in scheduler.timesteps:
            extra = {"variance_noise": again()} if eta else {}
            x0 = mixture(theirs, (index.double() + 1) / 1000)
            theirs = scheduler.step(x0, index, theirs, eta=eta, **extra).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own use of NumPy
@pytest.mark.parametrize(
    "solver, name",
    [(euler, "EulerDiscreteScheduler"), (heun, "HeunDiscreteScheduler"), (dpm2, "KDPM2DiscreteScheduler")],
)
def test_solvers_in_sigma_are_those_of_diffusers(solver, name):
    """Their state is z = x / alpha, asked here at the time of each of their (float32) sigmas."""
    schedule, mixture = VPLinear(), make_mixture()
    scheduler = getattr(diffusers, name)(
        trained_betas=trained_betas(), prediction_type="epsilon", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.double()
    times = schedule.time_of_u(sigmas if solver is euler else torch.cat([sigmas[:1], sigmas[1:24:2]]))
    x = starts(schedule, float(times[0]))
    z = x / schedule.alpha(times[0])
    for i, index in enumerate(scheduler.timesteps):
        sigma = sigmas[i]
        if solver is dpm2 and i % 2:
            sigma = scheduler.sigmas_interpol[i].double()
        t = schedule.time_of_u(sigma)
        scheduler.scale_model_input(z, index)
        eps = (z - mixture(schedule.alpha(t) * z, t)) / sigma
        z = scheduler.step(eps, index, z).prev_sample
    assert times[-1] == 0
    torch.testing.assert_close(solver(mixture, x, times), z, rtol=0, atol=3e-5)
