"""YAML mappings into dataclasses, with errors that name the file and the key: tasks, protocols, cards of references."""

import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TypeVar

import yaml

from students.errors import FewstepError, unknown

T = TypeVar("T")


def read_mapping(path: Path, kind: str) -> dict:
    """The mapping that a YAML file holds; raises FewstepError for another content, and for keys given twice."""
    try:
        text = path.read_text()
        content, tree = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise FewstepError(f"cannot read the {kind} file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FewstepError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise FewstepError(f"{path} must be a YAML mapping of {kind} keys to values")
    keys = [key.value for key, _ in tree.value]  # type: ignore[union-attr]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise FewstepError(f"{path}: key {twice[0]!r} is given twice: leave one out")
    return content


def filled(cls: type[T], content: dict, path: Path) -> T:
    """A dataclass of these keys and values; raises FewstepError for a key that is unknown, missing, or of another type.

    Types: int, float, str, dict, None, tuples of one of them, and unions.
    """
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise FewstepError(f"{path}: {unknown('key', str(key), known)}")
    for key, field in known.items():
        if key not in content and field.default is MISSING and field.default_factory is MISSING:
            raise FewstepError(f"{path}: key {key!r} is missing ({_describe(field.type)})")
    values = {}
    for key, value in content.items():
        expected = known[key].type
        if typing.get_origin(expected) is tuple and isinstance(value, list):
            value = tuple(value)
        if not _matches(value, expected):
            raise FewstepError(f"{path}: key {key!r} must be {_describe(expected)}, got {content[key]!r}")
        values[key] = value
    return cls(**values)


def _matches(value, expected) -> bool:
    if typing.get_origin(expected) is tuple:
        return isinstance(value, tuple) and all(_matches(item, typing.get_args(expected)[0]) for item in value)
    if isinstance(expected, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(expected))
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is type(None):
        return value is None
    return isinstance(value, expected) and not isinstance(value, bool)


_WORDS = {int: "a whole number", float: "a number", str: "text", dict: "a mapping", type(None): "null"}


def _describe(expected) -> str:
    if typing.get_origin(expected) is tuple:
        return f"a list, each {_WORDS[typing.get_args(expected)[0]]}"
    if isinstance(expected, types.UnionType):
        return " or ".join(_WORDS[option] for option in typing.get_args(expected))
    return _WORDS[expected]
