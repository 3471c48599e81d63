"""Options of diffusers' schedulers: samples end right, or the refusal names the option."""

import pytest
import torch

from students.diffusion.schedules import VE, Flow, VPCosine, VPLinear
from students.errors import FewstepError, UnsupportedSteps
from students.solvers.diffusers_adapter import DiffusersStudent
from students.solvers.diffusers_check import DEVIATION, MEAN, gaussian_denoiser
from students.solvers.diffusers_schedulers import ROWS, scheduler_names

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own use of NumPy

SPACINGS = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
OPTIONS = [
    {},
    *({spacing: True} for spacing in [*SPACINGS, "use_lu_lambdas"]),
    *({"timestep_spacing": spacing} for spacing in ("leading", "linspace")),
    *({"prediction_type": kind} for kind in ("epsilon", "sample", "v_prediction", "flow_prediction")),
    {"rescale_betas_zero_snr": True},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    *({"final_sigmas_type": end} for end in ("zero", "sigma_min")),
    {"solver_order": 1},
    {"solver_order": 3},
    {"algorithm_type": "dpmsolver"},
    {"algorithm_type": "sde-dpmsolver++"},
    {"lower_order_final": False},
    {"euler_at_final": True},
    {"predict_x0": False},
    {"shift": 3.0},
    {"flow_shift": 3.0},
    {"shift_terminal": 0.1},
    {"set_alpha_to_one": True},
    {"steps_offset": 1},
    {"interpolation_type": "log_linear"},
    {"timestep_type": "continuous"},
    {"thresholding": True},
    {"clip_sample": True},
    {"snr_shift_scale": 3.0},
    {"num_train_timesteps": 100},
    {"eta": 1.0},
]


class Known(torch.nn.Module):
    """A denoiser that always says 0.5, or the exact one of N(MEAN, DEVIATION^2)."""

    shape = (6,)
    classes = None

    def __init__(self, schedule, constant=False):
        super().__init__()
        self.schedule, self.constant = schedule, constant

    def forward(self, x, t, labels=None):
        if self.constant:
            return torch.full_like(x, 0.5)
        return gaussian_denoiser(self.schedule, x.double(), t).to(x)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_every_scheduler_has_a_row():
    assert set(scheduler_names()) <= ROWS.keys()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"])
def test_a_spacing_takes_no_empty_step(name, spacing):
    student = DiffusersStudent(Known(VPLinear()), name, **{spacing: True})
    for n_steps in (1, 2, 5):
        scheduler = student.make_scheduler(n_steps)
        sigmas = scheduler.sigmas.tolist()
        assert len(scheduler.timesteps) == n_steps and len(set(sigmas)) == n_steps + 1
        assert sigmas[-1] == pytest.approx(VPLinear().u(1e-3).item(), rel=1e-2)
    plain = DiffusersStudent(Known(VPLinear()), name)
    torch.testing.assert_close(student.sample(1), plain.sample(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"])
def test_a_spacing_moves_the_repeated_level(name):
    sigmas = DiffusersStudent(Known(VPLinear()), name, use_karras_sigmas=True).make_scheduler(4).sigmas
    assert len(sigmas) == 5 and (sigmas.diff() < 0).all()


@pytest.mark.parametrize("spacing, counts", [("leading", [1]), ("linspace", [1, 2, 4])])
def test_a_spacing_that_the_steps_do_not_follow_is_refused(spacing, counts):
    student = DiffusersStudent(Known(VPLinear()), "DDIMScheduler", timestep_spacing=spacing)
    for n_steps in counts:
        with pytest.raises(UnsupportedSteps, match=f"with timestep_spacing={spacing}.*0.5.*leave out"):
            student.sample(n_steps)


@pytest.mark.parametrize("kind", ["v_prediction", "flow_prediction", "sample"])
@pytest.mark.parametrize("schedule", [VPLinear(), Flow()])
@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_prediction_type_changes_no_distribution(name, schedule, kind):
    plain = DiffusersStudent(Known(schedule), name)
    student = DiffusersStudent(Known(schedule), name, prediction_type=kind)
    for n_steps in (2, 20):
        torch.testing.assert_close(student.sample(n_steps), plain.sample(n_steps), atol=1e-2, rtol=0)


def test_an_option_for_which_no_count_works_is_not_answered_by_another_count():
    student = DiffusersStudent(Known(VPLinear()), "DDIMScheduler", rescale_betas_zero_snr=True)
    with pytest.raises(UnsupportedSteps, match=r"non-finite values; leave out rescale_betas_zero_snr=True$"):
        student.check(4)


def test_zero_terminal_snr_starts_at_the_noise_end():
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    x = DiffusersStudent(Known(VPLinear()), "DDIMScheduler", **options).sample(100, seeds=range(500))
    assert abs(x.mean() - MEAN) < 0.03 and abs(x.std() - DEVIATION) < 0.03


def test_the_dry_run_is_done_once_a_count(monkeypatch):
    student = DiffusersStudent(Known(VPLinear()), "DDIMScheduler")
    student.check(4)
    monkeypatch.setattr(student, "run", lambda *args: pytest.fail("ran again"))
    student.check(4)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), VE(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", scheduler_names())
def test_samples_end_right_or_the_option_is_named(name, schedule):
    for options in OPTIONS:
        try:
            constant = DiffusersStudent(Known(schedule, constant=True), name, **options)
        except FewstepError as error:
            assert "\n" not in str(error)
            continue
        gaussian = DiffusersStudent(Known(schedule), name, **options)
        plain = DiffusersStudent(Known(schedule), name)
        for n_steps in (1, 2, 4, 8):
            try:
                x = constant.sample(n_steps, seeds=range(128))
            except UnsupportedSteps as error:
                assert all(key in str(error) for key in options) or "it supports" in str(error)
                continue
            assert (x - 0.5).abs().max() < 0.2, (options, n_steps)
            assert x.std() < 0.04, (options, n_steps)
            reached = plain.outcome(n_steps)
            allowed = 0.25 + (reached.error() if reached.finite() else 0)
            x = gaussian.sample(n_steps, seeds=range(128))
            assert max(abs(x.mean() - MEAN), abs(x.std() - DEVIATION)) < allowed, (options, n_steps)
