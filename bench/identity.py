"""What a cell's number depends on, and the hash of it. Importing this module imports no torch.

Code is part of it: the hash of a module covers the modules of its own top-level package that it imports,
without comments and docstrings, so that editing a solver gives its cells new ids and editing prose does not.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from students.errors import FewstepError, one_line

NEUTRAL = {"students.errors", "students.provenance", "students.spec"}  # cannot change a number


def digest(identity: dict) -> str:
    """16 hex digits of the sha256 of canonical JSON. Raises FewstepError for values that are not plain and finite."""
    try:
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FewstepError(
            f"options must be finite numbers, text, lists or mappings ({error}): {identity.get('student', identity)}"
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def code_hash(module: str, only: str | None = None) -> str:
    """16 hex digits over the code of a module and of what it imports from its own top-level package.

    only: the name of one function of the module; then just its own code counts.
    """
    seen: dict[str, str] = {}
    if only:
        tree = _parsed(_source(module))  # type: ignore[arg-type]
        seen[only] = "\n".join(ast.unparse(node) for node in tree.body if getattr(node, "name", None) == only)
    else:
        _collect(module, seen)
    return hashlib.sha256("\n".join(f"{name}\n{seen[name]}" for name in sorted(seen)).encode()).hexdigest()[:16]


def _collect(module: str, seen: dict[str, str]) -> None:
    path = _source(module)
    if path is None or module in seen or module in NEUTRAL:
        return
    tree = _parsed(path)
    seen[module] = ast.unparse(tree)
    if "site-packages" in path.parts:
        seen[module] += _version(module)
        return
    for name, members in _imports(tree).items():
        if name.partition(".")[0] != module.partition(".")[0]:
            continue
        _collect(name, seen)
        if (source := _source(name)) and source.name == "__init__.py":
            for member in members:
                _collect(f"{name}.{member}", seen)


def _version(module: str) -> str:
    """The version of the installed distribution of that name; what a module of it imports is then not followed."""
    try:
        return version(module.partition(".")[0])
    except PackageNotFoundError:
        return ""


def _imports(tree: ast.Module) -> dict[str, list[str]]:
    """The modules that a module imports, each with the names taken from it, which may be modules too."""
    imports: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            imports.setdefault(node.module, []).extend(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                imports.setdefault(alias.name, [])
    return imports


def _source(module: str) -> Path | None:
    """The source file of a module, without importing it (only the packages it lies in), or None."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _parsed(path: Path) -> ast.Module:
    """The code of a file without docstrings; raises FewstepError where Python cannot read it."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise FewstepError(f"{path} is no Python: {one_line(error)}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree
