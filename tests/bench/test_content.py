"""The content of objects as a hash: equal for equal content, another for whatever differs."""

import functools
import importlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from bench.content import Unknown, content_hash


class Thing:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def closure(value):
    return lambda: value


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 2), (1, 1.0), ("1", 1), ([1, 2], [2, 1]), ({"a": 1}, {"a": 2}), ({1, 2}, {1, 3}), (None, False),
        (torch.zeros(2), torch.zeros(3)), (torch.zeros(2), torch.zeros(2).double()), (np.zeros(2), np.ones(2)),
        (Thing(a=torch.zeros(2)), Thing(a=torch.ones(2))), (Thing(a=[Thing(b=1)]), Thing(a=[Thing(b=2)])),
        (closure(1), closure(2)), (functools.partial(max, 1), functools.partial(max, 2)), (Thing(f=max), Thing(f=min)),
    ],
)  # fmt: skip
def test_what_differs_differs(a, b):
    assert content_hash(a) != content_hash(b) and content_hash(a) == content_hash(a)


def test_modules_count_with_all_that_they_hold():
    def module(scale=1.0, buffer=0.0):
        made = nn.Linear(2, 2)
        nn.init.ones_(made.weight), nn.init.zeros_(made.bias)
        made.register_buffer("apart", torch.full((2,), buffer), persistent=False)
        made.scale = scale
        return made

    assert content_hash(module()) == content_hash(module())
    assert len({content_hash(module()), content_hash(module(scale=2.0)), content_hash(module(buffer=1.0))}) == 3


def test_cycles_end():
    thing = Thing()
    thing.itself = [thing]
    assert content_hash(thing) == content_hash(thing)


def test_what_cannot_be_seen_is_named():
    with pytest.raises(Unknown, match="generator"):
        content_hash(Thing(rows=(i for i in range(3))))


def test_another_process_finds_the_same():
    code = "from bench.content import content_hash as h; import torch; print(h({'a': {'x', 'y'}, 'b': torch.ones(3)}))"
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert found == {content_hash({"a": {"x", "y"}, "b": torch.ones(3)}) + "\n"}


OWN = """
import functools, logging
import numpy as np
from dataclasses import dataclass
import helper

logger = logging.getLogger(__name__)
level = {level}

class Base:
    shift = {shift}

    @functools.cached_property
    def scale(self):
        return {scale}

@dataclass
class Model(Base):
    name: str = "a"

    def __call__(self, x):
        "{prose}"
        logger.info("called")
        return level * x + self.shift + helped(x) + helper.table[0]

def helped(x):
    return np.load({path!r}) + x
"""
GIVEN = {"level": 1.0, "shift": 0.0, "scale": 2.0, "prose": "Says what it does."}


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    """The hash of a model of one's own, written as a module with what is given."""
    monkeypatch.syspath_prepend(tmp_path)

    def written(table=0.0, file=0.0, **changes):
        np.save(tmp_path / "level.npy", file)
        (tmp_path / "helper.py").write_text(f"table = [{table}]")
        (tmp_path / "own_model.py").write_text(OWN.format(**GIVEN | changes, path=str(tmp_path / "level.npy")))
        sys.modules.pop("own_model", None), sys.modules.pop("helper", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()
        return content_hash(importlib.import_module("own_model").Model())

    yield written
    sys.modules.pop("own_model", None), sys.modules.pop("helper", None)


def test_prose_of_ones_own_code_does_not_count(hash_of):
    assert hash_of() == hash_of() == hash_of(prose="Says it better.")


@pytest.mark.parametrize(
    "change", [{"level": 2.0}, {"shift": 1.0}, {"scale": 3.0}, {"file": 1.0}, {"table": 1.0}], ids=repr
)
def test_what_ones_own_code_refers_to_counts(change, hash_of):
    assert hash_of(**change) != hash_of()


def test_a_name_stands_for_the_content_of_its_file(tmp_path):
    found = []
    for content in (b"a", b"b", b"a"):
        (tmp_path / "weights").write_bytes(content)
        found.append((content_hash(Thing(path=tmp_path / "weights")), content_hash([str(tmp_path / "weights")])))
    assert found[0] == found[2] and not set(found[0]) & set(found[1])
    assert content_hash("x" * 10_000) and content_hash("a\0b")


def test_a_file_that_cannot_be_read_is_unknown(tmp_path, monkeypatch):
    (tmp_path / "weights").write_bytes(b"a")
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError()))
    with pytest.raises(Unknown, match="weights"):
        content_hash(str(tmp_path / "weights"))
