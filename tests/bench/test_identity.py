"""Cell ids change when anything that matters changes, and not otherwise."""

from dataclasses import replace

import pytest

from bench.identity import code_hash, digest
from bench.plan import plan
from bench.tasks import load_task
from students.errors import FewstepError

TASK = load_task("digits")


def ids(task=TASK, runs=(("ddim", 4, 1.0),), dtype="float32"):
    return [cell.id for cell in plan(task, runs, dtype)]


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


def test_more_seed_blocks_keep_the_first_ones():
    assert ids(replace(TASK, seed_blocks=TASK.seed_blocks + 1))[: len(ids())] == ids()


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


def test_digest_rejects_what_is_not_plain_json():
    with pytest.raises(FewstepError, match="finite numbers"):
        digest({"a": {1, 2}})
    with pytest.raises(FewstepError, match="finite numbers"):
        digest({"a": float("nan")})
