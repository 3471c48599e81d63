"""Whole numbers of any integer type come in; everything else is refused in one line."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from students.errors import FewstepError
from students.whole import whole_numbers

TYPES = [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


@given(st.lists(st.integers(0, 127), max_size=9), st.sampled_from(TYPES), st.booleans())
def test_any_integer_type(values, dtype, as_tensor):
    array = np.array(values, dtype=dtype)
    found = whole_numbers(torch.from_numpy(array) if as_tensor else array, "seeds")
    assert found.dtype == torch.int64 and found.tolist() == values == whole_numbers(values, "seeds").tolist()


def test_up_to_the_largest():
    assert whole_numbers([2**63 - 1], "seeds").tolist() == [2**63 - 1]
    assert whole_numbers(range(2**40, 2**40 + 2), "seeds").tolist() == [2**40, 2**40 + 1]


@pytest.mark.parametrize(
    "wrong",
    [
        [2**63], [2**64], [-1], [0, -(2**70)], [1.0], [0.5], [float("nan")], ["1"], "12", [True], {1, 2}, 5, None,
        [[1], [2]], [[1], [2, 3]], [None], [1j], np.array([1.0]), np.array(3), torch.tensor([0.5]), object(),
        np.array([2**63], dtype=np.uint64), np.array(["a"], dtype=object), torch.tensor([True]), (i for i in range(2)),
    ],
)  # fmt: skip
def test_others_are_refused_in_one_line(wrong):
    with pytest.raises(FewstepError, match="seeds must be a sequence of non-negative whole numbers") as caught:
        whole_numbers(wrong, "seeds")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 160
