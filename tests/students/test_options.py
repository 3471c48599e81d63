"""Options by name: how they are described, read from what a user wrote, and checked."""

import math
from dataclasses import dataclass
from typing import Annotated

import pytest

import students
from students.errors import FewstepError
from students.options import Choices, Option, Range, check, describe, parse_assignments, parse_value
from students.solvers.unipc import unipc
from students.spec import parse


@dataclass(frozen=True)
class Some:
    steps: Annotated[int, Range(2, 10_000)] = 18
    rate: Annotated[float, Range(0, open=True)] = 1e-3
    share: Annotated[float, Range(0, 1)] = 0.5
    kind: Annotated[str, Choices("l1", "l2", "pseudo_huber")] = "l2"
    clip: bool = False
    levels: list | None = None
    count: Annotated[int, Range(1, 9)] | None = None


KNOWN = describe(Some)


@pytest.mark.parametrize(
    "text, value",
    [
        ("true", True),
        ("false", False),
        ("3", 3),
        ("-2", -2),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("1.5e+2", 150.0),
        ("[1,2]", [1, 2]),
        ("[0.5, 80]", [0.5, 80]),
        ("quadratic", "quadratic"),
        ("a/b=c", "a/b=c"),
        ("null", None),
    ],
)
def test_values_are_read_as_a_user_means_them(text, value):
    found = parse_value(text, "here")
    assert found == value and type(found) is type(value)


def test_nan_is_read_and_refused_where_a_number_is_asked_for():
    assert math.isnan(parse_value("nan", "here")) and parse_value("inf", "here") == math.inf
    with pytest.raises(FewstepError, match=r"x: share must be a number from 0 to 1, got nan"):
        check("x", {"share": math.nan}, KNOWN)
    with pytest.raises(FewstepError, match=r"x: steps must be a whole number from 2 to 10000, got nan"):
        check("x", {"steps": math.nan}, KNOWN)


@pytest.mark.parametrize(
    "parts, message",
    [
        (["lr"], "cannot read 'lr' in --set: options are written key=value"),
        (["=3"], "cannot read '=3' in --set"),
        (["lr="], "cannot read 'lr=' in --set"),
        (["a b=3"], "cannot read 'a b=3' in --set"),
        (["lr=1", "lr=2"], "option lr is given twice in --set: leave one out"),
        (["lr=[1"], r"cannot read the value '\[1' in --set"),
    ],
)
def test_what_cannot_be_read(parts, message):
    with pytest.raises(FewstepError, match=message) as caught:
        parse_assignments(parts, "--set")
    assert "\n" not in str(caught.value)


def test_a_spec_and_the_command_line_are_read_alike():
    text = "order=2,variant=bh1,levels=[80,0.5,0.002],flag=true,rate=1e-3"
    expected = {"order": 2, "variant": "bh1", "levels": [80, 0.5, 0.002], "flag": True, "rate": 1e-3}
    assert parse(f"unipc:{text}").options == expected
    assert (
        parse_assignments(["order=2", "variant=bh1", "levels=[80,0.5,0.002]", "flag=true", "rate=1e-3"], "") == expected
    )
    with pytest.raises(FewstepError, match="option order is given twice in 'unipc:order=2,order=3'"):
        parse("unipc:order=2,order=3")


def test_a_dataclass_is_described_by_its_fields():
    assert KNOWN["steps"] == Option("steps", int, 18, Range(2, 10_000))
    assert KNOWN["rate"].limit == Range(0, open=True) and KNOWN["clip"].type is bool
    assert KNOWN["levels"] == Option("levels", list, None, None)
    assert (KNOWN["count"].type, KNOWN["count"].default) == (int, None)
    assert describe(Some, ("steps", "rate")).keys() == KNOWN.keys() - {"steps", "rate"}


