"""The grid of each solver, and grids from files: which teacher, solver and steps they are of, and what is refused."""

import json

import pytest

import students
from students.diffusion.grids import GRIDS, make_grid
from students.diffusion.schedules import VE
from students.errors import FewstepError, UnsupportedSteps
from students.models import found_grids
from students.models.found_grids import read_record, solver_key, write_record
from students.models.weights import state_hash
from students.spec import STUDENTS, parse
from students.student import SolverStudent
from tests.conftest import make_mixture

PAPERS = {
    "uniform": "ddpm euler_maruyama predictor_corrector adaptive_sde rk45 pndm ipndm sds nfsd",
    "quadratic": "ddim deis",
    "polynomial": "euler heun dpm2 edm_stochastic ipndm_v",
    "log_snr": "dpm_solver_2 dpm_solver_3 dpm_solver dpm_solver_pp dpm_solver_pp_3m dpm_solver_pp_2s dpm_solver_pp_sde "
    "unipc unipc_2",
}
TIMES = {"1": [1.0, 0.001], "2": [1.0, 0.25, 0.001]}
COST = {"evaluations": 640, "relative": 0.5, "seconds": 1.5}


@pytest.mark.parametrize(("grid", "name"), [(grid, name) for grid in PAPERS for name in PAPERS[grid].split()])
def test_a_solver_takes_the_grid_of_its_authors(grid, name):
    student = students.load(name, task="gaussians")
    assert student.grid == STUDENTS[name].grid.name == grid and STUDENTS[name].grid.source
    assert SolverStudent(make_mixture(), name, **options_of(name)).grid == grid
    for other in GRIDS:
        assert students.load(f"{name}:grid={other}", task="gaussians").grid == other
        assert students.load(name, task="gaussians", grid=other).grid == other


def options_of(name: str) -> dict:
    return {} if name not in ("adaptive_sde", "rk45") else {"tolerance": 0.1}


def test_every_solver_has_one():
    assert sorted(STUDENTS) == sorted(" ".join(PAPERS.values()).split())


def test_steps_in_the_time_of_a_vp_schedule_say_nothing_of_a_ve_one():
    exploding = make_mixture(VE())
    exploding.grid = "polynomial"
    grids = {name: students.load(name, task=exploding).grid for name in ("ddim", "ipndm", "unipc", "heun")}
    assert grids == {"ddim": "polynomial", "ipndm": "polynomial", "unipc": "log_snr", "heun": "polynomial"}


@pytest.fixture
def mixture():
    return make_mixture()


@pytest.fixture
def found(tmp_path, mixture):
    """A file of a grid for the mixture, and one of best grids."""
    about = {"teacher": {"name": "mixture", "hash": state_hash(mixture)}}
    write_record(tmp_path / "own.json", {"method": "gits", **about, "cost": COST, "times": TIMES})
    steps = {"2": {"grid": "uniform", "times": [1.0, 0.5, 0.001], "distances": {"uniform": 0.5, "gits": None}}}
    solvers = {"heun": {"cost": COST, "steps": steps}, "ddim:eta=1": {"cost": COST, "steps": steps}}
    write_record(tmp_path / "best.json", {"method": "best", **about, "solvers": solvers})
    return tmp_path


def test_a_file_serves_any_solver_at_its_own_step_counts(found, mixture):
    for name in ("unipc", "heun", "dpm_solver", "euler_maruyama"):
        student = students.load(f"{name}:grid={found / 'own.json'}", task=mixture)
        assert list(student.supported_steps) == [1, 2] and student.times(2).tolist() == TIMES["2"]
        assert student.grid_name(2) == "gits" and student.training == COST
        assert student.sample(2, seeds=range(3)).isfinite().all()
        with pytest.raises(UnsupportedSteps, match="cannot run in 3 steps; it supports 1, 2"):
            student.sample(3)
    assert list(students.load("pndm", task=mixture, grid=str(found / "own.json")).supported_steps) == []


def test_a_file_of_best_grids_says_which(found, mixture):
    student = students.load(f"heun:grid={found / 'best.json'}", task=mixture)
    assert student.grid_name(2) == "uniform" and list(student.supported_steps) == [2]
    uniform = make_grid([1.0, 0.5, 0.001], mixture.schedule, 2)
    assert student.times(2).tolist() == uniform.tolist()
    assert students.load("ddim:eta=1", task=mixture, grid=str(found / "best.json")).grid_name(2) == "uniform"


