"""What single methods must hold, on networks and batches that need no training."""

import math

import pytest
import torch
from torch import nn

import students
from students.distillation.functions import jump
from students.distillation.trajectory import ctm, imm
from students.errors import FewstepError
from students.models.load import load_start
from students.training import quality
from students.training.batches import Batch, Data
from students.training.distill import method_class, train_method


def begun(name: str, task: str, steps: int = 100):
    method = method_class(name)(*load_start(task))
    method.begin(method.stages[0], {}, steps)
    return method


def batch_of(method, n: int) -> Batch:
    shape = (n, *method.start.shape)
    classes = method.start.classes
    condition = None if classes is None else torch.arange(n) % classes
    return Batch(noise=torch.randn(shape), condition=condition, data=Data(torch.randn(shape).clamp(-1, 1), condition))


# Dropout: what is compared with itself is one function


@pytest.mark.parametrize("name", ["consistency_training", "ict", "ecm", "meanflow", "scm", "sct", "imm"])
def test_the_network_that_is_its_own_target_has_no_dropout(name):
    method = begun(name, "digits")
    assert {module.p for module in method.model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    batch = batch_of(method, 8)
    losses = [method.loss(batch, 0, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*losses)


def test_the_average_of_an_untrained_network_is_that_network():
    method = begun("consistency_training", "digits")
    x, t, condition = torch.randn(4, 1, 8, 8), torch.full((4,), 2.0), torch.arange(4)
    assert method.model.network.training and not method.target.network.training
    assert torch.equal(method.model(x, t, condition), method.target(x, t, condition))


# Levels


def test_levels_of_ict_double_as_in_the_paper_where_there_are_as_many_updates():
    method = begun("ict", "gaussians", steps=400_000)
    period = math.floor(400_000 / (math.log2(1280 / 10) + 1))
    assert period == 50_000
    for step in (0, 1, 49_999, 50_000, 123_456, 399_999):
        assert method.count(step) == min(10 * 2 ** (step // period), 1280) + 1


@pytest.mark.parametrize("steps, counts", [(10, 1), (1999, 1), (2000, 2), (4000, 4), (4999, 4), (50_000, 8)])
def test_levels_of_ict_double_no_faster_than_every_thousand_updates(steps, counts):
    method = begun("ict", "gaussians", steps)
    seen = [method.count(step) for step in range(steps)]
    assert sorted(set(seen)) == [10 * 2**i + 1 for i in range(counts)]
    assert all(seen.count(count) >= min(1000, steps) for count in set(seen))


def test_levels_of_ict_follow_the_size_of_the_data():
    teacher, start = load_start("gaussians")
    means = []
    for size in (0.25, 0.5):
        start.sigma_data = size
        method = method_class("ict")(teacher, start)
        method.begin("", {}, 400_000)
        s, t = method.neighbours(20_000, 399_999, torch.Generator().manual_seed(0))
        assert (s > t).all()
        means.append(s.log().mean().item())
    assert means[1] - means[0] == pytest.approx(math.log(2), abs=0.15)


# What is evaluated


def forward_only(step):
    def checked(network, x, start, end, condition):
        assert (start > end).all()
        return step(network, x, start, end, condition)

    return checked


@pytest.mark.parametrize("task", ["gaussians", "digits"])
def test_ctm_makes_no_leap_from_a_level_to_itself(task, monkeypatch):
    method = begun("ctm", task)
    for name in ("leap", "heun_jump"):
        monkeypatch.setattr(ctm, name, forward_only(getattr(ctm, name)))
    rows = [0]
    for network in (method.teacher, method.target, method.model):
        (network if isinstance(network, nn.Module) else network.network).register_forward_pre_hook(
            lambda module, arguments: rows.append(len(arguments[0]))
        )
    generator, n = torch.Generator().manual_seed(0), 500
    for step in range(3):
        terms = method.loss(batch_of(method, n), step, generator)
        assert all(term.isfinite() for term in terms.values())
    assert sum(rows) / (3 * n) == pytest.approx(method.evaluations, rel=0.05)


# Clipping


@pytest.mark.parametrize(("clip", "x0"), [(True, 1.0), (False, 3.0)])
def test_x0_is_clipped_in_the_steps_of_teachers_where_that_is_asked_for(clip, x0):
    for name in ("progressive", "tract"):
        kind = method_class(name)
        method = kind(*load_start("digits"), kind.Options(clip=clip))
        method.begin(method.stages[0], {}, 100)
        batch = batch_of(method, 3)
        s, t = torch.tensor([4.0, 2.0, 1.0]), torch.tensor([2.0, 1.0, 0.5])

        def far(x, sigma, condition):
            return torch.full_like(x, 3.0)

        x = batch.noise
        assert torch.equal(method.step(far, x, s, t, batch), jump(x, torch.full_like(x, x0), s, t))


# Embeddings of time


@pytest.mark.parametrize("name", ["meanflow", "scm", "sct"])
def test_the_slow_embedding_survives_saving_and_loading(name, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "SAMPLES", 20)
    settings = {"steps": 2, "batch_size": 8}
    train_method(name, "digits", out=tmp_path / "out", state=tmp_path / "state", settings=settings)
    loaded = students.load(f"{name}:weights={tmp_path / 'out'}", task="digits")
    assert loaded.denoiser.network.scale == 4.0
    assert loaded.sample(1, seeds=range(2)).isfinite().all()


def test_networks_of_other_students_are_built_with_the_embedding_of_their_teacher():
    for name in ("consistency", "boot", "ddim"):
        assert students.load(name, task="digits").denoiser.network.scale == 250


# Mean velocities: where all data is one point c, that from r to t is (z - c) / t, whatever r is


class ToOnePoint:
    """u(z, r, t) = (z - c) / t, plus `error`."""

    def __init__(self, start, point: float, error: float = 0.0):
        self.network, self.sigma_data, self.point, self.error = start.network, start.sigma_data, point, error
        self.training = True

    def evaluate(self, z, t, condition, extra):
        return (z - self.point) / t[:, None] + self.error

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode


def at_one_point(method, n: int) -> Batch:
    x0 = torch.full((n, *method.start.shape), 0.3)
    return Batch(noise=torch.randn(n, *method.start.shape), condition=None, data=Data(x0, None))


@pytest.mark.parametrize("name", ["shortcut", "imm"])
def test_the_exact_mean_velocity_of_one_point_costs_nothing(name):
    method, generator = begun(name, "gaussians"), torch.Generator().manual_seed(0)
    batch = at_one_point(method, 64)
    for error in (0.0, 0.1):
        method.model = ToOnePoint(method.start, 0.3, error)
        if name == "shortcut":
            method.target_ema.module = method.model
        loss = method.loss(batch, 0, generator)
        assert (loss < 1e-6) if error == 0 else (loss > 1e-3)
        assert method.model.training


def test_steps_of_shortcut_are_multiples_of_twice_the_half_step():
    method = begun("shortcut", "gaussians")
    seen = []
    method.two_steps = lambda z, t, d, condition: seen.append((t, d)) or torch.zeros_like(z)
    for step in range(20):
        method.loss(batch_of(method, 64), step, torch.Generator().manual_seed(step))
    t, d = (torch.cat(part) for part in zip(*seen, strict=True))
    assert set((1 / d).tolist()) == {2, 4, 8, 16, 32, 64, 128} and len(t) == 20 * 16
    assert torch.equal((t / (2 * d)).round(), t / (2 * d)) and t.min() > 0 and t.max() == 1


def test_the_finest_half_steps_are_the_flow_s_own():
    method = begun("shortcut", "gaussians")
    told = []
    method.target.evaluate = lambda z, t, condition, extra: told.append(extra[:, 0]) or torch.zeros_like(z)
    d = torch.tensor([1 / 128, 1 / 64])
    method.two_steps(torch.zeros(2, 2), 4 * d, d, None)
    assert [part.tolist() for part in told] == [[0.0, 1 / 64]] * 2


def test_the_discrepancy_of_imm_is_that_of_pairs_of_one_class():
    method = begun("imm", "gaussians-cond")
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 8, 2, generator=generator).unbind()
    condition, width = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3]), torch.tensor([0.5, 2.0])

    def kernel(x, y, i, j, group):
        i, j = 4 * group + i, 4 * group + j
        return (condition[i] == condition[j]) * math.exp(-(x[i] - y[j]).norm() / width[group])

    expected = [
        sum(
            kernel(a, a, i, j, group) + kernel(b, b, i, j, group) - 2 * kernel(a, b, i, j, group)
            for i in range(4)
            for j in range(4)
        )
        / 16
        for group in range(2)
    ]
    torch.testing.assert_close(method.discrepancy(a, b, condition, width), torch.tensor(expected))


def test_imm_goes_back_by_a_share_of_noise_over_signal_and_not_beyond_its_end(monkeypatch):
    method = begun("imm", "gaussians")
    asked = []
    monkeypatch.setattr(imm, "mean_velocity", lambda model, z, s, t, condition: asked.append((s, t)) or z)
    method.loss(batch_of(method, 4000), 0, torch.Generator().manual_seed(0))
    (s, t), (_, r) = asked
    assert (s <= r).all() and (r <= t).all() and t.max() <= 0.994 and (t.reshape(-1, 4).std(1) == 0).all()
    beyond = r > s
    eta = t / (1 - t)
    went = (eta - r / (1 - r)) / eta.clamp(min=1)
    torch.testing.assert_close(went[beyond], torch.full_like(went[beyond], method.options.gap), atol=1e-3, rtol=0)


def test_a_batch_of_imm_is_whole_groups():
    method = begun("imm", "gaussians")
    with pytest.raises(FewstepError, match="a batch of 6 is not whole groups of 4 particles"):
        method.loss(batch_of(method, 6), 0, torch.Generator().manual_seed(0))


# sCT


def test_sct_is_scm_with_data_for_the_teacher_s_images():
    ours, theirs = begun("sct", "digits"), begun("scm", "digits")
    theirs.model = ours.model
    batch = batch_of(ours, 8)
    theirs.teacher = lambda noisy, sigma, condition: batch.data.x0
    losses = [method.loss(batch, 30, torch.Generator().manual_seed(0)) for method in (ours, theirs)]
    assert torch.equal(*losses)


def test_ctm_has_a_discriminator_where_it_is_asked_for_and_half_of_the_training_alone():
    kind = method_class("ctm")
    plain, judged = (kind(*load_start("digits"), kind.Options(adversarial=value)) for value in (False, True))
    assert plain.evaluations < judged.evaluations < plain.evaluations + 1 and judged.opponent_evaluations > 3
    for method in (plain, judged):
        method.begin("", {}, 100)
    assert not plain.opponents()
    (player,) = judged.opponents().values()
    batch = batch_of(judged, 8)
    terms = [judged.loss(batch, step, torch.Generator().manual_seed(0)) for step in (49, 50)]
    assert [set(found) for found in terms] == [{"soft", "denoising"}, {"soft", "denoising", "adversarial"}]
    last = judged.model.network.last_layer.weight
    norms = [torch.autograd.grad(terms[1][name], last, retain_graph=True)[0].norm() for name in ("soft", "adversarial")]
    assert norms[1] <= 1.001 * norms[0]
    sum(player.loss(batch, 0, torch.Generator().manual_seed(0)).values()).backward()
    assert all(p.grad is None for p in judged.model.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in player.module.parameters())
