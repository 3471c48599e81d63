"""UniPC: orders, identities, ends of the time axis, agreement with diffusers."""

import diffusers
import pytest
import torch

from students.diffusion.grids import make_grid
from students.diffusion.schedules import SCHEDULES, Flow, VPLinear
from students.errors import FewstepError
from students.nfe import count_nfe
from students.solvers.dpm_solver_pp import dpm_solver_pp
from students.solvers.euler import ddim, euler_step
from students.solvers.unipc import unipc
from students.student import SolverStudent
from tests.conftest import make_mixture
from tests.students.solvers.orders import error, observed_order, starts
from tests.students.solvers.test_dpm_solver import run_scheduler, scheduler_times, solve, trained_betas

EXACT = {"rtol": 0, "atol": 1e-10}


# Orders: the corrector adds one to the predictor's


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order, corrector, expected", [(2, False, 2), (3, False, 3), (1, True, 2), (2, True, 3)])
def test_converges_at_its_order(order, corrector, expected, variant):
    options = {"order": order, "corrector": corrector, "variant": variant, "lower_order_final": False}
    assert observed_order(unipc, VPLinear(), n_steps=(128, 256), **options) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("name", ["vp_linear", "ve", "flow"])
def test_third_order_with_corrector_converges_faster_than_three(name):
    # 4 but for the first steps, whose lower order shows where noise is high
    assert observed_order(unipc, SCHEDULES[name](), n_steps=(64, 128, 256), lower_order_final=False) > 3.2


@pytest.mark.parametrize("order, least", [(1, 2), (2, 2.5), (3, 3)])
def test_corrector_after_another_predictor(order, least):
    options = {"order": order, "predictor": "dpm_solver_pp", "lower_order_final": False}
    assert observed_order(unipc, VPLinear(), **options) > least - 0.1
    assert error(unipc, VPLinear(), 64, **options) < error(unipc, VPLinear(), 64, corrector=False, **options) / 3


# Identities


@pytest.mark.parametrize("grid", ["log_snr", "uniform"])
def test_first_order_predictor_is_ddim(grid, schedule):
    ours = solve(unipc, schedule, grid=grid, order=1, corrector=False)
    torch.testing.assert_close(ours, solve(ddim, schedule, grid=grid), **EXACT)


@pytest.mark.parametrize("predictor", ["unip", "dpm_solver_pp"])
def test_one_step_is_ddim(predictor, schedule):
    torch.testing.assert_close(solve(unipc, schedule, 1, predictor=predictor), solve(ddim, schedule, 1), **EXACT)


@pytest.mark.parametrize("order", [2, 3])
def test_predictor_alone_is_multistep_dpm_solver_pp(order, schedule):
    """Both integrate the same polynomial; B2 with rho = 1/2 is 2M."""
    ours = solve(unipc, schedule, 10, order=order, corrector=False)
    torch.testing.assert_close(ours, solve(dpm_solver_pp, schedule, 10, order=order), rtol=0, atol=1e-9)


def test_options_change_the_result():
    runs = [{}, {"variant": "bh1"}, {"corrector": False}, {"order": 2}, {"lower_order_final": False}]
    results = [solve(unipc, VPLinear(), 6, **options) for options in runs]
    for i, one in enumerate(results):
        assert all((one - other).abs().max() > 1e-6 for other in results[:i])


# Both ends of the time axis, and cost


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["ve", "flow", "vp_linear"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_ends_at_zero_noise(lower_order_final, variant, name, n_steps):
    options = {"variant": variant, "lower_order_final": lower_order_final}
    out = solve(unipc, SCHEDULES[name](), n_steps, grid="uniform", t_min=0.0, **options)
    assert out.isfinite().all()
    assert out.abs().max() < 3


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_flow_from_pure_noise_converges(variant):
    coarse, fine = (error(unipc, Flow(), n, "uniform", t_max=1.0, variant=variant) for n in (30, 120))
    assert fine < 1e-3
    assert coarse / fine > 10


@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_corrector_costs_no_evaluation(n_steps, schedule):
    student = SolverStudent(make_mixture(schedule), unipc)
    with count_nfe(student) as nfe:
        out = student.sample(n_steps, seeds=range(4))
    assert nfe.per_image == n_steps
    assert out.isfinite().all()


def test_the_callback_sees_the_corrected_state(schedule):
    """With predictor UniP-1 the network is asked at an Euler step from the state and the estimate of the callback."""
    mixture, times, calls, asked = make_mixture(schedule), make_grid("log_snr", schedule, 5), [], []

    def denoise(x, t):
        asked.append(x)
        return mixture(x, t)

    denoise.schedule = schedule
    start = starts(schedule, float(times[0]))
    unipc(denoise, start, times, order=1, callback=lambda index, time, x, x0: calls.append((x, x0)))
    for i in (1, 2):  # a step from alpha = 0 is not corrected
        torch.testing.assert_close(asked[i + 2], euler_step(schedule, *calls[i], times[i + 1], times[i + 2]))
        assert (asked[i + 1] - calls[i][0]).abs().max() > 1e-6  # it was asked at the predicted state


def test_float32_state_stays_float32(schedule):
    times = make_grid("log_snr", schedule, 6)
    x = starts(schedule, float(times[0])).float()
    out = unipc(make_mixture(schedule), x, times)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), unipc(make_mixture(schedule), x.double(), times), rtol=0, atol=1e-5)


# diffusers


@pytest.mark.parametrize(
    "variant, n_steps, lower, final",
    [
        ("bh1", 7, True, "sigma_min"),  # diffusers makes NaN of bh1 at sigma = 0
        ("bh1", 12, False, "sigma_min"),
        ("bh2", 7, True, "zero"),
        ("bh2", 7, True, "sigma_min"),
        ("bh2", 12, False, "sigma_min"),
    ],
)
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_agrees_with_diffusers(order, corrector, variant, n_steps, lower, final):
    scheduler = diffusers.UniPCMultistepScheduler(
        trained_betas=trained_betas(),
        prediction_type="sample",
        predict_x0=True,
        timestep_spacing="linspace",
        solver_order=order,
        solver_type=variant,
        lower_order_final=lower,
        final_sigmas_type=final,
        disable_corrector=[] if corrector else list(range(n_steps)),
    )
    scheduler.set_timesteps(n_steps)
    times = scheduler_times(scheduler)
    options = {"order": order, "variant": variant, "corrector": corrector, "lower_order_final": lower}
    ours = unipc(make_mixture(), starts(VPLinear(), float(times[0])), times, **options)
    torch.testing.assert_close(ours, run_scheduler(scheduler, times), rtol=0, atol=1e-9)


# What a user can get wrong


@pytest.mark.parametrize(
    "options, message",
    [
        ({"order": 4}, "choose 1, 2 or 3"),
        ({"variant": "bh3"}, "unknown variant 'bh3'"),
        ({"predictor": "dpm_solver"}, "did you mean 'dpm_solver_pp'"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(FewstepError, match=message):
        solve(unipc, VPLinear(), **options)