def test_solvers_are_called_by_what_sets_them_apart():
    names = ["heun", "dpm_solver_pp_3m", "dpm_solver_pp:order=3", "ddim:eta=1", "edm:uncond-vp:unipc"]
    keys = [solver_key(parse(name)) for name in names]
    assert keys == ["heun", "dpm_solver_pp_3m", "dpm_solver_pp:order=3", "ddim:eta=1", "unipc"]
    assert solver_key(parse("ddim:eta=1,grid=best")) == "ddim:eta=1" and solver_key(parse("heun:grid=gits")) == "heun"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unipc:grid={}/best.json", "no grid of unipc: `python -m bench tune TASK --students unipc` adds it"),
        ("unipc:grid={}/none.json", "there is no file of grids .*none.json: `python -m students schedule gits"),
        (
            "unipc:grid=gits",
            "no gits grid ships for this teacher: `python -m students schedule gits --task TEACHER --out",
        ),
        ("unipc:grid=best", "no best grid ships for this teacher: name a grid, or the path of a file"),
        ("unipc:grid={}/own.json,rho=3", "takes no option 'rho'|rho"),
        ("rk45:grid={}/own.json", "chooses its own steps"),
    ],
)
def test_what_is_refused_in_one_line(found, mixture, spec, message):
    with pytest.raises(FewstepError, match=message) as caught:
        students.load(spec.format(found), task=mixture)
    assert "\n" not in str(caught.value)


def test_another_teacher_is_refused(found, mixture):
    mixture.means[0, 0] += 1
    with pytest.raises(FewstepError, match="found for another teacher: `python -m students schedule"):
        students.load(f"unipc:grid={found / 'own.json'}", task=mixture)


def test_a_grid_that_ships_is_of_the_teacher_that_ships(monkeypatch, tmp_path):
    for task in ("digits", "gaussians"):
        for grid in ("gits", "ays", "best"):
            student = students.load(f"unipc:grid={grid}", task=task)
            assert {1, 2, 4, 8, 16} <= set(student.supported_steps), (task, grid)
            assert student.training["evaluations"] > 10_000 and student.training["relative"] < 10
    assert students.load("unipc:grid=gits", task="digits", dtype="bfloat16").supported_steps
    monkeypatch.setattr(found_grids, "weights_folder", lambda teacher: tmp_path)
    command = "`python -m students schedule ays --task digits` makes it"
    with pytest.raises(FewstepError, match=f"there is no ays grid of digits: {command}"):
        students.load("unipc:grid=ays", task="digits")
    with pytest.raises(
        FewstepError, match="there is no best grid of digits: `python -m bench tune digits --students unipc`"
    ):
        students.load("unipc:grid=best", task="digits")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"method": "gits", "teacher": {"hash": "a"}}',
        '{"method": "gits", "teacher": 1, "times": {"1": 2}}',
    ],
)
def test_a_damaged_file_is_named(tmp_path, mixture, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(FewstepError, match=r"broken\.json") as caught:
        students.load(f"unipc:grid={path}", task=mixture)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("times", [[1.0, 1.5, 0.001], [1.0, 0.001], ["a", "b", "c"], [1.0, float("nan"), 0.001]])
def test_times_that_are_none_are_refused(found, mixture, times):
    path = found / "own.json"
    path.write_text(json.dumps(read_record(path) | {"times": {"2": times}}))
    with pytest.raises(FewstepError):
        students.load(f"unipc:grid={path}", task=mixture)


def test_a_file_is_read_as_it_was_written_a_line_for_each_step_count(tmp_path, monkeypatch):
    path, record = tmp_path / "a.json", {"method": "gits", "teacher": {"name": "x"}, "times": TIMES, "cost": COST}
    write_record(path, record)
    assert read_record(path) == record
    assert '  "2": [1.0, 0.25, 0.001]\n' in path.read_text()

    def cut(path, content):
        path.write_bytes(content[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr("students.files.write_flushed", cut)
    with pytest.raises(KeyboardInterrupt):
        write_record(path, {**record, "method": "ays"})
    assert read_record(path) == record and list(tmp_path.iterdir()) == [path]
