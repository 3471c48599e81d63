"""The contract of a student: seeds, conditions, guidance, supported steps, and how its network calls are counted."""

import numpy as np
import pytest
import torch
from torch import nn

from students.diffusion.denoiser import Denoiser
from students.diffusion.schedules import SCHEDULES, VE, VPLinear
from students.errors import FewstepError, UnsupportedSteps
from students.nfe import count_nfe, setup
from students.solvers.ancestral import ddpm
from students.solvers.dpm_solver_pp import dpm_solver_pp
from students.solvers.euler import ddim, edm_stochastic, heun
from students.student import SolverStudent, Student
from tests.conftest import make_mixture


class Convolution(nn.Module):
    """A small image network with a time and, perhaps, a class."""

    def __init__(self, classes=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(1, 1, 3, padding=1)
            self.embedding = nn.Embedding((classes or 0) + 1, 1)

    def forward(self, x, t, conditions=None):
        bias = 0 if conditions is None else self.embedding(conditions)[:, :, None, None]
        return torch.tanh(self.layer(x) + t[:, None, None, None] + bias)


def image_student(solver=ddim, classes=None, **options):
    return SolverStudent(Denoiser(Convolution(classes), VPLinear(), "x0", (1, 4, 4), classes), solver, **options)


SOLVERS = {
    "ddim": (ddim, {}),
    "dpm_solver_pp": (dpm_solver_pp, {}),
    "ddpm": (ddpm, {}),
    "ddim, eta 1": (ddim, {"eta": 1.0}),
    "edm_stochastic": (edm_stochastic, {}),
}
solvers = pytest.mark.parametrize("solver, options", SOLVERS.values(), ids=SOLVERS)


# Seeds


@solvers
@pytest.mark.parametrize("make", [image_student, lambda solver, **o: SolverStudent(make_mixture(), solver, **o)])
def test_a_seed_means_the_same_sample_in_any_batch(make, solver, options):
    student = make(solver, **options)
    together = student.sample(4, seeds=range(64))
    assert student.sample(4, seeds=range(64)).equal(together)
    alone = torch.cat([student.sample(4, seeds=[i]) for i in (0, 31, 63)])
    sevens = torch.cat([student.sample(4, seeds=range(i, min(i + 7, 64))) for i in range(0, 64, 7)])
    others = student.sample(4, seeds=[1000, 31, 5, 31])
    torch.testing.assert_close(alone, together[[0, 31, 63]], rtol=0, atol=1e-6)
    torch.testing.assert_close(sevens, together, rtol=0, atol=1e-6)
    torch.testing.assert_close(others[[1, 3]], together[[31, 31]], rtol=0, atol=1e-6)
    assert len(together.flatten(1).unique(dim=0)) == 64


@solvers
def test_a_batch_shape_fixes_every_bit(solver, options):
    student = image_student(solver, **options)
    a, b = student.sample(4, seeds=[3, 8, 5]), student.sample(4, seeds=[9, 8, 7])
    assert a[1].equal(b[1])


def test_global_random_state_is_neither_used_nor_moved():
    student = image_student(ddpm)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    x = student.sample(4)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert student.sample(4).equal(x)


def test_no_seeds_make_no_samples():
    assert image_student().sample(4, seeds=[]).shape == (0, 1, 4, 4)


# What comes back


def test_images_are_clamped_float32():
    far = lambda x, t: 5 * torch.sign(x)
    far.schedule = VPLinear()
    images = SolverStudent(far, ddim, shape=(1, 4, 4)).sample(2)
    assert images.shape == (16, 1, 4, 4)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert images.abs().max() == 1
    vectors = SolverStudent(far, ddim, shape=(6,)).sample(2)
    assert vectors.shape == (16, 6)
    assert vectors.abs().max() > 4


def test_samples_start_from_noise_of_the_grid_s_first_time(schedule):
    given = []

    def keep(denoise, x, times, *, noise=None):
        given.append((x, times))
        return x

    SolverStudent(make_mixture(schedule), keep).sample(3, seeds=range(5000))
    x, times = given[0]
    assert (times[0], len(times)) == (schedule.t_max, 4)
    assert x.std().item() == pytest.approx(schedule.sigma(schedule.t_max).item(), rel=0.03)


# Conditions and guidance


def test_conditions_are_drawn_from_the_prior_and_can_be_given():
    student = SolverStudent(make_mixture(conditional=True), heun)
    drawn = student.sample(12, seeds=range(3000))
    means = make_mixture().means.float()
    nearest = torch.cdist(drawn, means).argmin(1).bincount() / 3000
    torch.testing.assert_close(nearest, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.03)
    conditions = torch.tensor([0, 1, 2]).repeat(500)
    given = student.sample(12, seeds=range(1500), conditions=conditions)
    for k in range(3):
        torch.testing.assert_close(given[conditions == k].mean(0), means[k], rtol=0, atol=0.06)
    assert student.sample(12, seeds=range(1500), conditions=conditions.tolist()).equal(given)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [([0, 1], "3 seeds need as many"), ([[0], [1], [2]], r"got shape \(3, 1\)"), (1, "sequence of non-negative")],
)
def test_conditions_of_another_shape(conditions, message):
    with pytest.raises(FewstepError, match=message):
        image_student(classes=3).sample(4, seeds=range(3), conditions=conditions)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64, torch.uint8, torch.int32, list, tuple])
