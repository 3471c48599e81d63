"""Adversarial students: losses against closed forms, discriminators, encoders, what each method must hold.

That each is trained for real, and what becomes of it, is in test_distillation.py.
"""

import json
import math

import pytest
import torch
from torch import nn

from bench.measure.digits_cnn import DigitsCNN
from students.__main__ import main
from students.data import load_data
from students.distillation.adversarial.core import HINGE, LEAST_SQUARES, NON_SATURATING, r1_penalty
from students.errors import FewstepError, Stopped, WeightsError
from students.models.load import load_start
from students.models.weights import load_weights
from students.networks.discriminator import Discriminator, EncoderDiscriminator, FeatureDiscriminator, Heads
from students.networks.encoder import Encoder
from students.nfe import count_nfe
from students.samplers.load import load_trained
from students.training import encoder as encoders
from students.training import quality
from students.training.batches import Batch, Data
from students.training.distill import method_class, train_method
from students.training.encoder import encoder_weights, load_encoder, train_encoder
from students.training.loop import train
from students.training.players import Player

NAMES = ["ddgan", "adversarial_score", "ufogen", "add"]

# Losses


def test_losses_of_logits_have_their_closed_forms():
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -3.0])
    expected = sum(math.log1p(math.exp(-v)) for v in (1, -2)) / 2 + sum(math.log1p(math.exp(v)) for v in (0.5, -3)) / 2
    assert NON_SATURATING.discriminator(real, fake).item() == pytest.approx(expected)
    assert NON_SATURATING.generator(torch.zeros(3)).item() == pytest.approx(math.log(2))
    assert HINGE.discriminator(real, fake).item() == pytest.approx((0 + 3) / 2 + (1.5 + 0) / 2)
    assert HINGE.generator(fake).item() == pytest.approx(1.25)
    assert LEAST_SQUARES.discriminator(real, fake).item() == pytest.approx((0 + 9) / 2 + (2.25 + 4) / 2)
    assert LEAST_SQUARES.generator(fake).item() == pytest.approx((0.25 + 16) / 2)


@pytest.mark.parametrize("game, best", [(NON_SATURATING, lambda p, q: math.log(p / q)),
                                        (LEAST_SQUARES, lambda p, q: (p - q) / (p + q))])  # fmt: skip
def test_the_best_logit_is_that_of_the_ratio_of_densities(game, best):
    """Of a value that data take p times and samples q times (Goodfellow et al., Prop. 1; Mao et al., Eq. 5)."""
    p, q = 3, 1
    logit = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logit], max_iter=100)

    def closure():
        optimiser.zero_grad()
        zero = logit.detach()
        loss = p * game.discriminator(logit, zero) + q * game.discriminator(zero, logit)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert logit.item() == pytest.approx(best(p, q), abs=1e-4)


def test_r1_is_the_squared_slope_and_can_be_trained():
    x, y = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    w = torch.tensor([1.0, 2.0, -2.0], requires_grad=True)
    assert r1_penalty(x @ w, x).item() == pytest.approx(9)
    assert r1_penalty(x @ w + y.square().sum(1), [x, y]).item() == pytest.approx(
        9 + 4 * y.square().sum(1).mean().item()
    )
    both = torch.stack([x @ w, 3 * x @ w], dim=1)  # logits of a row, whose mean is 2 x w
    assert r1_penalty(both, x).item() == pytest.approx(36)
    r1_penalty(x @ w, x).backward()
    torch.testing.assert_close(w.grad, 2 * w.detach())


def test_half_of_the_rows_start_from_pure_noise():
    i = begun("ufogen", "gaussians").starts(20_000, torch.Generator().manual_seed(0))
    shares = i.bincount(minlength=4) / len(i)
    torch.testing.assert_close(shares, torch.tensor([5 / 8, 1 / 8, 1 / 8, 1 / 8]), atol=0.02, rtol=0)


# Discriminators


@pytest.mark.parametrize("task", ["gaussians", "digits"])
def test_heads_read_every_hidden_tensor(task):
    _, start = load_start(task)
    x, sigma = torch.randn(3, *start.shape), torch.full((3,), 0.5)
    condition = None if start.classes is None else torch.tensor([0, 1, 2])
    logits, features = FeatureDiscriminator(start)(x, sigma, condition)
    assert logits.shape == (3, sum(hidden[0, 0].numel() for hidden in features))
    assert r1_penalty(logits, features).isfinite()
    projected = Heads(features, classes=10)
    assert not torch.equal(*(projected(features, torch.full((3,), c)) for c in (0, 1)))
    with pytest.raises(FewstepError, match="these heads read features of"):
        projected(features[:1])


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 32, 32)])
def test_a_discriminator_knows_time_class_and_its_resolution(shape):
    torch.manual_seed(0)
    critic = Discriminator(shape, states=2, classes=3)
    x, one, two = torch.randn(4, 2 * shape[0], *shape[1:]), torch.full((4,), 0.1), torch.full((4,), 0.9)
    classes = torch.tensor([0, 1, 2, 3])
    logits = critic(x, one, classes)
    assert logits.shape == (4,)
    assert not torch.allclose(logits, critic(x, two, classes))
    assert not torch.allclose(logits, critic(x, one, classes.flip(0)))
    with pytest.raises(FewstepError, match="this discriminator reads"):
        critic(
            torch.randn(4, 2 * shape[0], *(n + 1 for n in shape[1:]), *([1] if len(shape) == 1 else [])), one, classes
        )


