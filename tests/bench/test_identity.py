"""Cell ids change when anything that matters changes, and not otherwise."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.identity import _collect, code_hash, digest
from bench.plan import REAL, TEACHER, plan
from bench.tasks import load_task
from students.errors import FewstepError
from students.models.found_grids import grid_path, read_record, write_record
from students.spec import STUDENTS

TASK = load_task("digits")
ROOT = Path(__file__).parents[2]


def ids(task=TASK, runs=(("ddim", 4, 1.0),), dtype="float32"):
    return [cell.id for cell in plan(task, runs, dtype) if cell.student != TEACHER]


def test_the_same_plan_has_the_same_ids():
    assert ids() == ids()
    assert len(set(ids())) == len(ids()) == 1 + TASK.seed_blocks


@pytest.mark.parametrize(
    "changed",
    [
        lambda: ids(runs=[("ddim", 5, 1.0)]),
        lambda: ids(runs=[("ddim", 4, 2.0)]),
        lambda: ids(runs=[("heun", 4, 1.0)]),
        lambda: ids(runs=[("ddim:eta=1", 4, 1.0)]),
        lambda: ids(runs=[("ddim:grid=uniform", 4, 1.0)]),
        lambda: ids(dtype="bfloat16"),
        lambda: ids(replace(TASK, version=TASK.version + 1)),
        lambda: ids(replace(TASK, samples=TASK.samples - 1)),
        lambda: ids(replace(TASK, rounding="truncate")),
        lambda: ids(replace(TASK, grid="uniform" if TASK.grid != "uniform" else "log_snr")),
        lambda: ids(replace(TASK, teacher="gaussians")),
    ],
)
def test_what_can_change_a_number_changes_the_id(changed):
    assert not set(changed()[1:]) & set(ids()[1:])


@pytest.mark.parametrize(
    "changed",
    [
        lambda: ids(replace(TASK, summary="other words")),
        lambda: ids(replace(TASK, batch_size=7)),
        lambda: ids(replace(TASK, metrics=TASK.metrics[:1])),
        lambda: ids(replace(TASK, students=("heun",))),
        lambda: ids(replace(TASK, steps=(1,))),
        lambda: ids(runs=[("ddim", 4, 1)]),
    ],
)
def test_what_cannot_change_a_number_does_not(changed):
    assert changed() == ids()


def test_a_convention_is_of_the_id_and_nothing_of_the_ids_without():
    """A grid is not of an id with a convention: the teacher's or the task's does not count there."""
    names = [
        "heun",
        "heun:afs=true",
        "heun:convention=edm",
        "heun:convention=edm,rho=5",
        "heun:convention=edm,afs=true",
    ]
    cells = {name: plan(TASK, [(name, 4, 1.0)])[-1] for name in names}
    assert len({cell.id for cell in cells.values()}) == len(names)
    parts = {name: cell.identity["student"] for name, cell in cells.items()}
    assert parts["heun"]["options"] == {"grid": "polynomial"}
    assert parts["heun:convention=edm"]["options"] == {"convention": "edm"}
    code = [code_hash("students.solvers.euler"), code_hash("students.student")]
    own = {key: code_hash(f"students.conventions.{key}") for key in ("student", "afs")}
    assert parts["heun"]["code"] == code
    assert parts["heun:convention=edm"]["code"] == [*code, own["student"]]
    assert parts["heun:afs=true"]["code"] == [*code, own["afs"]]
    assert parts["heun:convention=edm,afs=true"]["code"] == [*code, own["student"], own["afs"]]


def test_what_every_cell_of_a_solver_hashes_knows_no_convention():
    """So that conventions can change without making the cells of other solvers anew."""
    seen: dict[str, str] = {}
    for module in ("students.student", *(entry.target.partition(":")[0] for entry in STUDENTS.values())):
        _collect(module, seen)
    assert "students.student" in seen and not [name for name in seen if name.startswith("students.conventions")]


def test_more_seed_blocks_keep_the_first_ones():
    assert ids(replace(TASK, seed_blocks=TASK.seed_blocks + 1))[: len(ids())] == ids()


def test_blocks_that_begin_later_are_those_of_the_same_number():
    many = plan(replace(TASK, seed_blocks=3), [("ddim", 4, 1.0)])
    later = plan(replace(TASK, seed_blocks=1), [("ddim", 4, 1.0)], first_block=2)
    assert [cell.id for cell in many if cell.seed_block == 2] == [cell.id for cell in later if cell.student != REAL]
    assert later[-1].block == range(2 * TASK.samples, 3 * TASK.samples)


def test_code_hash_sees_code_and_not_prose(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "hashed_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    helper, solver = package / "helper.py", package / "solver.py"
    helper.write_text("HALF = 0.5\n")
    solver.write_text('"""Prose."""\nfrom hashed_package.helper import HALF\n\ndef f(x):\n    return HALF * x\n')

    def current():
        code_hash.cache_clear()
        return code_hash("hashed_package.solver")

    original = current()
    solver.write_text(solver.read_text().replace("Prose.", "Other prose.") + "# and a comment\n")
    assert current() == original
    helper.write_text("HALF = 0.25\n")
    assert current() != original
    code_hash.cache_clear()


def test_code_that_python_cannot_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "unreadable_module.py").write_text("def solver(:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FewstepError, match=r"unreadable_module\.py is no Python: SyntaxError"):
        code_hash("unreadable_module")


def test_digest_rejects_what_is_not_plain_json():
    with pytest.raises(FewstepError, match="finite numbers"):
        digest({"a": {1, 2}})
    with pytest.raises(FewstepError, match="finite numbers"):
        digest({"a": float("nan")})


IDS = """
from bench.plan import REAL, TEACHER, plan
from bench.tasks import load_task
import sys
for name in ("digits", "gaussians"):
    task = load_task(name)
    print([cell.id for cell in plan(task, [(spec, 2, 1.0) for spec in task.students])])
