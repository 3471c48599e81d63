"""The training loop and the teacher of digits, at tiny size."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from students import teachers
from students.errors import FewstepError
from students.recipes import RECIPES, teacher_weights
from students.teachers import load_teacher, train_teacher
from students.training.loop import EMA, learning_rate, train
from students.training.teacher import denoising_loss


def test_the_loop_finds_the_minimum_of_a_quadratic():
    model = nn.Linear(1, 1, bias=False)
    averaged, record = train(
        model, lambda: (model.weight - 3).square().sum(), steps=300, batch_size=4, lr=0.1, warmup=10, ema_decay=0.9
    )
    assert averaged.weight.item() == pytest.approx(3, abs=1e-3)
    assert record["steps"] == 300 and record["images_seen"] == 1200


def test_the_loop_stops_at_the_time_limit_and_at_a_loss_that_is_not_finite():
    model = nn.Linear(1, 1)
    _, record = train(model, lambda: model.weight.sum() ** 2, steps=10**9, batch_size=1, lr=0.1, time_limit=0.0)
    assert record["steps"] == 1
    with pytest.raises(FloatingPointError, match="step 0"):
        train(model, lambda: model.weight.sum() * float("nan"), steps=3, batch_size=1, lr=0.1)


def test_learning_rate_warms_up_and_decays_to_zero():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(101)]
    assert [rates[0], rates[10], rates[100]] == pytest.approx([0.1, 1.0, 0.0], abs=1e-9)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_ema_follows_its_definition():
    model = nn.Linear(1, 1)
    ema = EMA(model, decay=0.5)
    expected = model.weight.item()
    for n in range(1, 6):
        with torch.no_grad():
            model.weight.fill_(float(n))
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.module.weight.item() == pytest.approx(expected)


def test_the_denoising_loss_is_least_at_the_exact_denoiser(mixture):
    x0 = mixture.sample(range(4000))[0].float()
    mixture.sigma_data = 0.8

    def loss(shift):
        class Shifted(nn.Module):
            schedule, sigma_data = mixture.schedule, mixture.sigma_data

            def forward(self, x, t, labels):
                return mixture(x, t) + shift

        return denoising_loss(Shifted(), x0, None, torch.Generator().manual_seed(0), -0.8, 1.4, 0.0).item()

    assert loss(0.0) < loss(0.05) and loss(0.0) < loss(-0.05)


def test_a_teacher_trains_repeatably_saves_and_loads(tmp_path, monkeypatch):
    monkeypatch.setitem(teachers.RECIPES, "digits", replace(RECIPES["digits"], steps=3, batch_size=8))
    path = train_teacher("digits", tmp_path / "teacher.safetensors")
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["task"] == "digits" and record["images_seen"] == 24 and record["network_evaluations"] == 24
    assert {"seed", "seconds", "commit", "recipe", "sha256", "class_counts"} <= record.keys()
    teacher = load_teacher("digits", path)
    assert teacher(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape == (2, 1, 8, 8)
    again = train_teacher("digits", tmp_path / "again.safetensors")
    assert json.loads(again.with_suffix(".json").read_text())["sha256"] == record["sha256"], (
        "training is not repeatable"
    )


def test_the_shipped_teacher_is_small_and_denoises():
    path = teacher_weights("digits")
    assert path.stat().st_size <= 500_000
    teacher = load_teacher("digits")
    split = teachers.load_data("digits").heldout
    x0 = split.samples[:200].float() / 127.5 - 1
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    t = teacher.schedule.time(torch.tensor(0.0))
    x = teacher.schedule.alpha(t).float() * x0 + teacher.schedule.sigma(t).float() * eps
    error = (teacher(x, t, split.labels[:200]) - x0).square().mean()
    assert error < 0.25 * (eps.square().mean()), "at sigma = alpha the noise must shrink to a quarter of its power"


def test_what_cannot_be_trained_says_why():
    with pytest.raises(FewstepError, match="exact denoiser"):
        train_teacher("gaussians")
    with pytest.raises(FewstepError, match="did you mean 'digits'"):
        train_teacher("digit")