# Encoders for training


def test_the_encoder_that_ships_is_another_than_the_one_that_measures():
    encoder = load_encoder(encoder_weights("digits"), (1, 8, 8))
    shapes = [{tuple(p.shape) for p in module.parameters() if p.ndim > 2} for module in (encoder, DigitsCNN())]
    _, record = load_weights(encoder_weights("digits"))
    assert shapes[0] != shapes[1] and record["seed"] != 0 and record["heldout_accuracy"] > 0.97
    assert record["parameters"] < 15_000 and not any(p.requires_grad for p in encoder.parameters())
    heldout = load_data("digits").heldout
    found = encoder.logits(heldout.samples / 127.5 - 1).argmax(1)
    assert (found == heldout.labels).double().mean() > 0.97
    logits, features = EncoderDiscriminator(encoder, classes=10)(torch.randn(2, 1, 8, 8), None, torch.tensor([0, 1]))
    assert logits.shape == (2, 4 + 16 + 64) and [hidden.shape[1] for hidden in features] == [24, 16, 8]


def test_an_encoder_is_trained_and_refuses_what_it_cannot_do(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "STEPS", 3)
    [path] = train_encoder("digits", tmp_path / "encoder.safetensors", state=tmp_path / "state")
    encoder = load_encoder(path, (1, 8, 8))
    with pytest.raises(FewstepError, match=r"this encoder reads images \(1, 8, 8\), not \(1, 9, 9\)"):
        encoder(torch.zeros(1, 1, 9, 9))
    with pytest.raises(WeightsError, match=r"reads images \(1, 8, 8\), not \(3, 32, 32\)"):
        load_encoder(path, (3, 32, 32))
    with pytest.raises(WeightsError, match=r"no encoder at nowhere\.safetensors"):
        load_encoder(tmp_path.with_name("nowhere.safetensors").relative_to(tmp_path.parent), (1, 8, 8))
    with pytest.raises(FewstepError, match="labels of images, which 'gaussians' has not"):
        train_encoder("gaussians")
    assert Encoder((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32))[0].shape == (2, 24, 8, 8)


def test_an_encoder_is_trained_by_the_command_that_errors_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoders, "STEPS", 2)
    arguments = ["train", "encoder", "--task", "digits", "--out", str(tmp_path / "e.safetensors")]
    assert main([*arguments, "--state", str(tmp_path / "s")]) == 0
    assert load_encoder(tmp_path / "e.safetensors", (1, 8, 8)).shape == (1, 8, 8)
    assert main([*arguments, "--budget", "1"]) == 2
    assert "an encoder is trained by its recipe: leave --budget out" in capsys.readouterr().err


# Methods


def begun(name: str, task: str, **options):
    kind = method_class(name)
    method = kind(*load_start(task), kind.Options(**options))
    method.prepare()
    method.begin(method.stages[0], {}, 100)
    method.opponents()
    return method


def batch_of(method, n: int) -> Batch:
    shape, classes = (n, *method.start.shape), method.start.classes
    condition = None if classes is None else torch.arange(n) % classes
    return Batch(noise=torch.randn(shape), condition=condition, data=Data(torch.randn(shape).clamp(-1, 1), condition))


@pytest.mark.parametrize("task", ["gaussians", "digits"])
@pytest.mark.parametrize("name", NAMES)
def test_each_side_has_a_loss_of_its_own(name, task):
    """The discriminator's reaches no parameter of the student, the student's none that is frozen."""
    method = begun(name, task)
    loss = method.discriminator_loss(batch_of(method, 4), 0, torch.Generator().manual_seed(0))
    sum(loss.values()).backward()
    assert all(parameter.grad is None for parameter in method.model.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.critic.parameters())
    loss = method.loss(batch_of(method, 4), 0, torch.Generator().manual_seed(0))
    (sum(loss.values()) if isinstance(loss, dict) else loss).backward()
    grads = [p.grad for p in method.model.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in grads)
    assert all(g is None or g.isfinite().all() for g in grads)
    assert all(p.grad is None for p in method.start.parameters())