def test_conditions_of_any_integer_type(kind):
    student, classes = image_student(classes=3), [0, 2, 1]
    given = torch.tensor(classes, dtype=kind) if isinstance(kind, torch.dtype) else classes
    given = np.array(classes, dtype=kind) if isinstance(kind, type) and issubclass(kind, np.generic) else given
    assert student.sample(4, seeds=range(3), conditions=given).equal(student.sample(4, range(3), classes))


def test_the_label_of_no_class_needs_a_network_that_knows_it():
    student = image_student(classes=3)
    assert student.sample(4, seeds=range(1), conditions=[3]).isfinite().all()
    student.guidable = False
    with pytest.raises(FewstepError, match="must be 0 to 2, got 3"):
        student.sample(4, seeds=range(1), conditions=[3])
    with pytest.raises(FewstepError, match="without label dropout"):
        student.sample(4, seeds=range(1), guidance=2.0)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), "2", None, True, torch.tensor(2.0)])
def test_guidance_is_a_finite_number(guidance):
    with pytest.raises(FewstepError, match="guidance must be a finite number"):
        image_student(classes=3).sample(4, seeds=range(1), guidance=guidance)


@pytest.mark.parametrize("steps", [np.int64(4), np.uint8(4)])
def test_steps_may_be_whole_numbers_of_numpy(steps):
    assert image_student().sample(steps, range(2)).equal(image_student().sample(4, range(2)))


def test_unconditional_students_take_no_conditions_and_no_guidance():
    student = image_student()
    student.denoiser.forward = lambda *args: pytest.fail("called")
    with pytest.raises(FewstepError, match="without conditions"):
        student.sample(4, conditions=[0] * 16)
    with pytest.raises(FewstepError, match="unconditional"):
        student.sample(4, guidance=2.0)


def test_guidance_changes_the_sample():
    student = image_student(classes=3)
    plain = student.sample(4)
    assert student.sample(4, guidance=1.0).equal(plain)
    assert (student.sample(4, guidance=4.0) - plain).abs().max() > 1e-3


# Steps


@pytest.mark.parametrize("steps", [0, -1, 3, 16])
def test_unsupported_steps_make_no_network_call(steps):
    student = image_student(supported_steps=(1, 2, 4, 8))
    student.denoiser.forward = lambda *args: pytest.fail("called")
    with pytest.raises(UnsupportedSteps, match=r"cannot run in .* steps; it supports 1, 2, 4, 8") as error:
        student.sample(steps)
    assert "\n" not in str(error.value)


# Counting


def measured(student, *args, **kwargs):
    with count_nfe(student) as nfe:
        student.sample(*args, **kwargs)
    return nfe


@pytest.mark.parametrize("guidance, factor", [(1.0, 1), (2.0, 2), (0.0, 2)])
@pytest.mark.parametrize("solver, nfe", [(ddim, 4), (heun, 7)])
def test_nfe_of_a_module(solver, nfe, guidance, factor):
    counted = measured(image_student(solver, classes=3), 4, seeds=range(5), guidance=guidance)
    assert (counted.per_image, counted.rows, counted.images) == (nfe * factor, 5 * nfe * factor, 5)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_nfe_of_a_plain_callable(name):
    mixture = make_mixture(SCHEDULES[name]())
    denoise = lambda x, t: mixture(x, t)
    denoise.schedule = mixture.schedule
    student = SolverStudent(denoise, heun, shape=(2,))
    assert measured(student, 4, seeds=range(5)).per_image == 7
    torch.testing.assert_close(student.sample(4), SolverStudent(mixture, heun).sample(4), rtol=0, atol=0)


def test_nfe_of_a_guided_plain_callable():
    mixture = make_mixture(conditional=True)
    denoise = lambda x, t, conditions=None: mixture(x, t, conditions)
    denoise.schedule, denoise.classes = mixture.schedule, 3
    student = SolverStudent(denoise, ddim, shape=(2,))
    conditions = [0, 1, 2, 0, 1]
    assert measured(student, 4, seeds=range(5), conditions=conditions, guidance=2.0).per_image == 8
    expected = SolverStudent(mixture, ddim).sample(4, seeds=range(5), conditions=conditions, guidance=2.0)
    assert student.sample(4, seeds=range(5), conditions=conditions, guidance=2.0).equal(expected)


def test_several_calls_add_up():
    student = image_student()
    with count_nfe(student) as nfe:
        student.sample(2, seeds=range(3))
        student.sample(8, seeds=range(1))
    assert (nfe.rows, nfe.images, nfe.per_image) == (2 * 3 + 8, 4, 3.5)


def test_nothing_sampled_is_not_a_number():
    with count_nfe(image_student()) as nfe:
        pass
    assert nfe.per_image != nfe.per_image


