"""The options that the signatures of solvers describe."""

import pytest

from students.errors import FewstepError
from students.options import check, describe
from students.spec import STUDENTS, import_object


def options(name):
    return describe(import_object(STUDENTS[name].target), leave_out=("noise", "callback"))


@pytest.mark.parametrize("name", STUDENTS)
def test_defaults_and_the_registry_are_within_range(name):
    known = options(name)
    given = {key: option.default for key, option in known.items()} | STUDENTS[name].options
    assert check(name, given, known) == given


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("unipc", {"order": 4}, "a whole number from 1 to 3"),
        ("unipc", {"variant": "bh3"}, "one of bh1, bh2"),
        ("deis", {"order": -1}, "from 0 to 3"),
        ("ddim", {"eta": 1.5}, "from 0 to 1"),
        ("ddpm", {"variance": "smal"}, "did you mean 'small'"),
        ("edm_stochastic", {"s_churn": -1.0}, "of at least 0"),
        ("rk45", {"tolerance": 0.0}, "above 0"),
    ],
)
def test_values_out_of_range_are_refused(name, option, message):
    with pytest.raises(FewstepError, match=message):
        check(name, option, options(name))
