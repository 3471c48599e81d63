"""Specs and `students.load`: what is found, and what each mistake is answered with."""

import subprocess
import sys
import types

import pytest
import torch

import students
from students.errors import FewstepError
from students.models.teacher import DEFAULT_GRID
from students.solvers.euler import ddim
from students.spec import STUDENTS, TRAINED, import_object, parse
from students.student import SolverStudent, Student


@pytest.mark.parametrize("name", STUDENTS)
def test_every_name_loads_and_samples_on_the_exact_mixture(name):
    student = students.load(name, task="gaussians")
    assert isinstance(student, Student) and student.name == name
    samples = student.sample(32, seeds=range(5))
    assert samples.shape == (5, 2) and samples.dtype == torch.float32 and samples.isfinite().all()


def test_options_of_a_spec_reach_the_solver():
    student = students.load("ddim:eta=1,grid=polynomial,rho=3", task="gaussians")
    assert student.solver_options == {"eta": 1}
    assert (student.grid, student.grid_options) == ("polynomial", {"rho": 3})
    assert student.name == "ddim:eta=1,grid=polynomial,rho=3"
    assert students.load("dpm_solver_pp_3m", task="gaussians").solver_options == {"order": 3}
    assert students.load("heun", task="gaussians", grid="uniform").grid == "uniform"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ddimm", "did you mean 'ddim'"),
        ("ddim:eta", "options are written ddim:key=value"),
        ("ddim:", "nothing follows a colon"),
        ("ecm::a=1", "nothing follows a colon"),
        ("ddim:eta=", "options are written"),
        ("ddim:order=2", "takes no option 'order': it takes eta, grid"),
        ("ddim:grid=unifrom", "did you mean 'uniform'"),
        ("diffusers:DDIMSchedular", "did you mean 'DDIMScheduler'"),
        ("no_such_module:thing", "cannot import 'no_such_module'"),
        ("math:no_such_thing", "has no attribute 'no_such_thing'"),
        ("math:pi", "is no student"),
        ("math:pi:a=1", "takes no options: leave 'a' out"),
        ("mine.py:solver", "'mine.py:solver' names a file: write mine:solver in the folder of mine.py"),
        ("mine.py", "write mine:NAME in the folder"),
        ("..mine:solver", "'..mine:solver' names no module"),
        ("diffusers:heundiscretescheduler", "did you mean 'HeunDiscreteScheduler'"),
        ("ddim:eta=2020-01-01", "eta in 'ddim:eta=2020-01-01' must be finite numbers, text or lists, got 2020-01-01"),
        ("ddim:t_max=.inf", "t_max in .* must be finite numbers"),
        ("ddim:t_min=5", "ddim:t_min=5: grid times must decrease"),
        ("ddim:grid=[1,0.5,0.1]", "cannot run in 4 steps; it supports 2"),
        (f"{__name__}:silent", "takes no noise: a solver is a function"),
        (f"{__name__}:Shapeless", "the shape of .* must be .*, got None"),
    ],
)
def test_mistakes_are_named_in_one_line(spec, message):
    with pytest.raises(FewstepError, match=message) as caught:
        students.load(spec, task="gaussians").sample(4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "checkpoint"), [("sid", "uncond"), ("dmd2", "imagenet64")])
def test_a_name_of_both_is_the_method_and_with_a_checkpoint_the_checkpoint(name, checkpoint):
    assert (parse(name).kind, parse(name).model) == (TRAINED, None)
    assert parse(f"{name}:{checkpoint}").model == f"{name}:{checkpoint}"


def silent(denoise, x, times):
    return x


class Shapeless(Student):
    shape = None


@pytest.mark.parametrize("code", ["def broken(:", "import absent_module", "raise SystemExit(1)", "1 / 0"])
def test_a_module_that_cannot_be_imported(code, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FewstepError, match=r"cannot import 'broken_module' of 'broken_module:thing': [A-Z]"):
        students.load("broken_module:thing", task="gaussians")


def test_a_file_of_code_is_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/mine.py").write_text("")
    for spec in ("sub/mine:solver", "sub/mine.py:solver"):
        with pytest.raises(FewstepError, match=r"names a file: write mine:solver in the folder of mine\.py"):
            students.load(spec, task="gaussians")


def test_unknown_task():
    with pytest.raises(FewstepError, match="did you mean 'digits'"):
        students.load("ddim", task="digit")


