import pytest
import torch
from diffusers import DDPMScheduler

from students.diffusion.grids import make_grid
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import VE, Flow, VPLinear
from students.errors import FewstepError
from students.nfe import count_nfe
from students.solvers.ancestral import ddpm, posterior_mean
from students.solvers.euler import ddim
from students.student import SolverStudent
from tests.conftest import make_mixture


def run(solver, schedule, n_steps, seeds, grid="log_snr", denoise=None, **options):
    """A float64 run of a solver on the mixture, from the noise of the given seeds."""
    denoise = denoise or make_mixture(schedule)
    times = make_grid(grid, schedule, n_steps)
    noise = SeedNoise(seeds, (2,), dtype=torch.float64)
    return solver(denoise, noise() * schedule.sigma(times[0]), times, noise=noise, **options)


def assert_moments(x, schedule):
    """Mean and covariance of x are those of the mixture at t_min, within four standard errors."""
    mean, covariance = make_mixture(schedule).moments()
    alpha, sigma = schedule.alpha(schedule.t_min), schedule.sigma(schedule.t_min)
    mean, covariance = alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(2)
    products = torch.einsum("nd,ne->nde", x - mean, x - mean)
    for values, expected in ((x, mean), (products, covariance)):
        assert ((values.mean(0) - expected).abs() < 4 * values.std(0) / len(x) ** 0.5).all()


class Recorder:
    """A denoiser that keeps the states it was asked about."""

    def __init__(self, denoise):
        self.denoise, self.schedule, self.states = denoise, denoise.schedule, []

    def __call__(self, x, t):
        self.states.append(x)
        return self.denoise(x, t)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_samples_have_the_moments_of_the_mixture(schedule, variance):
    assert_moments(run(ddpm, schedule, 400, range(1500), variance=variance), schedule)


def test_small_variance_is_ddim_with_eta_one_until_the_last_step(schedule):
    ancestral, stochastic = Recorder(make_mixture(schedule)), Recorder(make_mixture(schedule))
    run(ddpm, schedule, 8, range(16), denoise=ancestral)
    run(ddim, schedule, 8, range(16), denoise=stochastic, eta=1.0)
    assert len(ancestral.states) == 8
    torch.testing.assert_close(ancestral.states, stochastic.states, rtol=1e-12, atol=1e-12)


def test_the_last_step_is_the_posterior_mean(schedule):
    recorder = Recorder(make_mixture(schedule))
    x = run(ddpm, schedule, 3, range(4), denoise=recorder, variance="large")
    s, t = make_grid("log_snr", schedule, 3)[-2:]
    expected = posterior_mean(schedule, recorder.states[-1], recorder.denoise(recorder.states[-1], s), s, t)
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


def test_large_variance_is_that_of_the_forward_kernel():
    schedule, times = VPLinear(), torch.tensor([0.8, 0.5, 0.001], dtype=torch.float64)
    x = torch.zeros(2, 2, dtype=torch.float64)
    steps = {}
    for size in (0.0, 1.0):
        recorder = Recorder(make_mixture(schedule))
        ddpm(recorder, x, times, noise=lambda size=size: torch.full_like(x, size), variance="large")
        steps[size] = recorder.states[1]
    beta = 1 - (schedule.alpha(0.8) / schedule.alpha(0.5)) ** 2
    torch.testing.assert_close(steps[1.0] - steps[0.0], beta.sqrt().expand(2, 2), rtol=1e-12, atol=0)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_agrees_with_diffusers(variance):
    schedule, mixture = VPLinear(), make_mixture()
    alphas = schedule.alpha(torch.arange(1001) / 1000)
    theirs = DDPMScheduler(
        trained_betas=(1 - (alphas[1:] / alphas[:-1]) ** 2).tolist(),
        variance_type=f"fixed_{variance}",
        prediction_type="sample",
        timestep_spacing="leading",
        clip_sample=False,
    )
    theirs.set_timesteps(20)
    start = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator, x, states = torch.Generator().manual_seed(1), start, []
    for t in theirs.timesteps:
        states.append(x)
        x = theirs.step(mixture(x, (t + 1) / 1000), t, x, generator=generator).prev_sample

    generator, recorder = torch.Generator().manual_seed(1), Recorder(mixture)
    times = torch.cat([(theirs.timesteps.double() + 1) / 1000, torch.zeros(1)])
    ours = ddpm(
        recorder,
        start,
        times,
        noise=lambda: torch.randn(8, 2, dtype=torch.float64, generator=generator),
        variance=variance,
    )
    torch.testing.assert_close([*recorder.states, ours], [*states, x], rtol=1e-4, atol=1e-4)


def test_ends_at_sigma_zero_in_the_estimate():
    for schedule in (VE(), Flow()):
        recorder, times = Recorder(make_mixture(schedule)), torch.tensor([schedule.t_max, 0.3, 0.0]).double()
        x = ddpm(recorder, torch.ones(2, 2).double(), times, noise=lambda: torch.ones(2, 2).double())
        torch.testing.assert_close(x, recorder.denoise(recorder.states[-1], times[1]), rtol=1e-12, atol=0)


def test_one_evaluation_a_step():
    student = SolverStudent(make_mixture(), ddpm)
    with count_nfe(student) as nfe:
        student.sample(7, seeds=range(3))
    assert nfe.per_image == 7


def test_unknown_variance():
    with pytest.raises(FewstepError, match="did you mean 'small'"):
        run(ddpm, VPLinear(), 2, [0], variance="smal")
