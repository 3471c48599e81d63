"""Multistep consistency sampling: Alg. 1 line by line, and where it leads with an exact consistency function."""

import pytest
import torch

from students.diffusion.analytic import GaussianMixture
from students.diffusion.grids import make_grid
from students.diffusion.schedules import SCHEDULES, VE
from students.nfe import count_nfe
from students.samplers.consistency import consistency
from students.solvers.euler import heun
from students.spec import STUDENTS
from students.student import SolverStudent
from tests.conftest import make_mixture

X = torch.tensor([[3.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
DRAW = torch.tensor([[0.3, -0.7], [1.1, 0.2]], dtype=torch.float64)


def times_of(*times):
    return torch.tensor(times, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_one_step_is_the_generator_itself(name):
    mixture = make_mixture(SCHEDULES[name]())
    times = times_of(0.9, 0.01)
    assert torch.equal(consistency(mixture, X, times), mixture(X, times[0]))


def test_two_steps_by_hand():
    """x + sqrt(tau^2 - eps^2) z on a VE schedule, x + tau z where the data end is clean."""
    mixture = make_mixture(VE())
    first = mixture(X, 80.0)
    for end in (0.0, 0.5):
        noised = first + (0.821**2 - end**2) ** 0.5 * DRAW
        expected = mixture(noised, 0.821)
        out = consistency(mixture, X, times_of(80.0, 0.821, end), noise=lambda: DRAW)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)


def test_noising_keeps_the_level_of_the_schedule(schedule):
    """An estimate that carries the noise of the data end has variance sigma_t^2 about alpha_t x0 after it."""
    s, t, end = times_of(0.9, 0.5, 0.1)
    seen = []

    def denoise(x, time):
        seen.append(x)
        return torch.zeros_like(x)

    denoise.schedule = schedule
    consistency(denoise, X, times_of(s, t, end), noise=lambda: torch.ones_like(X))
    added, left = seen[1] ** 2, (schedule.alpha(t) * schedule.sigma(end) / schedule.alpha(end)) ** 2
    torch.testing.assert_close(added + left, (schedule.sigma(t) ** 2).expand_as(X))


def test_clip_limits_every_estimate():
    schedule = VE()
    denoise = lambda x, t: 5 * torch.ones_like(x)
    denoise.schedule = schedule
    assert consistency(denoise, X, times_of(80.0, 0.0)).max() == 5
    seen = []
    denoise = lambda x, t: seen.append(x) or 5 * torch.ones_like(x)
    denoise.schedule = schedule
    out = consistency(denoise, X, times_of(80.0, 1.0, 0.0), noise=lambda: torch.zeros_like(X), clip=True)
    assert out.max() == 1 and seen[1].max() == 1


def test_the_callback_sees_the_noised_states_and_the_last_estimate():
    calls, times = [], times_of(80.0, 5.0, 0.8, 0.0)
    run = lambda callback: consistency(make_mixture(VE()), X, times, noise=lambda: DRAW, callback=callback)
    out = run(lambda *call: calls.append(call))
    assert out.equal(run(None)) and out.equal(calls[-1][2]) and out.equal(calls[-1][3])
    assert [index for index, *_ in calls] == [0, 1, 2]
    assert [float(time) for _, time, *_ in calls] == [5.0, 0.8, 0.0]
    for _, time, x, x0 in calls:
        torch.testing.assert_close(x, x0 + time * DRAW)


class ExactConsistencyFunction(torch.nn.Module):
    """A state carried to the data end along the probability-flow ODE of a mixture, by 48 Heun steps."""

    def __init__(self, schedule):
        super().__init__()
        self.mixture, self.schedule, self.shape = make_mixture(schedule), schedule, (2,)

    def forward(self, x, t, condition=None):
        times = make_grid("log_snr", self.schedule, 48, t_max=float(t))
        carried = heun(self.mixture, x.double(), times)
        return (carried / self.schedule.alpha(times[-1])).to(x.dtype)


@pytest.mark.parametrize("n_steps", [1, 2, 4])
@pytest.mark.parametrize("name", ["ve", "vp_linear"])
def test_reaches_the_mixture_with_an_exact_consistency_function(name, n_steps):
    schedule = VE(t_min=0.01) if name == "ve" else SCHEDULES[name]()
    function = ExactConsistencyFunction(schedule)
    student = SolverStudent(function, consistency, grid="log_snr")
    with count_nfe(student) as nfe:
        x = student.sample(n_steps, seeds=range(3000)).double()
    assert nfe.per_image == n_steps
    mean, covariance = function.mixture.moments()
    u = schedule.sigma(schedule.t_min) / schedule.alpha(schedule.t_min)
    products = torch.einsum("nd,ne->nde", x - mean, x - mean)
    for values, expected in ((x, mean), (products, covariance + u**2 * torch.eye(2))):
        assert ((values.mean(0) - expected).abs() < 4 * values.std(0) / len(x) ** 0.5).all()


def test_it_is_no_solver_of_a_teacher():
    """On E[x0 | x_t] of a Gaussian it loses half of the variance as steps grow many: no name of STUDENTS runs it."""
    assert not any(entry.target.endswith(":consistency") for entry in STUDENTS.values())
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]], VE(t_min=0.01))
    x = SolverStudent(gaussian, consistency, grid="log_snr").sample(1000, seeds=range(2000))
    assert x.var().item() == pytest.approx(0.5, abs=0.05)
