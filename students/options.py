"""Options by name: one description of what something takes, one parser for whatever a user writes.

A dataclass describes the options of a method or a sampler by its fields, a function those of a solver by its keyword
parameters: name, type and default, and with `Annotated` a range or the names to choose from,

    order: Annotated[int, Range(1, 3)] = 3

`parse_assignments` reads `key=value`, on the command line and in specs alike; `check` holds values against a
description. Importing this module imports no torch.
"""

import dataclasses
import difflib
import inspect
import json
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass

from students.errors import FewstepError


@dataclass(frozen=True)
class Range:
    """The least and the largest value of a number, both allowed unless `open`, then the least is not."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if self.open else f"of at least {self.low:g}"
        return f"above {self.low:g} and up to {self.high:g}" if self.open else f"from {self.low:g} to {self.high:g}"


class Choices(tuple):
    """The names that an option may have: `Choices("bh1", "bh2")`."""

    def __new__(cls, *names: str):
        return super().__new__(cls, names)


@dataclass(frozen=True)
class Option:
    """One option. type: bool, int, float, str, list, or `object` for anything. limit: a Range, Choices or None."""

    name: str
    type: type
    default: object = None
    limit: Range | Choices | None = None

    def check(self, value, owner: str):
        """The value, a whole number as float where a float is asked for; raises FewstepError for any other."""
        if value is None and self.default is None:
            return value
        if self.type is float and type(value) is int:
            value = float(value)
        fits = self.type is object or (isinstance(value, self.type) and (self.type is bool or type(value) is not bool))
        if fits and self.type in (int, float):
            fits = not math.isnan(value) and (self.limit is None or value in self.limit)
        if fits and isinstance(self.limit, Choices):
            fits = value in self.limit
        if not fits:
            raise FewstepError(f"{owner}: {self.name} must be {self.describe()}, got {value!r}{self._near(value)}")
        return value

    def describe(self) -> str:
        """`a whole number from 1 to 3`, `one of bh1, bh2`, ..."""
        if isinstance(self.limit, Choices):
            return f"one of {', '.join(self.limit)}"
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", list: "a list"}
        return " ".join(filter(None, [words.get(self.type, "a value"), str(self.limit or "")]))

    def _near(self, value) -> str:
        known = self.limit if isinstance(self.limit, Choices) else ()
        close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
        return f": did you mean {close[0]!r}?" if close else ""


def describe(target, leave_out: Iterable[str] = ()) -> dict[str, Option]:
    """The options of a dataclass (its fields) or of a function or class (its parameters with a default)."""
    if dataclasses.is_dataclass(target):
        hints = typing.get_type_hints(target, include_extras=True)
        found = {field.name: (hints[field.name], field.default) for field in dataclasses.fields(target)}
    else:
        hints = _hints(target.__init__ if inspect.isclass(target) else target)
        found = {
            name: (hints.get(name, type(parameter.default)), parameter.default)
            for name, parameter in inspect.signature(target).parameters.items()
            if parameter.default is not parameter.empty
        }
    return {name: _option(name, hint, default) for name, (hint, default) in found.items() if name not in set(leave_out)}


def _hints(function) -> dict:
    """The annotations of a function; anything goes where somebody's name what only a type checker can see."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:
        return dict.fromkeys(inspect.signature(function).parameters, object)


def _option(name: str, hint, default) -> Option:
    limit = None
    while (origin := typing.get_origin(hint)) in (typing.Annotated, typing.Union, types.UnionType):
        parts = typing.get_args(hint)
        if origin is typing.Annotated:
            limit = next((note for note in parts[1:] if isinstance(note, Range | Choices)), limit)
            hint = parts[0]
        else:
            kinds = [part for part in parts if part is not type(None)]
            hint = kinds[0] if len(kinds) == 1 else object
    hint = typing.get_origin(hint) or hint
    known = hint if hint in (bool, int, float, str, list) else object
    return Option(name, known, default, limit)


def check(owner: str, given: dict, known: dict[str, Option]) -> dict:
    """The options given, each checked; raises FewstepError for an unknown one (with the nearest name) or a bad value.

    owner: whose they are, in errors, such as "unipc" or "--set".
    """
    checked = {}
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise FewstepError(f"{owner} takes no option {name!r}: {hint}it takes {', '.join(known) or 'none'}")
        checked[name] = known[name].check(value, owner)
    return checked


def is_plain(value) -> bool:
    """Whether a value is JSON: finite numbers, text, truth values, null, lists and mappings of these."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def parse_assignments(parts: Iterable[str], where: str, texts: Iterable[str] = ()) -> dict:
    """The options in `key=value` texts, values as YAML reads them: true, 3, 0.5, a name, [1, 2].

    where: what they stand in, for errors. texts: keys whose values are text whatever they look like, such as folders.
    Raises FewstepError for a part that is none, or a key given twice.
    """
    options = {}
    for part in parts:
        key, equals, text = part.partition("=")
        if not (equals and text and key.isidentifier()):
            raise FewstepError(f"cannot read {part!r} in {where}: options are written key=value")
        if key in options:
            raise FewstepError(f"option {key} is given twice in {where}: leave one out")
        options[key] = text if key in set(texts) else parse_value(text, where)
        if not is_plain(options[key]):
            raise FewstepError(f"{key} in {where} must be finite numbers, text or lists, got {text}")
    return options


def parse_value(text: str, where: str):
    """What a user wrote after `=`: YAML, with 1e-3 a number too."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FewstepError(f"cannot read the value {text!r} in {where}: write a number, a name or [1, 2]") from error
    if isinstance(value, str):
        try:
            return float(value)  # YAML wants a dot in 1e-3
        except ValueError:
            return value
    return value
