"""The training loop, its checkpoints, and the teacher of digits, at tiny size."""

import errno
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from filelock import FileLock, Timeout
from torch import nn

from students import teachers
from students.__main__ import main
from students.errors import FewstepError, WeightsError
from students.recipes import RECIPES, teacher_weights
from students.teachers import build, load_data, load_teacher, train_teacher
from students.training import checkpoint, loop
from students.training.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from students.training.ema import EMA
from students.training.loop import learning_rate, train
from students.training.teacher import denoising_loss


def test_the_loop_finds_the_minimum_of_a_quadratic():
    model = nn.Linear(1, 1, bias=False)
    averaged, record = train(
        model,
        lambda generator, step: (model.weight - 3).square().sum(),
        steps=300,
        batch_size=4,
        lr=0.1,
        warmup=10,
        ema_decay=0.9,
    )
    assert averaged.weight.item() == pytest.approx(3, abs=1e-3)
    assert record["steps"] == 300 and record["images_seen"] == 1200


def test_the_loop_stops_at_the_time_limit():
    model = nn.Linear(1, 1)
    _, record = train(model, lambda *_: model.weight.sum() ** 2, steps=1000, batch_size=1, lr=0.1, time_limit=0.0)
    assert (record["steps"], record["planned_steps"], record["loss_curve"][-1][0]) == (1, 1000, 1)


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
    assert record["task"] == "digits" and record["images_seen"] == 24 and record["evaluations"] == {"teacher": 24}
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
    split = load_data("digits").heldout
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


# Checkpoints


def digits_run(state=None, dtype=torch.float32, steps=4, objective=denoising_loss, **options):
    """The averaged weights, bit for bit, and the record of a few steps of the digits recipe, dropout included."""
    recipe = RECIPES["digits"]
    torch.manual_seed(0)
    split = load_data("digits").train
    model = build(recipe)

    def loss(generator, step):
        rows = torch.randint(len(split.samples), (8,), generator=generator)
        x0 = split.samples[rows].float() / 127.5 - 1
        return objective(model, x0, split.labels[rows], generator, recipe.p_mean, recipe.p_std, 0.1)

    config = {"recipe": "digits", "dtype": str(dtype)}
    averaged, record = train(
        model,
        loss,
        steps=steps,
        batch_size=8,
        lr=recipe.lr,
        warmup=2,
        dtype=dtype,
        state=state,
        config=config,
        **options,
    )
    weights = {
        f"{kind}.{name}": t for kind, m in (("model", model), ("ema", averaged)) for name, t in m.state_dict().items()
    }
    return weights, record


def equal(a, b):
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


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


def test_a_kill_in_the_middle_of_a_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    tensors = {"a": torch.arange(3.0)}
    save_checkpoint(tmp_path, None, tensors, {"step": 1})
    with monkeypatch.context() as patched:
        patched.setattr(
            checkpoint.shutil, "rmtree", lambda *arguments, **options: None
        )  # a killed process tidies nothing
        patched.setattr(checkpoint, "_write", lambda path, content: (path.write_bytes(content[:9]), exit(9)))
        with pytest.raises(SystemExit):
            save_checkpoint(tmp_path, None, tensors, {"step": 2})
    assert len(list(tmp_path.glob(".step-00000002.*.part/*"))) == 1
    assert load_checkpoint(tmp_path, None)[1] == {"step": 1}
    save_checkpoint(tmp_path, None, tensors, {"step": 2})  # perhaps under the same process id
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_removing_checkpoints_leaves_the_files_of_others(tmp_path):
    state = tmp_path / "state"
    save_checkpoint(state, None, {"a": torch.zeros(2)}, {"step": 1})
    (state / ".step-00000002.7.part").mkdir()
    (state / "notes.txt").touch()
    remove_checkpoints(state)
    assert [path.name for path in state.iterdir()] == ["notes.txt"]
    (state / "notes.txt").unlink()
    remove_checkpoints(state)
    assert not state.exists()


