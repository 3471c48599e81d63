"""GENIE: the derivative it learns, the head, the truncated Taylor method, and a short training."""

import pytest
import torch
from torch import nn

import students
from students.diffusion.analytic import GaussianMixture
from students.diffusion.denoiser import Denoiser, under
from students.diffusion.schedules import VE
from students.distillation.trajectory.genie import Genie, derivative
from students.errors import FewstepError, UnsupportedSteps
from students.models.load import load_start, load_teacher
from students.models.teacher import Teacher
from students.networks.genie_head import GenieHead
from students.nfe import count_nfe
from students.samplers import make
from students.samplers.taylor import TaylorDenoiser, noise_and_features, taylor
from students.student import SolverStudent
from students.training.batches import Batch, Data
from students.training.distill import train_method
from tests.conftest import make_mixture


def test_the_derivative_is_exact_for_a_gaussian():
    c = 0.6
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[c**2, 0.0], [0.0, c**2]]], VE())
    x, gamma = torch.randn(5, 2, dtype=torch.float64), torch.linspace(0.1, 3, 5, dtype=torch.float64)
    eps, features = noise_and_features(gaussian, x, gamma, None)
    assert features is None
    # on its trajectories x = a sqrt(c^2 + gamma^2)
    expected = x * (c**2 / (c**2 + gamma**2) ** 2)[:, None]
    assert torch.allclose(derivative(gaussian, x, gamma, eps, None), expected)


@pytest.mark.parametrize("name", ["mixture", "network"])
def test_the_derivative_is_the_difference_quotient_along_the_trajectory(name):
    if name == "mixture":
        denoiser, condition, x = make_mixture(VE()), None, torch.randn(4, 2, dtype=torch.float64)
    else:
        denoiser, condition = under(load_teacher("digits").denoiser, VE), torch.arange(4)
        denoiser.network.double()
        x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    gamma, h = torch.tensor([0.3, 0.5, 1.0, 2.0], dtype=torch.float64), 5e-4  # the network embeds it in float32

    def noise(x, gamma):
        return noise_and_features(denoiser, x, gamma, condition)[0]

    with torch.no_grad():
        eps = noise(x, gamma)
        quotient = (noise(x + h * eps, gamma + h) - noise(x - h * eps, gamma - h)) / (2 * h)
        assert torch.allclose(derivative(denoiser, x, gamma, eps, condition), quotient, rtol=1e-3, atol=1e-2)


def test_the_features_are_what_the_last_layer_sees():
    teacher = load_teacher("digits").denoiser
    layer, channels, patch = (getattr(teacher.network, name) for name in ("last_layer", "feature_channels", "patch"))
    x, gamma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 1.0], dtype=torch.float64)
    eps, features = noise_and_features(under(teacher, VE), x, gamma, torch.arange(2))
    assert features.shape == (2, channels, 8 // patch, 8 // patch) and not layer._forward_pre_hooks
    head = GenieHead((1, 8, 8), channels, patch)
    assert torch.equal(head(x, gamma, eps, features), torch.zeros_like(x))
    foreign = Denoiser(nn.Linear(2, 2), VE(), "edm", (2,))
    with pytest.raises(FewstepError, match="Linear is no Network"):
        Genie(Teacher(foreign), foreign).begin("", {}, 1)


def test_the_head_mixes_three_outputs():
    head = GenieHead((2,))
    with torch.no_grad():
        head.outer.bias.copy_(torch.arange(6.0))  # k1 = (0, 1), k2 = (2, 3), k3 = (4, 5)
    g = 0.5
    mixed = head(torch.zeros(1, 2), torch.tensor([g], dtype=torch.float64), torch.zeros(1, 2))
    k1, k2, k3 = torch.arange(6.0).reshape(3, 2)
    assert torch.allclose(mixed, -k1 / g + g / (1 + g**2) * k2 + k3 / (g * (1 + g**2)))


def test_the_loss_is_zero_for_a_head_that_knows_the_derivative():
    method = Genie(*load_start("gaussians"))
    method.model = lambda x, gamma, eps, features: derivative(method.teacher, x, gamma, eps, None)
    batch = Batch(torch.randn(8, 2), data=Data(torch.randn(8, 2)))
    assert method.loss(batch, 0, torch.Generator().manual_seed(0)).item() == 0


@pytest.mark.parametrize("task", ["gaussians", "digits"])
def test_before_training_the_student_is_ddim(task):
    method = Genie(*load_start(task))
    head = method.begin("", {}, 1)
    student = make(method.sampler(head), head, method.source.prior, method.source)
    ddim = students.load("ddim", task=task)
    with count_nfe(student) as nfe:
        images = student.sample(3, seeds=range(4))
    assert nfe.per_image == 3
    assert torch.allclose(images, ddim.sample(3, seeds=range(4)), atol=1e-4)
    with pytest.raises(UnsupportedSteps):
        student.sample(1)
    if task == "digits":
        with pytest.raises(FewstepError, match="guidance"):
            student.sample(2, guidance=2.0)


@pytest.mark.slow
def test_the_taylor_method_is_of_second_order(mixture):
    class Exact(TaylorDenoiser):
        def forward(self, x, t, condition=None):
            self.head = lambda z, gamma, eps, features: derivative(self.view, z, gamma.clone(), eps, None)
            return super().forward(x, t)

    schedule = mixture.schedule
    student = SolverStudent(Exact(Teacher(mixture), None), taylor, grid="log_snr", shape=(2,))
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def end(n):
        times = student.times(n)
        return taylor(student.denoiser, x * schedule.sigma(times[0]), times)

    exact = end(1024)
    coarse, fine = (end(n).sub(exact).norm() for n in (64, 128))
    assert torch.log2(coarse / fine).item() == pytest.approx(2, abs=0.3)


def test_a_trained_solver_takes_one_evaluation_a_step(tmp_path):
    settings = {"steps": 20, "batch_size": 32}
    train_method("genie", "gaussians", out=tmp_path, state=tmp_path / "state", settings=settings)
    student = students.load(f"genie:weights={tmp_path}", task="gaussians")
    with count_nfe(student) as nfe:
        samples = student.sample(4, seeds=range(6))
    assert samples.shape == (6, 2) and nfe.per_image == 4 and student.family == "distilled"
    assert torch.allclose(student.sample(4, seeds=[3]), samples[3:4], atol=1e-4)
    assert student.training["evaluations"] == 20 * 32 * 3