class Nested(Student):
    """Holds a denoiser and, again, the network inside it."""

    def __init__(self):
        self.shape = (1, 4, 4)
        self.denoiser = Denoiser(Convolution(), VPLinear(), "x0", self.shape)
        self.network = self.denoiser.network
        self.alias = self.network

    def generate(self, n_steps, noise, conditions, guidance):
        x = noise()
        for _ in range(n_steps):
            x = self.denoiser(x, 0.5)
        return self.network(x, torch.zeros(len(x)))  # once more, by itself


def test_nested_networks_count_once():
    assert measured(Nested(), 3, seeds=range(4)).per_image == 4


class RowsDrop(Student):
    """Half of the rows need a second evaluation."""

    shape = (2,)

    def __init__(self):
        self.network = nn.Linear(2, 2)

    def generate(self, n_steps, noise, conditions, guidance):
        x = self.network(noise())
        x[::2] = self.network(x[::2])
        return x


def test_rows_are_counted_not_calls():
    assert measured(RowsDrop(), 1, seeds=range(6)).per_image == 1.5


class ThirdParty:
    """Not a Student: an object with `sample` and a network."""

    def __init__(self):
        self.unet = nn.Linear(3, 3)

    def sample(self, n_steps, seeds=range(16), conditions=None, guidance=1.0):
        x = torch.zeros(len(seeds), 3)
        for _ in range(n_steps):
            x = self.unet(input=x)
        return x


class Declared(ThirdParty):
    """Keeps its networks where nobody looks, and says so."""

    def __init__(self):
        self.stages = {1: nn.Linear(3, 3), 2: nn.Linear(3, 3)}

    def networks(self):
        return list(self.stages.values())

    def sample(self, n_steps, seeds=range(16), conditions=None, guidance=1.0):
        return self.stages[2](self.stages[1](torch.zeros(len(seeds), 3)))


@pytest.mark.parametrize("student, nfe", [(ThirdParty(), 5), (Declared(), 2)])
def test_students_of_others(student, nfe):
    with torch.no_grad():
        assert measured(student, 5).per_image == nfe
    assert "sample" not in vars(student)


def test_a_student_without_a_network():
    class Hidden:
        name = "hidden"

        def sample(self, n_steps, seeds=range(16)):
            return torch.zeros(len(seeds), 2)

    with pytest.raises(FewstepError, match="hidden: keep its networks"), count_nfe(Hidden()):
        pass


class Calibrated(Student):
    """Spends 10 rows once, before its first image."""

    shape = (2,)
    ready = False

    def __init__(self):
        self.network = nn.Linear(2, 2)

    def generate(self, n_steps, noise, conditions, guidance):
        if not self.ready:
            with setup():
                self.network(torch.zeros(10, 2))
            self.ready = True
        return self.network(noise())


def test_setup_is_counted_apart():
    student = Calibrated()
    with count_nfe(student) as nfe:
        student.sample(1, seeds=range(4))
        student.sample(1, seeds=range(4))
    assert (nfe.per_image, nfe.setup_rows) == (1, 10)


def hooks_of(student):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for n in student.networks() for m in n.modules())


def test_an_exception_leaves_nothing_behind():
    student = image_student()
    plain = student.denoiser.network.forward

    def fail(*args):
        raise ZeroDivisionError

    with count_nfe(student) as nfe:
        student.denoiser.network.forward = fail
        with pytest.raises(ZeroDivisionError):
            student.sample(4)
        student.denoiser.network.forward = plain
        student.sample(3, seeds=range(2))
    assert nfe.images == 2
    assert nfe.rows == 16 + 3 * 2  # the call that failed was a call
    student.denoiser.network.forward = fail
    with pytest.raises(ZeroDivisionError), count_nfe(student):
        student.sample(4)
    assert hooks_of(student) == 0
    assert "sample" not in vars(student)
    student.denoiser.network.forward = plain
    assert measured(student, 4).per_image == 4


def test_counting_leaves_the_samples_alone():
    student = image_student()
    plain = student.sample(4)
    with count_nfe(student):
        assert student.sample(4).equal(plain)
    assert hooks_of(student) == 0


def test_ve_grid_and_options_are_the_identity_of_a_student():
    student = SolverStudent(make_mixture(VE()), edm_stochastic, "polynomial", grid_options={"rho": 5.0}, s_churn=3.0)
    assert student.options == {"grid": "polynomial", "rho": 5.0, "s_churn": 3.0}
    assert (student.name, student.family) == ("edm_stochastic", "solver")
    roots = student.times(6) ** 0.2
    torch.testing.assert_close(roots.diff(), ((roots[-1] - roots[0]) / 6).expand(6))


def test_a_solver_student_takes_a_solver_by_name(mixture):
    named = SolverStudent(mixture, solver="dpm_solver_pp_3m", grid="log_snr", shape=(2,))
    assert named.name == "dpm_solver_pp_3m" and named.solver_options == {"order": 3}
    assert named.sample(4).shape == (16, 2)


@pytest.mark.parametrize("n_steps", [2.0, True, "2", None])
def test_steps_that_are_not_whole_numbers(mixture, n_steps):
    with pytest.raises(FewstepError, match=r"cannot run in .* steps: give a whole number"):
        SolverStudent(mixture, "ddim").sample(n_steps)