def test_files_of_a_big_state_are_small(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"small.{i}": torch.rand(3, i + 1, generator=generator) for i in range(400)}
    tensors |= {f"big.{i}": torch.rand(1100, 1000, generator=generator) for i in range(6)}
    tensors["huge"] = torch.rand(2100, 2000, generator=generator).bfloat16()
    tensors["steps"] = torch.tensor(7)
    tensors["channels_last"] = torch.rand(256, 256, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path, {"lr": 1}, tensors, {"step": 3, "seconds": 0.5})
    sizes = [path.stat().st_size for path in tmp_path.glob("step-*/*")]
    assert max(sizes) <= 15 * 2**20
    assert len(sizes) < 8
    restored, progress = load_checkpoint(tmp_path, {"lr": 1})
    assert equal({name: restored[name] for name in tensors}, tensors) and len(restored) == len(tensors)
    assert progress == {"step": 3, "seconds": 0.5}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda part, manifest: part.write_bytes(part.read_bytes()[:-1]), "cut short or altered .part-000"),
        (lambda part, manifest: part.unlink(), "lacks part-000"),
        (lambda part, manifest: manifest.write_text(manifest.read_text()[:-9]), "no readable checkpoint.json"),
        (lambda part, manifest: manifest.write_text("[]"), "no readable checkpoint.json"),
        (lambda part, manifest: manifest.unlink(), "no readable checkpoint.json"),
    ],
)
def test_a_checkpoint_cut_short(tmp_path, damage, message):
    save_checkpoint(tmp_path, None, {"a": torch.zeros(5)}, {"step": 1})
    folder = tmp_path / "step-00000001"
    damage(folder / "part-000.safetensors", folder / "checkpoint.json")
    with pytest.raises(WeightsError, match=message) as error:
        load_checkpoint(tmp_path, None)
    assert "\n" not in str(error.value) and "start again" in str(error.value)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"task": "digits", "recipe": {"lr": 2e-3, "channels": (24, 32)}}, r"recipe.lr: 0.001 there, 0.002 asked"),
        ({"task": "digits", "recipe": {"lr": 1e-3, "channels": (24, 48)}}, r"recipe.channels: .24, 32. there"),
        ({"task": "cifar10", "recipe": {"lr": 1e-3, "channels": (24, 32)}}, "task: 'digits' there, 'cifar10' asked"),
        ({"task": "digits", "recipe": {"lr": 1e-3, "channels": (24, 32)}, "w": 1}, "w: None there, 1 asked"),
    ],
)
def test_a_checkpoint_of_another_configuration(tmp_path, asked, message):
    config = {"task": "digits", "recipe": {"lr": 1e-3, "channels": (24, 32)}}
    save_checkpoint(tmp_path, config, {}, {"step": 1})
    assert load_checkpoint(tmp_path, config) is not None
    with pytest.raises(FewstepError, match=message):
        load_checkpoint(tmp_path, asked)


def test_a_folder_that_another_training_is_at_work_in(tmp_path):
    state = tmp_path / "state"
    with FileLock(tmp_path / ".state.lock"), pytest.raises(FewstepError, match="another training is at work in"):
        digits_run(state)
    digits_run(state, time_limit=0.0)
    with pytest.raises(Timeout):
        FileLock(tmp_path / ".state.lock").acquire(timeout=0)
    remove_checkpoints(state)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    digits_run(tmp_path, time_limit=0.0)
    write = checkpoint._write

    def full(path, content):
        if path.name == checkpoint.MANIFEST:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_write", full)
        with pytest.raises(FewstepError, match=r"No space left on device.*make room"):
            digits_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert equal(digits_run(tmp_path)[0], digits_run()[0])


def test_a_state_folder_that_cannot_be_written_shows_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FewstepError, match=r"cannot write checkpoints in .*file"):
        train(nn.Linear(1, 1), lambda *_: pytest.fail("trained"), steps=9, batch_size=1, lr=1, state=tmp_path / "file")


@pytest.mark.parametrize("spoil", [lambda loss: loss * float("nan"), lambda loss: loss + (loss * 0).sqrt()])
def test_a_loss_or_gradient_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, spoil):
    """The second loss is finite: 0 under the root has an infinite slope."""
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    model, steps = nn.Linear(1, 1), []

    def loss(generator, step):
        steps.append(len(steps))
        value = model.weight.sum() ** 2
        return spoil(value) if steps[-1] == 5 else value

    with pytest.raises(FewstepError, match=r"became nan at step 5: lower the learning rate; .* keeps"):
        train(model, loss, steps=100, batch_size=1, lr=0.1, state=tmp_path, save_every=-1)
    tensors, progress = load_checkpoint(tmp_path, None)
    assert progress["step"] == 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_restored_moments_lie_in_memory_like_their_parameters():
    """A fused optimiser step runs over both as they lie."""

    def trained():
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return model, EMA(model, 0.9), torch.optim.AdamW(model.parameters())

    model, ema, optimiser = trained()
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimiser.step()
    tensors = {name: t.contiguous() for name, t in loop._state(model, {"ema": ema}, optimiser).items()}
    model, ema, restored = trained()
    loop._restore(tensors, model, {"ema": ema}, restored, 1)
    for parameter, moments in restored.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert moments[name].stride() == parameter.stride()
    for a, b in zip(optimiser.state.values(), restored.state.values(), strict=True):
        assert equal(a, b)


def test_the_command_stops_at_its_time_limit_and_goes_on_from_its_state(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(teachers.RECIPES, "digits", replace(RECIPES["digits"], steps=2, batch_size=8))
    whole, pieces, state = tmp_path / "whole.safetensors", tmp_path / "pieces.safetensors", tmp_path / "state"
    command = ["train", "teacher", "--task", "digits", "--state", str(state)]
    assert main([*command, "--out", str(whole)]) == 0
    assert not state.exists()
    records = []
    for step in (1, 2):
        assert main([*command, "--out", str(pieces), "--time-limit", "0"]) == 0
        records.append(json.loads(pieces.with_suffix(".json").read_text()))
        assert state.exists() == (step == 1)
    assert [record["steps"] for record in records] == [1, 2]
    assert records[1]["sha256"] == json.loads(whole.with_suffix(".json").read_text())["sha256"]
    assert records[0]["sha256"] != records[1]["sha256"]


def test_the_command_refuses_the_state_of_another_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(teachers.RECIPES, "digits", replace(RECIPES["digits"], steps=2, batch_size=8))
    command = ["train", "teacher", "--task", "digits", "--state", str(tmp_path / "state"), "--out", str(tmp_path / "w")]
    assert main([*command, "--time-limit", "0"]) == 0
    capsys.readouterr()
    assert main([*command, "--seed", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: checkpoint") and "seed: 0 there, 1 asked" in error
