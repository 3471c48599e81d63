import pytest
import torch

from students.diffusion.schedules import VE, Flow, VPLinear
from students.errors import FewstepError
from students.nfe import count_nfe
from students.solvers.ancestral import posterior_mean
from students.solvers.sde import euler_maruyama, predictor_corrector
from students.student import SolverStudent
from tests.conftest import make_mixture
from tests.students.solvers.test_ancestral import Recorder, assert_moments, run

ONES = torch.ones(2, 2, dtype=torch.float64)


@pytest.mark.parametrize(("solver", "n_steps"), [(euler_maruyama, 400), (predictor_corrector, 250)])
def test_samples_have_the_moments_of_the_mixture(schedule, solver, n_steps):
    assert_moments(run(solver, schedule, n_steps, range(1500)), schedule)


def test_steps_are_the_predictors_of_the_paper():
    for schedule in (VPLinear(), VE()):
        s, t = torch.tensor([0.8, 0.5], dtype=torch.float64)
        recorder = Recorder(make_mixture(schedule))
        euler_maruyama(recorder, 2 * ONES, torch.stack([s, t, t / 100]), noise=lambda: ONES)
        sigma_s, sigma_t = schedule.sigma(s), schedule.sigma(t)
        score = (schedule.alpha(s) * recorder.denoise(2 * ONES, s) - 2 * ONES) / sigma_s**2
        if isinstance(schedule, VE):
            variance = sigma_s**2 - sigma_t**2
            expected = 2 * ONES + variance * score + variance.sqrt()
        else:
            beta = 1 - (schedule.alpha(s) / schedule.alpha(t)) ** 2
            expected = (2 - (1 - beta).sqrt()) * 2 * ONES + beta * score + beta.sqrt()
        torch.testing.assert_close(recorder.states[1], expected, rtol=1e-12, atol=0)


def test_corrector_runs_before_each_step():
    schedule = VPLinear()
    recorder = Recorder(make_mixture(schedule))
    s, t = torch.tensor([0.6, 0.2], dtype=torch.float64)
    x = predictor_corrector(recorder, 2 * ONES, torch.stack([s, t]), noise=lambda: ONES, snr=0.1, corrector_steps=2)
    sigma = schedule.sigma(s)
    score = (schedule.alpha(s) * recorder.denoise(2 * ONES, s) - 2 * ONES) / sigma**2
    corrected = 2 * ONES + 0.02 * sigma**2 * score + 0.2 * sigma  # h = 2 (0.1 sigma)^2
    torch.testing.assert_close(recorder.states[1], corrected, rtol=1e-12, atol=0)
    last = recorder.states[2]
    torch.testing.assert_close(x, posterior_mean(schedule, last, recorder.denoise(last, s), s, t), rtol=0, atol=0)


def test_many_corrector_steps_keep_the_distribution():
    assert_moments(run(predictor_corrector, VPLinear(), 60, range(1500), corrector_steps=4), VPLinear())


def test_one_step_ends_near_the_data(schedule):
    x = run(predictor_corrector, schedule, 1, range(64))
    mean, _ = make_mixture(schedule).moments()
    torch.testing.assert_close(x, mean.expand(64, 2), rtol=0, atol=0.05)


def test_ends_at_sigma_zero_in_the_estimate():
    for schedule in (VE(), Flow()):
        recorder, times = Recorder(make_mixture(schedule)), torch.tensor([schedule.t_max, 0.3, 0.0]).double()
        x = predictor_corrector(recorder, ONES, times, noise=lambda: ONES)
        torch.testing.assert_close(x, recorder.denoise(recorder.states[-1], times[1]), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("solver", "options", "evaluations"),
    [(euler_maruyama, {}, 5), (predictor_corrector, {}, 10), (predictor_corrector, {"corrector_steps": 3}, 20)],
)
def test_evaluations_of_five_steps(solver, options, evaluations):
    student = SolverStudent(make_mixture(), solver, **options)
    with count_nfe(student) as nfe:
        student.sample(5, seeds=range(3))
    assert nfe.per_image == evaluations


def test_an_image_does_not_depend_on_its_batch():
    student = SolverStudent(make_mixture(), predictor_corrector)
    torch.testing.assert_close(student.sample(8, seeds=[5]), student.sample(8, seeds=range(16))[5:6])


@pytest.mark.parametrize("options", [{"snr": -0.1}, {"corrector_steps": -1}])
def test_negative_options(options):
    with pytest.raises(FewstepError, match="negative"):
        run(predictor_corrector, VPLinear(), 2, [0], **options)
