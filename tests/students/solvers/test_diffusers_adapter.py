import json
import re

import diffusers
import pytest
import torch

from students.diffusion.denoiser import guided
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import SCHEDULES, VE, Flow, VPCosine, VPLinear
from students.errors import FewstepError, UnsupportedSteps
from students.nfe import count_nfe
from students.solvers.diffusers_adapter import DiffusersStudent
from students.solvers.diffusers_schedulers import REFUSED, scheduler_names, trained_betas
from students.solvers.dpm_solver_pp import dpm_solver_pp
from students.solvers.euler import ddim, heun
from students.solvers.unipc import unipc
from tests.conftest import make_mixture

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own use of NumPy

NAMES = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
NEEDS_TORCHSDE = {"CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"}
FLOW_ONLY = {
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeliosScheduler",
    "LTXEulerAncestralRFScheduler",
    "MiniMaxH3Scheduler",
}
FLOW_SIGMAS = {"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"}
EDM = {"CMStochasticIterativeScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"}
DRAWS_NOISE = {
    "vp_linear": [
        "CogVideoXDPMScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "EulerAncestralDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LCMScheduler",
        "SASolverScheduler",
        "SCMScheduler",
        "TCDScheduler",
    ],
    "ve": ["CMStochasticIterativeScheduler"],
    "flow": ["FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler"],
}


@pytest.fixture(autouse=True)
def few_threads():
    torch.set_num_threads(1)  # thousands of tiny operations


def schedule_for(name):
    return Flow() if name in FLOW_ONLY else VE() if name in EDM else VPLinear()


def student(name, schedule=None, **options):
    return DiffusersStudent(make_mixture(schedule or schedule_for(name)), name, **options)


def index_times(schedule, indices):
    return torch.linspace(schedule.t_min, schedule.t_max, 1000, dtype=torch.float64)[indices]


def initial_state(n=50):
    return SeedNoise(range(n), (2,))()


@pytest.mark.parametrize("name", NAMES)
def test_every_class_runs_or_says_why_not(name):
    if name in REFUSED or name in NEEDS_TORCHSDE:
        reason = REFUSED.get(name, "pip install torchsde")
        if name in NEEDS_TORCHSDE and not getattr(diffusers, name).__module__.endswith("objects"):
            pytest.skip("torchsde is installed")
        with pytest.raises(FewstepError, match=re.escape(reason)):
            student(name, VPLinear())
        return
    x = student(name).sample(8, seeds=range(4))
    assert x.dtype == torch.float32 and x.shape == (4, 2)
    assert x.isfinite().all() and x.abs().max() < 5


# the largest error of mean and covariance over 1000 seeds at 50 steps; exact samples are off by 0.04
DETERMINISTIC = {
    "CogVideoXDDIMScheduler": "vp",
    "DDIMParallelScheduler": "vp",
    "DDIMScheduler": "vp",
    "DEISMultistepScheduler": "vp",
    "DPMSolverMultistepScheduler": "vp flow",
    "DPMSolverSinglestepScheduler": "vp flow",
    "EDMDPMSolverMultistepScheduler": "ve vp_linear",
    "EDMEulerScheduler": "ve vp_linear",
    "EulerDiscreteScheduler": "vp",
    "FlowMapEulerDiscreteScheduler": "flow",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "HeliosScheduler": "flow",
    "HeunDiscreteScheduler": "vp_linear",
    "IPNDMScheduler": "vp",
    "KDPM2DiscreteScheduler": "vp_linear",
    "LMSDiscreteScheduler": "vp",
    "MiniMaxH3Scheduler": "flow",
    "PNDMScheduler": "vp_linear",
    "SASolverScheduler": "vp",
    "UniPCMultistepScheduler": "vp flow",
}
CASES = [
    (name, schedule)
    for name, kinds in DETERMINISTIC.items()
    for kind in kinds.split()
    for schedule in (["vp_linear", "vp_cosine"] if kind == "vp" else [kind])
]