def test_a_generator_that_is_right_leaves_ddgan_nothing_to_tell():
    """With G the identity on x_0, states of data and of samples have one distribution."""
    method = begun("ddgan", "gaussians")
    torch.manual_seed(0)
    batch = batch_of(method, 40_000)
    generator = torch.Generator().manual_seed(0)
    x_t, x_s, s, t = method.states(batch, generator)
    method.model = nn.Module()
    method.model.forward = lambda *_: batch.data.x0
    method.model.network = type("", (), {"extra": 2})
    fake = method.generate(x_s, s, t, None, generator)
    for level in s.unique():
        rows = s == level
        real, made, noise = ((x[rows] - batch.data.x0[rows]).double() / level for x in (x_t, fake, x_s))
        torch.testing.assert_close(real.var(), made.var(), rtol=0, atol=0.03)
        torch.testing.assert_close((real * noise).mean(), (made * noise).mean(), rtol=0, atol=0.03)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(quality, "SAMPLES", 20)


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_ends_with_the_same_weights(name, quick, tmp_path):
    settings = {"settings": {"steps": 8, "batch_size": 4}}
    whole = train_method(name, "gaussians", out=tmp_path / "a", state=tmp_path / "a-state", **settings)
    with pytest.raises(Stopped):
        train_method(name, "gaussians", out=tmp_path / "b", state=tmp_path / "b-state", time_limit=0.0, **settings)
    with pytest.raises(FewstepError, match=r"another configuration.*r1"):
        train_method(name, "gaussians", out=tmp_path / "b", state=tmp_path / "b-state", options={"r1": 2.0}, **settings)
    again = train_method(name, "gaussians", out=tmp_path / "b", state=tmp_path / "b-state", **settings)
    for path, other in zip(whole, again, strict=True):
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_two_updates_on_digits(name, quick, tmp_path):
    settings = {"steps": 2 * len(method_class(name).stages), "batch_size": 4}
    train_method(name, "digits", out=tmp_path, state=tmp_path / "s", settings=settings)
    student = load_trained(name, "digits", tmp_path)
    with count_nfe(student) as nfe:
        for n in (1, 2, 4):
            assert student.sample(n, seeds=range(2), conditions=[3, 4]).isfinite().all()
    assert nfe.per_image == pytest.approx(7 / 3)
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert record["feature_spaces"] == (["encoder"] if name == "add" else [])


def test_an_absent_encoder_is_an_error_that_names_the_file(tmp_path, capsys):
    arguments = ["train", "add", "--task", "cifar10", "--out", str(tmp_path), "--state", str(tmp_path / "s")]
    assert main(arguments) == 2
    assert "no encoder at " in (error := capsys.readouterr().err) and "cifar10/encoder.safetensors" in error
    assert main([*arguments, "--options", "encoder=my/encoder.safetensors"]) == 2
    assert "no encoder at my/encoder.safetensors" in capsys.readouterr().err
    assert main(["train", "add", "--task", "gaussians", *arguments[4:], "--options", "encoder=my"]) == 2
    assert "vectors have none: leave encoder out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, message",
    [
        ("discriminator_every=0", "discriminator_every must be a whole number from 1 to 1000"),
        ("discriminator_lr=0", "discriminator_lr must be a number above 0"),
        ("r1=-0.1", "r1 must be a number from 0"),
        ("r2=1", "takes no option 'r2': did you mean 'r1'"),
    ],
)
@pytest.mark.parametrize("name", ["ddgan", "add"])
def test_options_out_of_range_are_refused_in_one_line(name, option, message, tmp_path, capsys):
    paths = ["--out", str(tmp_path), "--state", str(tmp_path / "s")]
    assert main(["train", name, "--task", "gaussians", *paths, "--options", option]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "name, option", [("adversarial_score", "adversarial"), ("ufogen", "reconstruction"), ("add", "distillation")]
)
def test_a_negative_weight_is_refused_in_one_line(name, option, tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--state", str(tmp_path / "s"), "--options", f"{option}=-1"]
    assert main(["train", name, "--task", "gaussians", *arguments]) == 2
    error = capsys.readouterr().err
    assert f"{option} must be a number from 0" in error and error.count("\n") == 1


def test_a_loss_that_is_not_finite_names_player_and_step(quick, tmp_path, monkeypatch):
    kind = method_class("ufogen")
    plain = kind.discriminator_loss

    def broken(self, batch, step, generator):
        return {"game": sum(plain(self, batch, step, generator).values()) * (math.nan if step == 3 else 1)}

    monkeypatch.setattr(kind, "discriminator_loss", broken)
    with pytest.raises(FewstepError, match="the loss of the discriminator or its gradient became nan at step 3"):
        train_method("ufogen", "gaussians", out=tmp_path, state=tmp_path / "s", settings={"steps": 6, "batch_size": 4})


def test_resuming_with_other_players_is_refused(tmp_path):
    def player():
        module = nn.Linear(1, 1)
        return Player(module, lambda generator, step: module.weight.square().sum(), 1e-3)

    options = {"steps": 3, "batch_size": 1, "state": tmp_path, "config": {"name": "toy"}}
    train({"student": player()}, time_limit=0.0, **options)
    with pytest.raises(FewstepError, match=r"another configuration.*players"):
        train({"discriminator": player(), "student": player()}, **options)