@pytest.fixture
def third_party(monkeypatch):
    module = types.ModuleType("third_party")

    def plain(denoise, x, times, *, noise=None, power=1):
        return ddim(denoise, x, times)

    def factory(denoiser, scale=1.0):
        student = SolverStudent(denoiser, ddim)
        student.scale = scale
        return student

    module.plain, module.factory = plain, factory
    monkeypatch.setitem(sys.modules, "third_party", module)
    return module


def test_a_solver_function_and_a_factory_of_ones_own(third_party, mixture):
    plain = students.load("third_party:plain:power=3", task=mixture)
    assert plain.solver_options == {"power": 3}
    made = students.load("third_party:factory:scale=2", task=mixture)
    assert made.scale == 2 and made.name == "third_party:factory:scale=2"
    third_party.ready = made
    assert students.load("third_party:ready") is made
    same = students.load("ddim", task=mixture, grid=plain.grid)
    assert plain.grid == DEFAULT_GRID and torch.equal(plain.sample(4), same.sample(4))


def test_entry_points(monkeypatch, third_party, mixture):
    point = types.SimpleNamespace(name="mine", value="third_party:factory")
    monkeypatch.setattr("students.spec.entry_points", lambda group: [point])
    assert parse("mine").target == "third_party:factory"
    assert students.load("mine", task=mixture).scale == 1.0


@pytest.mark.parametrize(
    "spec, model, target, options",
    [
        ("edm:uncond-vp", "edm:uncond-vp", "solvers.euler:heun", {}),
        ("edm:uncond-vp:ddim", "edm:uncond-vp", "solvers.euler:ddim", {}),
        ("edm:uncond-vp:eta=1", "edm:uncond-vp", "solvers.euler:heun", {"eta": 1}),
        ("edm:cond-vp:dpm_solver_pp:order=3,grid=log_snr", "edm:cond-vp", None, {"order": 3, "grid": "log_snr"}),
        ("edm:cond-vp:dpm_solver_pp_3m", "edm:cond-vp", None, {"order": 3}),
        ("edm:cond-vp:diffusers:EDMEulerScheduler", "edm:cond-vp", None, {"scheduler": "EDMEulerScheduler"}),
        ("sid:uncond", "sid:uncond", "samplers.consistency:consistency", {}),
        ("consistency:imagenet64-ct", "consistency:imagenet64-ct", "samplers.consistency:consistency", {"clip": True}),
        ("consistency:imagenet64-ct:clip=false", "consistency:imagenet64-ct", None, {"clip": False}),
        ("file:a/b=c.safetensors:unipc:order=2", "file:a/b=c.safetensors", "solvers.unipc:unipc", {"order": 2}),
        ("file:folder:consistency:clip=true", "file:folder", "samplers.consistency:consistency", {"clip": True}),
    ],
)
def test_a_spec_may_name_a_checkpoint(spec, model, target, options):
    parsed = parse(spec)
    assert (parsed.name, parsed.model, parsed.options) == (spec, model, options)
    assert target is None or parsed.target == f"students.{target}"


def test_a_family_wins_over_a_module_and_a_name_over_both(monkeypatch):
    for name in ("edm", "ddim"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert parse("edm:uncond-vp").model == "edm:uncond-vp"
    assert parse("ddim:eta=1").target == "students.solvers.euler:ddim" and parse("ddim").model is None
    assert parse("edm:uncond-vp:edm_solvers:mine").target == "edm_solvers:mine"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("edm:uncond-pv", "did you mean 'uncond-vp'"),
        ("edm", "unknown checkpoint of 'edm'"),
        ("edn:uncond-vp:heun", "cannot import 'edn'.*did you mean 'edm'"),
        ("edm:uncond-vp:heunn", "did you mean 'heun'"),
        ("edm:uncond-vp:heun:order", "options are written heun:key=value"),
        ("edm:uncond-vp:heun:order=", "options are written"),
        ("edm:uncond-vp:sid:uncond", "names two models"),
        ("sid:uncond:heun", "sid:uncond is a generator, which samples by itself"),
        ("sid:uncond:clip=true", "samples by itself"),
        ("consistency:imagenet64-ct:heun", "samples by itself"),
        ("file:model.safetensors", "names no solver"),
        ("file:model.safetensors:order=3", "names no solver"),
        ("file", "'file' names no checkpoint: write file:PATH:heun"),
        ("file:", "names no checkpoint"),
    ],
)
def test_mistakes_in_specs_of_checkpoints(spec, message):
    with pytest.raises(FewstepError, match=message) as caught:
        import_object(parse(spec).target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["import students", "import students.spec", "import bench.cli, bench.plan"])
def test_planning_imports_no_torch(command):
    code = f"{command}; import sys; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
