"""The content of objects as a hash: equal for equal content, another for whatever differs."""

import functools
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