assert "torch" not in sys.modules, "planning loads no torch"
"""


@pytest.mark.slow
def test_training_code_is_no_part_of_a_cell(tmp_path):
    for package in ("students", "bench"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def planned():
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", IDS]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    before = planned()
    trains = [*tmp_path.glob("students/distillation/**/*.py"), *tmp_path.glob("students/training/**/*.py")]
    for path in trains:
        path.write_text(path.read_text() + "\nANOTHER_STATEMENT = 1\n")
    assert len(trains) > 10 and planned() == before
    solvers = tmp_path / "students/solvers/euler.py"
    solvers.write_text(solvers.read_text() + "\nANOTHER_STATEMENT = 1\n")
    assert planned() != before


@pytest.mark.parametrize("module", ["bench.plan", "bench.report", "bench.store", "bench.cli", "bench.executors"])
def test_modules_that_import_no_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_times_of_a_found_grid_are_part_of_the_id_not_where_they_lie(tmp_path):
    record = read_record(grid_path("gits", "digits"))

    def of_times(name: str, record: dict) -> list[str]:
        write_record(tmp_path / name, record)
        return ids(runs=[(f"unipc:grid={tmp_path / name}", 4, 1.0)])[1:]

    first = of_times("a.json", record)
    assert of_times("b.json", record) == first
    assert of_times("c.json", {**record, "commit": "another", "cost": {**record["cost"], "seconds": 0}}) == first
    times = record["times"]
    assert of_times("d.json", {**record, "times": {**times, "5": times["5"][::-1]}}) == first, "of other steps"
    moved = [times["4"][0], times["4"][1] * 1.001, *times["4"][2:]]
    assert not set(of_times("e.json", {**record, "times": {**times, "4": moved}})) & set(first)


def test_found_grids_have_ids_of_their_own():
    names = ["unipc", *(f"unipc:grid={grid}" for grid in ("quadratic", "gits", "ays", "best"))]
    found = [ids(runs=[(name, 4, 1.0)])[1] for name in names]
    assert len(set(found)) == len(names)
    assert ids(runs=[("unipc:grid=log_snr", 4, 1.0)]) == ids(runs=[("unipc", 4, 1.0)]), "its authors' grid by name"
    with pytest.raises(FewstepError, match="no grid of euler_maruyama"):
        ids(runs=[("euler_maruyama:grid=best", 4, 1.0)])
