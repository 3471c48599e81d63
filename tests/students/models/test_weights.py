import json

import pytest
import torch
from torch import nn

from students.errors import WeightsError
from students.models.weights import load_into, load_weights, record_path, save_weights, verified_hash


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "sub" / "net.safetensors"
    state = {"weight": torch.tensor([[1.0, 1 / 3]]), "steps": torch.tensor([3, 70000])}
    save_weights(path, state, {"task": "digits", "seconds": 1.5})
    return path


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_round_trip_in_half_precision(saved):
    state, record = load_weights(saved)
    assert state["weight"].dtype == torch.float32
    assert state["weight"].tolist() == [[1.0, torch.tensor(1 / 3).half().item()]]
    assert state["steps"].tolist() == [3, 70000]
    assert record["task"] == "digits" and record["sha256"] == verified_hash(saved)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["net.json", "net.safetensors"]


def test_round_trip_in_full_precision(tmp_path):
    path = tmp_path / "net.safetensors"
    weight = torch.randn(3, 4).t()  # not contiguous
    save_weights(path, {"a": weight, "b": weight}, {}, half=False)
    state, _ = load_weights(path)
    assert torch.equal(state["a"], weight) and torch.equal(state["b"], weight)


def test_same_weights_make_the_same_file(saved, tmp_path):
    state, record = load_weights(saved)
    save_weights(tmp_path / "again.safetensors", state, record)
    assert verified_hash(tmp_path / "again.safetensors") == record["sha256"]


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_values_that_do_not_fit_are_not_written(tmp_path, value):
    path = tmp_path / "net.safetensors"
    with pytest.raises(WeightsError, match=r"'w'.*not finite in torch\.float16.*half=False"):
        save_weights(path, {"w": torch.tensor([value])}, {})
    assert list(tmp_path.iterdir()) == []


def test_missing_weights(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights at .*net\.safetensors.*restore") as error:
        load_weights(tmp_path / "net.safetensors")
    one_line(error)


def test_missing_record(saved):
    record_path(saved).unlink()
    with pytest.raises(WeightsError, match=r"lack their record net\.json.*restore"):
        load_weights(saved)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"sha256"'])
def test_unreadable_record(saved, text):
    record_path(saved).write_text(text)
    with pytest.raises(WeightsError, match=r"net\.json is no record"):
        load_weights(saved)


def test_truncated_weights(saved):
    saved.write_bytes(saved.read_bytes()[:-1])
    for read in (load_weights, verified_hash):
        with pytest.raises(WeightsError, match=r"cut short or not those of net\.json") as error:
            read(saved)
        one_line(error)


def test_a_tampered_byte(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(WeightsError, match="sha256 differs"):
        load_weights(saved)


def test_a_file_that_is_no_safetensors(saved):
    import hashlib

    saved.write_bytes(b"not weights at all")
    record_path(saved).write_text(json.dumps({"sha256": hashlib.sha256(b"not weights at all").hexdigest()}))
    with pytest.raises(WeightsError, match="no safetensors file") as error:
        load_weights(saved)
    one_line(error)


def test_load_into():
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    load_into(target, source.state_dict(), "net.safetensors")
    assert torch.equal(target.weight, source.weight) and torch.equal(target.bias, source.bias)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda s: s.pop("bias"), "lack 'bias'"),
        (lambda s: s.update(weight=torch.zeros(3, 5)), r"have 'weight' of shape \(3, 5\), not \(3, 2\)"),
        (lambda s: s.update(extra=torch.zeros(1)), "hold 'extra'"),
    ],
)
def test_load_into_names_what_does_not_fit(change, problem):
    state = nn.Linear(2, 3).state_dict()
    change(state)
    with pytest.raises(WeightsError, match=f"net.safetensors do not fit Linear.*{problem}") as error:
        load_into(nn.Linear(2, 3), state, "net.safetensors")
    one_line(error)
