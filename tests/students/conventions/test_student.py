"""Solvers under conventions: what they cost, where they end, what is refused."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

import students
from students.conventions import CONVENTIONS
from students.conventions.student import REFUSED, ConventionStudent, convention_options
from students.diffusion.grids import make_grid
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import IDDPM, SCHEDULES, VE, Flow, VPLinear, iddpm_levels
from students.errors import FewstepError, Unsupported, UnsupportedSteps
from students.models.teacher import Teacher
from students.nfe import count_nfe
from students.solvers.euler import heun
from students.spec import STUDENTS, import_object
from tests.conftest import make_mixture

SOLVERS = [name for name, entry in STUDENTS.items() if import_object(entry.target) not in REFUSED]
FOR_SOLVERS = [name for name in CONVENTIONS if name != "cm"]
DISCRETE = ["ddim_linear", "ddim_quadratic", "leading", "trailing", "linspace"]
STOCHASTIC = {"ddpm", "euler_maruyama", "predictor_corrector", "edm_stochastic", "dpm_solver_pp_sde"}
EVALUATIONS = {
    "heun": lambda n: 2 * n - 1,
    "dpm2": lambda n: 2 * n - 1,
    "edm_stochastic": lambda n: 2 * n - 1,
    "predictor_corrector": lambda n: 2 * n,
    "dpm_solver_2": lambda n: 2 * n,
    "dpm_solver_3": lambda n: 3 * n,
    "dpm_solver_pp_2s": lambda n: 2 * n,
    "pndm": lambda n: n + 9,
}


def load(spec, schedule=None):
    return students.load(spec, task=make_mixture(schedule or VPLinear()))


def spent(student, n, seeds=range(16)):
    with count_nfe(student) as nfe:
        images = student.sample(n, seeds=seeds)
    return nfe.per_image, images


# What a step costs, and that it leads to the data


def stated(name, convention, n):
    if CONVENTIONS[convention].corrects_last and name in ("heun", "dpm2"):
        return 2 * n
    return EVALUATIONS.get(name, lambda n: n)(n)


@pytest.mark.parametrize("convention", FOR_SOLVERS)
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_are_finite_and_cost_what_is_stated(name, convention):
    student = load(f"{name}:convention={convention}")
    for n in (student.supported_steps[0], 5, 8, 10):
        if convention == "ddim_linear" and 1000 % n:
            continue
        nfe, images = spent(student, n)
        assert nfe == stated(name, convention, n)
        assert images.isfinite().all()


@cache
def solution(convention, n, start, end):
    """The probability-flow ODE from a convention's first state, by Heun's method in many steps of the log-SNR grid."""
    mixture = make_mixture(VE(t_min=0.002, t_max=200.0))
    student = students.load(f"ddim:convention={convention}", task=mixture)
    x = SeedNoise(range(32), (2,))().double()
    x = x * (math.hypot(1, start) if student.rules.unit else start)
    times = make_grid("log_snr", mixture.schedule, 400, start, end or 1e-3)
    return heun(mixture, x, times)


def distance(name, convention, n):
    student = load(f"{name}:convention={convention}", VE(t_min=0.002, t_max=200.0))
    levels = student.levels(n).tolist()
    exact = solution(convention, n, levels[0], levels[-1])
    return (student.sample(n, seeds=range(32)) - exact).square().mean().sqrt().item()


@pytest.mark.slow
@pytest.mark.parametrize("convention", FOR_SOLVERS)
@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in STOCHASTIC])
def test_deterministic_solvers_converge_to_the_ode(name, convention):
    few, many = (10, 20) if convention == "ddim_quadratic" else (10, 100)
    assert distance(name, convention, many) < (0.15 if few == many // 2 else 0.05)
    assert distance(name, convention, many) < distance(name, convention, few)


@pytest.mark.slow
@pytest.mark.parametrize("convention", FOR_SOLVERS)
@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_stochastic_solvers_sample_the_data(name, convention):
    mixture, n = make_mixture(VPLinear()), 25 if convention == "ddim_quadratic" else 50
    images = students.load(f"{name}:convention={convention}", task=mixture).sample(n, seeds=range(4000)).double()
    data, _ = mixture.sample(range(4000))
    assert (images.mean(0) - data.mean(0)).abs().max() < 0.1
    assert (images.std(0) / data.std(0) - 1).abs().max() < 0.12


# EDM


def test_heun_under_edms_convention_takes_35_evaluations_and_ends_at_zero():
    student = students.load("heun:convention=edm", task=make_mixture(VE()))
    nfe, images = spent(student, 18)
    assert nfe == 35 and images.isfinite().all()
    step = (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17
    expected = [*((80 ** (1 / 7) + i * step) ** 7 for i in range(18)), 0.0]
    assert student.times(18).tolist() == pytest.approx(expected, rel=1e-12, abs=0)
    assert student.levels(18).tolist() == pytest.approx(expected, rel=1e-12, abs=0)


def test_it_is_edms_sampler():
    """Algorithm 1 of [2206.00364], written out."""
    mixture = make_mixture(VE())
    student = students.load("heun:convention=edm,rho=5", task=mixture)
    start = SeedNoise(range(8), (2,))().double()
    levels = student.levels(7)
    x = start * levels[0]
    for i in range(7):
        s, t = levels[i], levels[i + 1]
        slope = (x - mixture(x, s)) / s
        there = x + (t - s) * slope
        if t != 0:
            slope = (slope + (there - mixture(there, t)) / t) / 2
            there = x + (t - s) * slope
        x = there
    torch.testing.assert_close(student.sample(7, seeds=range(8)), x.float(), rtol=1e-5, atol=1e-5)


# Consistency models

CONSISTENCY = "students.samplers.consistency:consistency"


@pytest.mark.parametrize("points", [None, [0, 17, 39], [0, 10, 20, 39]])
def test_points_are_sampled_as_consistency_models_do(points):
    """stochastic_iterative_sampler: x0 = D(x, t), and noise of sqrt(t_next^2 - t_min^2) for the next point."""
    mixture, given = make_mixture(VE()), "" if points is None else f",points={points}"
    student = students.load(f"{CONSISTENCY}:convention=cm{given}", task=mixture)
    n = max(student.supported_steps)
    nfe, images = spent(student, n, range(8))
    assert nfe == n and (points is None or student.supported_steps == (n,))
    noise = SeedNoise(range(8), (2,))
    levels = [(80 ** (1 / 7) + i / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in points or [0, 22, 39]]
    x = noise() * levels[0]
    for t, following in pairwise(levels):
        x = mixture(x, torch.tensor(t, dtype=torch.float64))
        if following > 0.0021:
            x = x + noise() * math.sqrt(following**2 - 0.002**2)
    torch.testing.assert_close(images, x, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_that_samples_by_itself_can_be_asked_for_other_points():
    mixture = make_mixture(VE())
    teacher = Teacher(mixture, levels={1: [80.0, 0.002], 2: [80.0, 1.0, 0.002]})
    own = students.load(CONSISTENCY, task=teacher)
    other = students.load(f"{CONSISTENCY}:convention=cm,points=[0, 106, 200],of=201", task=teacher)
    assert own.times(2)[1] == 1 and other.times(2)[1].item() == pytest.approx(1.9128436206953614, rel=1e-12)


def test_consistency_sampling_takes_its_own_convention_alone():
    with pytest.raises(FewstepError, match="edm is for solvers: consistency sampling takes convention=cm"):
        load(f"{CONSISTENCY}:convention=edm")


# Every schedule


@pytest.mark.parametrize("convention", FOR_SOLVERS)
def test_levels_are_those_of_the_authors_under_every_schedule(convention, schedule):
    student = load(f"ddim:convention={convention}", schedule)
    n = 10
    levels, times = student.levels(n), student.times(n)
    assert torch.exp(-schedule.lam(times)).tolist() == pytest.approx(levels.tolist(), rel=1e-9, abs=1e-12)
    assert student.sample(n).isfinite().all()
    if convention in DISCRETE:
        wide = load(f"ddim:convention={convention}", VE(t_min=1e-6, t_max=1e6)).levels(n)
        inside = (wide > student.lowest) & (wide < student.highest)
        assert inside.sum() >= n - 2
        assert levels[inside].equal(wide[inside])


def test_levels_beyond_the_teachers_range_are_pulled_in():
    student = load("ddim:convention=trailing", VE(t_min=0.05, t_max=80.0))
    levels = student.levels(5).tolist()
    assert levels[0] == 80 and levels[-1] == 0
    with pytest.raises(
        UnsupportedSteps, match=r"has several levels in 100 steps beyond what this teacher has seen, 0\.05"
    ):
        student.sample(100)


@pytest.mark.parametrize(("convention", "unit"), [("edm", False), ("ddim_quadratic", True), ("trailing", True)])
def test_the_first_state_is_that_of_the_authors(convention, unit, schedule):
    """EDM's is sigma times noise; DDIM's is noise of unit variance, in variance-preserving coordinates."""

    def first(denoise, x, times, *, noise=None, callback=None):
        return x * (1 / schedule.alpha(times[0]))

    student = ConventionStudent(Teacher(make_mixture(schedule)), first, convention, {}, name="first")
    sigma = student.levels(4)[0].item()
    expected = SeedNoise(range(8), (2,))() * (math.sqrt(1 + sigma**2) if unit else sigma)
    torch.testing.assert_close(student.sample(4, seeds=range(8)), expected, rtol=1e-5, atol=1e-5)


def test_networks_of_some_times_alone_are_asked_at_those():
    schedule = IDDPM()
    times = load("heun:convention=edm", schedule).times(10)
    assert times[-1] == 0 and set(times[:-1].tolist()) <= set(iddpm_levels().tolist())


def test_zero_terminal_snr_needs_a_teacher_that_has_seen_pure_noise():
    student = load("ddim:convention=trailing,zero_snr=true", Flow())
    assert student.times(4)[0] == 1 and student.sample(4).isfinite().all()
    for name in ("vp_linear", "ve"):
        with pytest.raises(
            Unsupported, match=r"begins without any signal.*leave zero_snr out, or take a teacher of flow"
        ):
            load("ddim:convention=trailing,zero_snr=true", SCHEDULES[name]())
    assert load("ddim:convention=leading,zero_snr=true").sample(4).isfinite().all()


# Steps


def test_levels_that_come_twice_are_for_single_step_solvers():
    for name in ("ddim", "euler", "ddpm"):
        nfe, images = spent(load(f"{name}:convention=ddim_quadratic"), 50)
        assert nfe == 50 and images.isfinite().all()
    with pytest.raises(UnsupportedSteps, match="visits a level twice in 50 steps: take fewer, or ddim"):
        load("unipc:convention=ddim_quadratic").sample(50)


@pytest.mark.parametrize(
    ("spec", "n", "message"),
    [
        ("heun:convention=edm", 1, "supports 2 to 1000"),
        ("pndm:convention=edm", 3, "supports 4 to 1000"),
        ("ddim:convention=ddim_linear", 16, "are 17, not 16"),
    ],
)
def test_step_counts_that_a_convention_does_not_define(spec, n, message):
    with pytest.raises(UnsupportedSteps, match=message):
        load(spec).sample(n)


def test_dpm_solver_ends_nearer_to_the_data_beyond_fifteen_evaluations():
    near, far = VPLinear().u(1e-4).item(), VPLinear().u(1e-3).item()
    wide = VE(t_min=1e-6, t_max=200.0)
    for name, n, end in (
        ("dpm_solver", 15, far),
        ("dpm_solver", 16, near),
        ("dpm_solver_2", 7, far),
        ("dpm_solver_2", 8, near),
        ("dpm_solver_3", 6, near),
        ("dpm_solver_pp", 15, far),
    ):
        found = load(f"{name}:convention=dpm_solver_time_uniform", wide).levels(n)
        assert found[-1].item() == pytest.approx(end, rel=1e-9)


def test_an_order_that_is_not_given_is_the_solvers_own():
    spec = "students.solvers.dpm_solver:dpm_solver:convention=dpm_solver_logsnr"
    assert torch.equal(load(spec).levels(6), load("dpm_solver_3:convention=dpm_solver_logsnr").levels(6))


# What is refused


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("heun:convention=edn", "convention must be one of .*: did you mean 'edm'?"),
        ("heun:convention=edm,grid=uniform", "a convention has the steps of its own: leave grid out, or convention"),
        ("heun:convention=edm,t_min=0.1", "takes no option 't_min'"),
        ("heun:convention=edm,rho=0", "rho must be a number above 0"),
        ("heun:convention=edm,rho=0.005", "rho=0.005 makes levels that no float holds"),
        ("students.samplers.consistency:consistency:convention=cm,points=[]", "points are whole numbers that increase"),
        ("heun:convention=trailing,rho=7", "takes no option 'rho'"),
        ("heun:convention=trailing,betas=cosine", "betas must be one of linear, scaled_linear"),
        ("heun:convention=edm,zero_snr=true", "takes no option 'zero_snr'"),
        ("heun:convention=edm,lower_order_final=false", "heun has no slope to correct by: leave lower_order_final out"),
        ("dpm2:convention=trailing,lower_order_final=false", "ends at sigma = 0, where dpm2 has no slope"),
        ("rk45:convention=edm", "rk45 chooses its own steps: leave convention out"),
        ("adaptive_sde:convention=edm", "adaptive_sde chooses its own steps"),
        ("sds:convention=edm", "sds optimises an image"),
        ("ddim:convention=cm", "cm is of consistency sampling alone: ddim takes others"),
        ("heun:convention=edm,sigma_min=90", "no noise levels lie between 90 and 80"),
        ("ddim:convention=edm,afs=3", "afs must be true or false"),
        ("diffusers:DDIMScheduler:convention=edm", "convention"),
        ("progressive:convention=edm", "convention"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(spec, message):
    with pytest.raises(FewstepError, match=message):
        students.load(spec, task="digits" if spec.startswith("progressive") else make_mixture())


def test_conventions_take_the_last_step_as_their_authors_do():
    whole = load("heun:convention=diff_sampler_polynomial")
    assert whole.solver_options == {"lower_order_final": False}
    lowered = load("heun:convention=diff_sampler_polynomial,lower_order_final=true")
    assert spent(whole, 4)[0] == 8 and spent(lowered, 4)[0] == 7
    assert load("unipc:convention=diff_sampler_logsnr").solver_options == {}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_options_are_known_and_go_into_the_students(convention):
    assert "setting" not in convention_options(convention)
    if convention != "cm":
        student = load(f"ddim:convention={convention},eta=0.5")
        assert student.options == {"convention": convention, "eta": 0.5}
        assert student.grid_name(5) == convention