@pytest.mark.parametrize("name, schedule", CASES)
def test_fifty_steps_reproduce_the_moments(name, schedule):
    mixture = make_mixture(SCHEDULES[schedule]())
    mean, covariance = mixture.moments()
    x = DiffusersStudent(mixture, name).sample(50, seeds=range(1000)).double()
    assert (x.mean(0) - mean).abs().max() < 0.04
    assert (x.T.cov() - covariance).abs().max() < 0.06


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "DDPMScheduler", "SASolverScheduler"])
def test_noise_has_the_right_scale(name):
    mixture = make_mixture(VPCosine())
    mean, covariance = mixture.moments()
    x = DiffusersStudent(mixture, name).sample(100, seeds=range(1000)).double()
    assert (x.mean(0) - mean).abs().max() < 0.06
    assert (x.T.cov() - covariance).abs().max() < 0.06


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine()])
def test_betas_are_the_schedules(schedule):
    scheduler = student("DDIMScheduler", schedule).make_scheduler(4)
    expected = schedule.alpha(index_times(schedule, torch.arange(1000))) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), expected, atol=2e-6, rtol=0)
    betas = torch.tensor(trained_betas(schedule, 1000), dtype=torch.float64)
    torch.testing.assert_close((1 - betas).cumprod(0), expected, atol=0, rtol=1e-9)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine()])
