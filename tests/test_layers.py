"""Which folder may import which: read from the source, imports inside functions included."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from students.networks import NETWORKS
from students.samplers import SAMPLERS
from students.spec import METHODS, STUDENTS

ROOT = Path(__file__).parents[1]

# From the lowest to the highest; a module belongs to the layer with the longest prefix of its name, and imports from
# its own layer and those below.
LAYERS = [
    ["errors", "files", "options", "datafiles", "devices", "provenance", "nfe", "whole"],
    ["spec", "models.cards"],
    ["diffusion", "networks", "data", "dataset", "datareaders"],
    ["models"],
    ["student"],
    ["solvers"],
    ["samplers"],
    ["conventions"],
    ["loading", "__init__"],
    ["optimised_grids"],
    ["training"],
    ["distillation"],
    ["text"],
    ["__main__"],
]
RANKS = {f"students.{name}": rank for rank, names in enumerate(LAYERS) for name in names}
SAMPLING = [
    "samplers",
    "solvers",
    "networks",
    "diffusion",
    "models",
    "student",
    "nfe",
    "spec",
    "conventions",
    "loading",
]
WITHOUT_TORCH = [
    "students", "students.spec", "students.options", "students.models.teachers", "students.models.weights",
    "students.models.cards", "students.models.found_grids", "students.samplers", "students.samplers.record",
    "students.networks", "students.distillation", "students.__main__", "bench.plan", "bench.tasks", "bench.cli",
    "students.conventions",
]  # fmt: skip
HOOKS = {"register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"}
COUNTERS = ["students/nfe.py", "students/training/history.py", "bench/measure/latency.py"]  # of calls, by hooks


@cache
def sources(package: str) -> dict[str, ast.Module]:
    """Parsed modules by dotted name; a package is its own name, without `__init__`, apart from students itself."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 2:
            parts = parts[:-1]
        found[".".join(parts)] = ast.parse(path.read_text())
    return found


def imports(tree: ast.Module) -> set[str]:
    """The modules that are imported anywhere in a module; `from a import b` names a.b if that is one."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {*sources("students"), *sources("bench")}
            found |= (names & ours) or {node.module}
    return found


def belongs(module: str, *prefixes: str) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def rank(module: str) -> int:
    if module == "students":
        return RANKS["students.__init__"]
    fitting = [prefix for prefix in RANKS if belongs(module, prefix)]
    assert fitting, f"{module} has no layer: give it one in LAYERS"
    return RANKS[max(fitting, key=len)]


@pytest.mark.parametrize("module", sources("students"))
def test_no_import_goes_to_a_higher_layer(module):
    ours = [name for name in imports(sources("students")[module]) if belongs(name, "students")]
    assert [name for name in ours if rank(name) > rank(module)] == []


def test_students_imports_no_bench_and_neither_imports_tests():
    for package, foreign in (("students", ("bench", "tests")), ("bench", ("tests",))):
        for module, tree in sources(package).items():
            assert not [name for name in imports(tree) if belongs(name, *foreign)], module


def test_what_samples_imports_nothing_that_trains():
    """The layers say so too; here is the promise itself, whatever becomes of them."""
    trains = "students.training", "students.distillation"
    for module, tree in sources("students").items():
        if belongs(module, *(f"students.{name}" for name in SAMPLING)):
            assert not [name for name in imports(tree) if belongs(name, *trains)], module
    for module, tree in sources("students").items():
        if belongs(module, "students.training"):
            assert not [name for name in imports(tree) if belongs(name, "students.distillation")], module


@pytest.mark.parametrize(
    "table, package",
    [
        (SAMPLERS, "students.samplers"),
        (NETWORKS, "students.networks"),
        ({name: entry.target for name, entry in STUDENTS.items()}, "students.solvers"),
        ({name: entry.target for name, entry in METHODS.items()}, "students.distillation"),
    ],
)
def test_a_table_points_into_its_own_folder(table, package):
    for target in table.values():
        module, _, attribute = target.partition(":")
        assert belongs(module, package) and module in sources("students"), target
        defined = {node.name for node in sources("students")[module].body if hasattr(node, "name")}
        assert attribute in defined, target


def test_what_plans_and_reports_imports_no_torch():
    reports = [module for module in sources("bench") if belongs(module, "bench.report")]
    modules = [*WITHOUT_TORCH, *reports]
    assert reports
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, f"{{name}} imports torch"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_nothing_outside_of_the_networks_asks_which_one_it_has():
    """`students.networks.network.Network` is the contract: whoever needs a feature asks for it."""
    classes = {
        node.name
        for module, tree in sources("students").items()
        if belongs(module, "students.networks")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    assert {"UNet", "MLP", "SongUNet", "Network"} <= classes
    for package in ("students", "bench"):
        for module, tree in sources(package).items():
            if belongs(module, "students.networks"):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                    named = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node.args[1])}
                    assert not named & classes, f"{module}, line {node.lineno}"


def test_only_counters_hang_hooks_on_networks():
    for package in ("students", "bench"):
        for path in (ROOT / package).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            used = {getattr(node, "attr", "") for node in ast.walk(ast.parse(path.read_text()))} & HOOKS
            assert not used or name in COUNTERS, name
