"""The training loop: what it minimises, its learning rate, averages, exact resume, and what stops it."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from students.errors import FewstepError
from students.training import loop
from students.training.checkpoint import load_checkpoint
from students.training.ema import EMA
from students.training.loop import batch_share, learning_rate, step_seed, train
from students.training.players import Player
from students.training.teacher import denoising_loss
from tests.students.training.runs import digits_run, equal


def test_the_loop_finds_the_minimum_of_a_quadratic():
    model = nn.Linear(1, 1, bias=False)
    loss = lambda generator, step: (model.weight - 3).square().sum()
    player = Player(model, loss, lr=0.1, warmup=10, ema_decay=0.9)
    trained, record = train({"student": player}, steps=300, batch_size=4)
    assert trained["student"] is not model
    assert trained["student"].weight.item() == pytest.approx(3, abs=1e-3)
    assert record["steps"] == 300 and record["images_seen"] == 1200 and record["processes"] == 1
    assert "loss_curves" not in record


def test_the_loop_stops_at_the_time_limit():
    model = nn.Linear(1, 1)
    player = Player(model, lambda *_: model.weight.sum() ** 2, lr=0.1)
    trained, record = train({"student": player}, steps=1000, batch_size=1, time_limit=0.0)
    assert (record["steps"], record["planned_steps"], record["loss_curve"][-1][0]) == (1, 1000, 1)
    assert trained["student"] is model  # no average was asked for


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


def test_evaluations_are_counted_by_role_but_not_those_of_measuring():
    model, teacher = nn.Linear(2, 2), nn.Linear(2, 2)

    def loss(generator, step):
        x = torch.randn(4, 2, generator=generator)
        return (model(x) - teacher(teacher(x))).square().mean()

    def measure(module):
        teacher(torch.zeros(100, 2))
        return 7.0

    player = Player(model, loss, lr=0.1)
    networks = {"teacher": [teacher], "student": [model]}
    _, record = train({"student": player}, steps=20, batch_size=4, networks=networks, measure=measure)
    assert record["evaluations"] == {"teacher": 2 * 80, "student": 80}
    assert record["quality_curve"] == [(4 * n, 12 * n, 7.0) for n in range(2, 21, 2)]
    assert not model._forward_pre_hooks and not teacher._forward_pre_hooks


# Random numbers


def test_seeds_of_steps_players_processes_and_runs_do_not_meet():
    """Of n 32-bit numbers that are random, about n^2 / 2^33 pairs are equal."""
    streams = [rank * loop.MOST_PLAYERS + place for rank in range(8) for place in range(4)]
    found = [step_seed(seed, step, s) for seed in range(4) for s in streams for step in range(0, 4000, 5)]
    assert all(0 <= one < 2**32 for one in found)
    assert len(found) - len(set(found)) < 3 * len(found) ** 2 / 2**33


def test_a_process_of_one_seed_repeats_no_other_seed_s():
    """At no distance in steps: a stream that lags behind another by k steps is the same noise all the same."""
    streams = (0, 1, loop.MOST_PLAYERS, 2 * loop.MOST_PLAYERS)
    steps = range(5000)
    runs = {(seed, s): {step_seed(seed, step, s) for step in steps} for seed in range(6) for s in streams}
    for one, its in runs.items():
        for other, theirs in runs.items():
            assert one == other or len(its & theirs) <= 2


def test_runs_of_two_seeds_differ_and_of_one_seed_agree():
    assert equal(digits_run(steps=1, seed=3)[0], digits_run(steps=1, seed=3)[0])
    assert not equal(digits_run(steps=1, seed=3)[0], digits_run(steps=1, seed=4)[0])


def test_one_process_takes_the_whole_batch():
    assert batch_share(9) == 9


# Stopping and resuming


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, dtype):
    weights, record = digits_run(dtype=dtype)
    for step in range(1, 5):
        resumed, its_record = digits_run(tmp_path, dtype, time_limit=0.0)  # one step a call
        assert its_record["steps"] == step
        assert equal(resumed, weights) == (step == 4)
    for key in ("steps", "images_seen", "final_loss", "loss_curve"):
        assert its_record[key] == record[key]
    assert its_record["seconds"] >= 0
    assert equal(digits_run(tmp_path, dtype)[0], weights)  # nothing is left to do


def test_precision_changes_the_weights():
    assert not equal(digits_run(dtype=torch.bfloat16)[0], digits_run()[0])


def test_a_run_killed_between_checkpoints_resumes_from_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    weights, _ = digits_run(steps=5)
    calls = []

    def die_at_the_fourth_step(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return denoising_loss(*arguments)

    with pytest.raises(KeyboardInterrupt):
        digits_run(tmp_path, steps=5, save_every=-1, objective=die_at_the_fourth_step)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert equal(digits_run(tmp_path, steps=5)[0], weights)


def test_a_state_folder_that_cannot_be_written_shows_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    player = Player(nn.Linear(1, 1), lambda *_: pytest.fail("trained"), lr=1)
    with pytest.raises(FewstepError, match=r"cannot write in .*file is no folder"):
        train({"student": player}, steps=9, batch_size=1, state=tmp_path / "file")


@pytest.mark.parametrize("spoil", [lambda loss: loss * float("nan"), lambda loss: loss + (loss * 0).sqrt()])
def test_a_loss_or_gradient_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, spoil):
    """The second loss is finite: 0 under the root has an infinite slope."""
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    model, steps = nn.Linear(1, 1), []

    def loss(generator, step):
        steps.append(len(steps))
        value = model.weight.sum() ** 2
        return spoil(value) if steps[-1] == 5 else value

    with pytest.raises(FewstepError, match=r"the loss or its gradient became nan at step 5: lower the .*; .* keeps"):
        train({"student": Player(model, loss, lr=0.1)}, steps=100, batch_size=1, state=tmp_path, save_every=-1)
    tensors, progress = load_checkpoint(tmp_path, None)
    assert progress["step"] == 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_restored_moments_lie_in_memory_like_their_parameters():
    """A fused optimiser step runs over both as they lie."""

    def run(steps):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        loss = lambda generator, step: model(torch.ones(1, 3, 4, 4)).sum()
        made = loop._Run({"student": Player(model, loss, lr=0.1, ema_decay=0.9)}, 10, 0, torch.float32)
        for _ in range(steps):
            made.advance()
        return made

    before, restored = run(1), run(0)
    restored.restore({name: tensor.contiguous() for name, tensor in before.tensors().items()}, 1)
    assert equal(restored.tensors(), before.tensors())
    moments = restored.optimisers["student"].state
    assert moments
    for parameter, its in moments.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert its[name].stride() == parameter.stride()