@pytest.mark.parametrize("n_steps", [1, 4, 10])
def test_ddim_is_ours_on_the_same_times(schedule, n_steps):
    mixture = make_mixture(schedule)
    times = index_times(schedule, torch.tensor([*range(999, 0, -1000 // n_steps), 0]))
    ours = ddim(mixture, initial_state(), times)
    theirs = DiffusersStudent(mixture, "DDIMScheduler").sample(n_steps, seeds=range(50))
    torch.testing.assert_close(theirs, ours, atol=2e-4 if schedule == VPCosine() else 1e-4, rtol=0)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EDMEulerScheduler"])
def test_variance_exploding_states_give_ddim_too(name):
    schedule = VPLinear()
    mixture = make_mixture(schedule)
    theirs = DiffusersStudent(mixture, name, final_sigmas_type="zero")
    sigmas = theirs.make_scheduler(8).sigmas.double()
    x = ddim(mixture, initial_state(), schedule.time(-sigmas[:-1].log()))
    x = mixture(x, schedule.time(-sigmas[-2].log()))  # the last step, to sigma = 0
    torch.testing.assert_close(theirs.sample(8, seeds=range(50)), x, atol=2e-4, rtol=0)


def test_flow_matching_euler_is_ddim_too():
    mixture = make_mixture(Flow())
    ours = ddim(mixture, initial_state(), torch.linspace(1, 0, 9, dtype=torch.float64))
    theirs = DiffusersStudent(mixture, "FlowMatchEulerDiscreteScheduler").sample(8, seeds=range(50))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_heun_is_ours_on_the_same_times():
    schedule = VPLinear()
    mixture = make_mixture(schedule)
    theirs = DiffusersStudent(mixture, "HeunDiscreteScheduler")
    sigmas = theirs.make_scheduler(20).sigmas.double()
    times = torch.cat([schedule.time(-sigmas[:-1].log()).unique().flip(0), torch.zeros(1, dtype=torch.float64)])
    # the evaluation that opens the last step is where its Euler step ends at sigma = 0
    x = heun(mixture, initial_state(), times[:-1], lower_order_final=False)
    torch.testing.assert_close(theirs.sample(20, seeds=range(50)), mixture(x, times[-2]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name, solver, options",
    [
        ("DPMSolverMultistepScheduler", dpm_solver_pp, {"order": 2}),
        ("UniPCMultistepScheduler", unipc, {"order": 2, "variant": "bh2"}),
    ],
)
def test_multistep_solvers_are_ours_on_the_same_times(name, solver, options):
    schedule = VPLinear()
    mixture = make_mixture(schedule)
    times = index_times(schedule, torch.tensor([*range(999, 0, -100), 0]))
    ours = solver(mixture, initial_state(), times, **options)
    theirs = DiffusersStudent(mixture, name).sample(10, seeds=range(50))
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_the_prediction_type_changes_nothing(name, prediction):
    x, y = (student(name, prediction_type=p).sample(8) for p in ("epsilon", prediction))
    torch.testing.assert_close(x, y, atol=2e-5, rtol=0)


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_fractional_timesteps_are_read_from_sigma(option):
    mean, covariance = make_mixture().moments()
    x = student("HeunDiscreteScheduler", **{option: True}).sample(25, seeds=range(1000)).double()
    assert (x.T.cov() - covariance).abs().max() < 0.06
    assert (x.mean(0) - mean).abs().max() < 0.04


NOISY = [(name, SCHEDULES[schedule]()) for schedule, names in DRAWS_NOISE.items() for name in names]


@pytest.mark.parametrize("name, schedule", [*NOISY, ("DDIMScheduler", VPLinear()), ("EDMEulerScheduler", VE())])
def test_a_seed_means_the_same_image_in_any_batch(name, schedule):
    options = {"DDIMScheduler": {"eta": 1.0}, "EDMEulerScheduler": {"s_churn": 0.5}}.get(name, {})
    noisy = student(name, schedule, **options)
    together = noisy.sample(4, seeds=range(64))
    in_sevens = torch.cat([noisy.sample(4, seeds=range(i, min(i + 7, 64))) for i in range(0, 64, 7)])
    alone = torch.cat([noisy.sample(4, seeds=[i]) for i in (0, 31, 63)])
    torch.testing.assert_close(in_sevens, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, together[[0, 31, 63]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name, schedule", NOISY)
def test_all_noise_is_the_seeds(name, schedule, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("noise that is no seed's")

    draws = []
    plain = SeedNoise.__call__
    noisy = student(name, schedule)
    monkeypatch.setattr(torch, "randn", forbidden)
    monkeypatch.setattr(torch, "randn_like", forbidden)
    monkeypatch.setattr(SeedNoise, "__call__", lambda self: draws.append(1) or plain(self))
    noisy.sample(4, seeds=range(2))
    assert len(draws) > 2


def test_eta_one_draws_noise_and_eta_zero_does_not():
    plain, ancestral = (student("DDIMScheduler", eta=eta).sample(4) for eta in (0.0, 1.0))
    torch.testing.assert_close(plain, student("DDIMScheduler").sample(4), atol=0, rtol=0)
    assert (plain - ancestral).abs().max() > 0.1


def test_the_module_is_left_as_it_was():
    from diffusers.schedulers import scheduling_ddpm
    from diffusers.utils.torch_utils import randn_tensor

    broken = student("DDPMScheduler")
    broken.sample(2)
    assert scheduling_ddpm.randn_tensor is randn_tensor
    broken.denoiser.forward = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        broken.sample(2)
    assert scheduling_ddpm.randn_tensor is randn_tensor


@pytest.mark.parametrize(
    "name, nfe",
    [
        ("DDIMScheduler", 8),
        ("EDMEulerScheduler", 8),
        ("FlowMatchHeunDiscreteScheduler", 15),
        ("HeunDiscreteScheduler", 15),
        ("KDPM2AncestralDiscreteScheduler", 15),
        ("KDPM2DiscreteScheduler", 15),
        ("LTXEulerAncestralRFScheduler", 8),
        ("MiniMaxH3Scheduler", 8),
        ("PNDMScheduler", 17),
        ("SCMScheduler", 8),
        ("UniPCMultistepScheduler", 8),
    ],
)
def test_nfe_is_what_the_class_spends(name, nfe):
    counted = student(name)
    with count_nfe(counted) as measured:
        counted.sample(8, seeds=range(3))
    assert measured.per_image == nfe


def test_unsupported_steps_make_no_network_call():
    silent = student("PNDMScheduler")
    silent.denoiser.forward = lambda *args: pytest.fail("called")
    with pytest.raises(UnsupportedSteps, match="it supports"):
        silent.sample(3)
    with pytest.raises(UnsupportedSteps, match="it supports"):
        student("LCMScheduler").sample(51)
    # a scheduler's own failure: square root of a negative number on this grid
    silent = student("KDPM2AncestralDiscreteScheduler", VPCosine())
    silent.denoiser.forward = lambda *args: pytest.fail("called")
    with pytest.raises(UnsupportedSteps, match="non-finite"):
        silent.sample(8)
    assert student("PNDMScheduler", skip_prk_steps=True).sample(4).isfinite().all()


@pytest.mark.parametrize(
    "name, schedule, message",
    [
        ("UniPCMultistepSchedule", VPLinear(), "unknown diffusers scheduler .* did you mean 'UniPCMultistepScheduler'"),
        ("DDIMScheduler", VE(), "steps vp schedules, and this denoiser's is ve"),
        ("DDIMScheduler", Flow(), "steps vp schedules, and this denoiser's is flow"),
        ("DEISMultistepScheduler", Flow(), "steps vp schedules"),
        ("EDMEulerScheduler", Flow(), "steps ve and vp schedules"),
        ("FlowMatchEulerDiscreteScheduler", VPLinear(), "steps flow schedules, and this denoiser's is vp"),
        ("UniPCMultistepScheduler", VE(), "steps vp and flow schedules"),
    ],
)
def test_the_wrong_class_or_schedule(name, schedule, message):
    with pytest.raises(FewstepError, match=message) as error:
        student(name, schedule)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"solver_ordr": 2}, "unknown option of UniPCMultistepScheduler 'solver_ordr': did you mean 'solver_order'"),
        ({"use_flow_sigmas": True}, "follows from the denoiser's schedule"),
        ({"timestep_spacing": "none"}, "cannot run with options"),
        ({"solver_p": object()}, "must be plain values"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(FewstepError, match=message):
        student("UniPCMultistepScheduler", **options)


@pytest.mark.parametrize("name", sorted({*scheduler_names()} - NEEDS_TORCHSDE))
def test_options_are_the_resolved_configuration(name):
    chosen = student(name)
    options = json.loads(json.dumps(chosen.options, allow_nan=False))
    config = dict(chosen.make_scheduler(8).config)
    if "trained_betas" in options:
        assert options["trained_betas"] == "vp_linear" and "beta_schedule" not in options
    for key in ("prediction_type", "timestep_spacing", "num_train_timesteps", "final_sigmas_type", "shift"):
        assert options.get(key) == config.get(key)
    assert not options.get("clip_sample") and not options.get("thresholding") and not options.get("clip_denoised")


def test_options_tell_students_apart():
    first, second = student("UniPCMultistepScheduler"), student("UniPCMultistepScheduler", solver_order=3)
    assert first.options["solver_order"] == 2 and second.options["solver_order"] == 3
    assert not first.sample(8).equal(second.sample(8))


def test_no_guidance_of_a_teacher_that_always_saw_a_class():
    teacher = make_mixture(conditional=True)
    teacher.has_no_class = False
    with pytest.raises(FewstepError, match="without label dropout"):
        DiffusersStudent(teacher, "DDIMScheduler").sample(4, guidance=2.0)


def test_images_classes_and_guidance():
    conditional = make_mixture(conditional=True)
    classes = torch.arange(50) % 3
    with count_nfe(conditional_student := DiffusersStudent(conditional, "DDIMScheduler")) as nfe:
        x = conditional_student.sample(10, seeds=range(50), conditions=classes, guidance=3.0)
    assert nfe.per_image == 20
    times = index_times(VPLinear(), torch.tensor([*range(999, 0, -100), 0]))
    ours = ddim(guided(conditional, classes, 3.0), initial_state(), times)
    torch.testing.assert_close(x, ours, atol=2e-4, rtol=0)

    def images(x, t):
        assert x.shape[1:] == (1, 4, 4) and x.dtype == torch.float32
        return 2 * torch.ones_like(x)

    images.schedule = VPLinear()
    x = DiffusersStudent(images, "DPMSolverMultistepScheduler", shape=(1, 4, 4)).sample(3, seeds=range(2))
    assert x.shape == (2, 1, 4, 4) and x.eq(1).all()