def test_a_function_is_described_by_its_parameters_with_a_default():
    def solver(denoise, x, times, *, noise=None, order: Annotated[int, Range(1, 3)] = 3, name="a", scale=1.0, any=None):
        """Nothing."""

    known = describe(solver, ("noise",))
    assert known.keys() == {"order", "name", "scale", "any"}
    assert known["order"] == Option("order", int, 3, Range(1, 3))
    assert (known["name"].type, known["scale"].type, known["any"].type) == (str, float, object)
    assert "order" in describe(unipc, ("noise", "callback"))


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 2},
        {"steps": 10_000},
        {"rate": 1e-9},
        {"share": 0.0},
        {"share": 1},
        {"kind": "pseudo_huber"},
        {"clip": True},
        {"levels": [1, 2]},
        {"levels": None},
        {"count": None},
        {"count": 9},
    ],
)
def test_values_that_fit(given):
    checked = check("x", given, KNOWN)
    assert checked == given
    if "share" in given:
        assert type(checked["share"]) is float  # a whole number where any is asked for


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": 1}, "x: steps must be a whole number from 2 to 10000, got 1"),
        ({"steps": 10_001}, "x: steps must be a whole number from 2 to 10000, got 10001"),
        ({"steps": 18.0}, "steps must be a whole number .* got 18.0"),
        ({"steps": True}, "steps must be a whole number .* got True"),
        ({"steps": "many"}, "steps must be a whole number .* got 'many'"),
        ({"steps": None}, "steps must be a whole number .* got None"),
        ({"rate": 0}, "rate must be a number above 0, got 0"),
        ({"rate": -1.0}, "rate must be a number above 0, got -1.0"),
        ({"rate": False}, "rate must be a number above 0, got False"),
        ({"rate": "1e"}, "rate must be a number above 0, got '1e'"),
        ({"share": 1.01}, "share must be a number from 0 to 1, got 1.01"),
        ({"share": [0.5]}, r"share must be a number from 0 to 1, got \[0.5\]"),
        ({"clip": 1}, "clip must be true or false, got 1"),
        ({"clip": "yes"}, "clip must be true or false, got 'yes'"),
        ({"kind": "l3"}, r"kind must be one of l1, l2, pseudo_huber, got 'l3': did you mean 'l[12]'\?"),
        ({"kind": "pseudo-huber"}, "got 'pseudo-huber': did you mean 'pseudo_huber'"),
        ({"kind": "cosine"}, "kind must be one of l1, l2, pseudo_huber, got 'cosine'$"),
        ({"kind": 3}, "kind must be one of l1, l2, pseudo_huber, got 3"),
        ({"levels": 3}, "levels must be a list, got 3"),
        ({"count": 0}, "count must be a whole number from 1 to 9, got 0"),
        ({"step": 3}, r"x takes no option 'step': did you mean 'steps'\? it takes steps, rate, share"),
        ({"zzz": 3}, "x takes no option 'zzz': it takes steps, rate, share"),
    ],
)
def test_values_that_do_not(given, message):
    with pytest.raises(FewstepError, match=message) as caught:
        check("x", given, KNOWN)
    assert "\n" not in str(caught.value)


def test_what_takes_no_options_says_so():
    with pytest.raises(FewstepError, match="x takes no option 'a': it takes none"):
        check("x", {"a": 1}, {})


@pytest.mark.parametrize(
    "limit, words, within, beyond",
    [
        (Range(0), "of at least 0", [0, 1e300], [-1e-9]),
        (Range(0, open=True), "above 0", [1e-300], [0, -1]),
        (Range(1, 3), "from 1 to 3", [1, 3], [0, 4]),
        (Range(1, 3, open=True), "above 1 and up to 3", [1.1, 3], [1, 3.1]),
    ],
)
def test_ranges(limit, words, within, beyond):
    assert str(limit) == words
    assert all(value in limit for value in within) and not any(value in limit for value in beyond)


def test_folders_are_text():
    assert parse("consistency:weights=007").options == {"weights": "007"}
    assert parse("consistency:weights=on").options == {"weights": "on"}


def test_somebodys_annotations_need_not_be_known():
    def solver(denoise, x, times, *, noise=None, order: "Unknown" = 2, either: int | str = 3):  # noqa: F821
        return x

    known = describe(solver, ("noise",))
    assert check("solver", {"order": 3, "either": "a"}, known) == {"order": 3, "either": "a"}


@pytest.mark.parametrize("spec", ["ddim:x", "ddim:eta", "progressive:4"])
def test_options_without_a_value_are_said_to_be_such(spec):
    with pytest.raises(FewstepError, match=r"options are written .*key=value"):
        parse(spec)


@pytest.mark.parametrize("grid", ["5", "[a,b]", "[[1,2]]"])
def test_a_grid_is_a_name_or_times(grid):
    with pytest.raises(FewstepError, match="a grid is a name or a list of times"):
        students.load(f"ddim:grid={grid}", task="gaussians").sample(1)
