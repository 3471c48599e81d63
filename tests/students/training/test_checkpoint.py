"""Checkpoints: whole or not at all, small files, refused when they are damaged or of another training."""

import errno

import pytest
import torch
from filelock import FileLock, Timeout

from students.errors import FewstepError, WeightsError
from students.training import checkpoint
from students.training.checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from tests.students.training.runs import digits_run, equal


def test_a_kill_in_the_middle_of_a_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    tensors = {"a": torch.arange(3.0)}
    save_checkpoint(tmp_path, None, tensors, {"step": 1})
    with monkeypatch.context() as patched:
        # a killed process tidies nothing
        patched.setattr(checkpoint.shutil, "rmtree", lambda *arguments, **options: None)
        patched.setattr(checkpoint, "write_flushed", lambda path, content: (path.write_bytes(content[:9]), exit(9)))
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
    write = checkpoint.write_flushed

    def full(path, content):
        if path.name == checkpoint.MANIFEST:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_flushed", full)
        with pytest.raises(FewstepError, match=r"No space left on device.*make room"):
            digits_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert equal(digits_run(tmp_path)[0], digits_run()[0])
