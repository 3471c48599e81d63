"""DSNO: temporal convolutions, the operator before training, its loss, and a short training."""

import pytest
import torch
from torch import nn

import students
from students.diffusion.denoiser import Denoiser, under
from students.diffusion.preconditioning import edm_scalings
from students.diffusion.schedules import VE
from students.distillation.functions import jump
from students.distillation.method import Pairs
from students.distillation.trajectory.dsno import TrajectoryOperator
from students.errors import FewstepError, UnsupportedSteps
from students.models.load import load_start
from students.models.teacher import Teacher
from students.networks.mlp import MLP
from students.networks.temporal import TemporalConvolution
from students.networks.unet import UNet
from students.nfe import count_nfe
from students.training.batches import Batch, PairRows
from students.training.distill import train_method

STATES = 4


@pytest.fixture(scope="module")
def method():
    return TrajectoryOperator(*load_start("gaussians"))


@pytest.mark.parametrize("base", [MLP((2,), width=8), UNet((1, 8, 8), (8, 16), patch=2, attention=True, classes=3)])
def test_before_training_a_network_with_temporal_layers_computes_what_it_did(base):
    x = torch.randn(2 * STATES, *((2,) if isinstance(base, MLP) else (1, 8, 8)))
    inputs = x, torch.linspace(-1, 1, len(x)), torch.arange(len(x)) % 3
    before = base.eval()(*inputs)
    base.add_states(STATES)
    assert torch.equal(base.eval()(*inputs), before)
    for layer in (module for module in base.modules() if isinstance(module, TemporalConvolution)):
        nn.init.normal_(layer.weight)
    after = base(*inputs)
    x[0] += 1  # a state acts on the others of its trajectory, and on no other
    changed = (base(*inputs) - after).abs().flatten(1).amax(1) > 1e-5
    assert changed.tolist() == [True] * STATES + [False] * STATES


def test_other_networks_have_no_place_for_temporal_layers():
    foreign = Denoiser(nn.Linear(2, 2), VE(), "edm", (2,))
    with pytest.raises(FewstepError, match="Linear is no Network"):
        TrajectoryOperator(Teacher(foreign), foreign).begin("", {}, 1)


def test_the_operator_starts_as_the_network_at_every_level(method):
    operator = method.begin("", {}, 1).eval()
    start, x = under(method.start, VE), torch.randn(3, 2) * operator.schedule.t_max
    t_max = torch.tensor(start.schedule.t_max)
    c_skip, c_out, c_in = edm_scalings(t_max, start.sigma_data)
    assert torch.allclose(operator.levels, method.sigmas(32)[[8, 16, 24, 32]])
    for i, level in enumerate(operator.levels):
        expected = c_skip * x + c_out * start.evaluate(c_in * x, level.log() / 4)
        assert torch.allclose(operator.estimates(x)[:, i], expected, atol=1e-5)
    assert torch.equal(operator(x, t_max), operator.estimates(x)[:, -1])


def test_the_loss_is_zero_at_the_operators_own_trajectory(method):
    operator = method.begin("", {}, 1).eval()
    noise, s = torch.randn(5, 2), torch.tensor(operator.schedule.t_max, dtype=torch.float64)
    x = noise * operator.schedule.t_max
    states = [jump(x, g, s, t) for g, t in zip(operator.estimates(x).unbind(1), operator.levels, strict=True)]
    path = torch.stack([x, *states], dim=1)
    generator = torch.Generator()
    batch = Batch(pairs=PairRows(noise, states[-1], path=path))
    assert method.loss(batch, 0, generator).item() == pytest.approx(0, abs=1e-4)
    path[:, -1] += 1  # the data end has nearly all the weight
    assert method.loss(batch, 0, generator).item() == pytest.approx(1, abs=0.1)


def test_a_trained_operator_samples_in_one_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(TrajectoryOperator, "pairs", Pairs(count=64, steps=32, path=STATES + 1))
    settings = {"steps": 20, "batch_size": 32}
    train_method("dsno", "gaussians", out=tmp_path, state=tmp_path / "state", settings=settings)
    student = students.load(f"dsno:weights={tmp_path}", task="gaussians")
    with count_nfe(student) as nfe:
        samples = student.sample(1, seeds=range(6))
    assert samples.shape == (6, 2) and nfe.per_image == STATES
    assert torch.allclose(student.sample(1, seeds=[3]), samples[3:4], atol=1e-5)
    assert student.training["evaluations"] == 64 * 32 + 20 * 32 * STATES
    with pytest.raises(UnsupportedSteps):
        student.sample(2)
