"""From weights to a student: what the record says is enough, and nothing that trains is imported."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

import students
from students.errors import FewstepError, Unsupported, WeightsError
from students.models.teachers import weights_folder
from students.models.weights import save_weights
from students.nfe import count_nfe
from students.samplers import SAMPLERS, Sampler, make
from students.samplers.levels import StagedStudent
from students.samplers.load import load_trained
from students.samplers.record import RECORDED, SAMPLING, read_records, trained_identity, weights_files
from students.spec import METHODS, parse

TASKS = ("digits", "gaussians")
SHIPPED = [(method, task) for task in TASKS for method in METHODS
           if any(weights_folder(task).glob(f"{method}*.safetensors"))]  # fmt: skip

ALONE = """
import sys

import students
from students.models import load
from students.samplers import load as sampling

made = []

def no_teacher(*arguments, **named):
    raise AssertionError("a teacher was loaded")

load.load_teacher = load.load_start = sampling.load_start = no_teacher
from students.networks.unet import UNet

def counted(self, *arguments, **named):
    made.append(self)
    return init(self, *arguments, **named)

init, UNet.__init__ = UNet.__init__, counted
student = students.load("consistency", task="digits")
assert student.sample(2, seeds=range(3)).shape == (3, 1, 8, 8)
assert len(made) == 1, f"{len(made)} networks were built"
trains = [name for name in sys.modules if name.startswith(("students.distillation", "students.training"))]
assert not trains, trains
"""


def test_sampling_needs_one_network_no_teacher_and_nothing_that_trains():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_method_ships_where_it_can():
    """The task of digits has classes, so all; without them guidance cannot be distilled."""
    assert {method for method, task in SHIPPED if task == "digits"} == set(METHODS)
    assert {method for method, task in SHIPPED if task == "gaussians"} == set(METHODS) - {"guidance", "lcm"}


@pytest.mark.parametrize("method, task", SHIPPED)
def test_the_weights_that_ship_load_and_sample(method, task):
    student = students.load(method, task=task)
    shape = (1, 8, 8) if task == "digits" else (2,)
    assert student.family == "distilled" and student.shape == shape and student.name == method
    assert student.training["evaluations"] > 0 and student.training["relative"] > 0
    for steps in [n for n in (1, 2, 4, 8) if n in student.supported_steps]:
        with count_nfe(student) as nfe:
            samples = student.sample(steps, seeds=range(3))
        assert samples.shape == (3, *shape) and samples.isfinite().all()
        assert nfe.per_image == (4 if method == "dsno" else steps)
    torch.testing.assert_close(student.sample(steps, seeds=[2])[0], samples[2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method, task", SHIPPED)
def test_the_records_that_ship_say_all_that_sampling_needs(method, task):
    records = read_records(weights_files(None, method, task), method, task)
    for record in records.values():
        assert record.keys() >= {*SAMPLING, *RECORDED}
        assert record["sampler"]["name"] in SAMPLERS
        assert (record["prior"] is None) == (task == "gaussians")
    identity, modules = trained_identity(parse(method), task)
    assert identity["stages"].keys() == records.keys() and len(modules) == 2
    assert all("weights" in stage and "evaluations" not in stage for stage in identity["stages"].values())
    assert not [name for name in modules if "distillation" in name or "training" in name]


# Weights and records that are not right


@pytest.fixture
def folder(tmp_path):
    """A copy of what ships for the Gaussians, of two methods."""
    for name in ("consistency", "tract-4", "tract-1"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(weights_folder("gaussians") / f"{name}{suffix}", tmp_path)
    return tmp_path


def change(path, without=(), **changes):
    """Change keys of a record, or leave some out."""
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if key not in without}))


@pytest.mark.parametrize("key", ["sampler", "model", "teacher", "before", "quality_curve"])
def test_a_record_of_an_earlier_version_is_refused(folder, key):
    change(folder / "consistency.json", without=[key])
    with pytest.raises(WeightsError, match=f"lacks '{key}': it is not whole, or of an earlier version; train") as error:
        students.load(f"consistency:weights={folder}", task="gaussians")
    assert "\n" not in str(error.value)


def test_stages(folder):
    student = students.load(f"tract:weights={folder}", task="gaussians")
    assert isinstance(student, StagedStudent) and student.supported_steps == (1, 4)
    assert len(student.networks()) == 2
    with pytest.raises(Unsupported, match="it supports 1, 4"):
        student.sample(2)
    shutil.copy(folder / "tract-1.safetensors", folder / "tract-final.safetensors")
    with pytest.raises(WeightsError, match=r"tract-final\.safetensors is no stage of tract: stages are named by their"):
        students.load(f"tract:weights={folder}", task="gaussians")
    (folder / "tract-final.safetensors").unlink()
    change(folder / "tract-1.json", seed=7)
    with pytest.raises(WeightsError, match=r"the stages of tract in .* differ in seed"):
        students.load(f"tract:weights={folder}", task="gaussians")


def test_weights_that_are_missing_cut_short_or_of_another_method_or_task(folder):
    with pytest.raises(WeightsError, match="python -m students train boot --task gaussians"):
        load_trained("boot", "gaussians", folder)
    with pytest.raises(WeightsError, match="is consistency of gaussians, not consistency of digits"):
        load_trained("consistency", "digits", folder)
    for suffix in (".safetensors", ".json"):
        shutil.copy(folder / f"consistency{suffix}", folder / f"ctm{suffix}")
    with pytest.raises(WeightsError, match="is consistency of gaussians, not ctm"):
        load_trained("ctm", "gaussians", folder)
    path = folder / "consistency.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="cut short"):
        load_trained("consistency", "gaussians", folder)
    (folder / "consistency.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_trained("consistency", "gaussians", folder)


def test_a_sampler_that_uses_its_teacher_knows_it_by_its_hash(folder):
    for suffix in (".safetensors", ".json"):
        shutil.copy(weights_folder("gaussians") / f"genie{suffix}", folder)
    assert students.load(f"genie:weights={folder}", task="gaussians").sample(2).shape == (16, 2)
    record = json.loads((folder / "genie.json").read_text())
    change(folder / "genie.json", teacher=record["teacher"] | {"hash": "0" * 16})
    with pytest.raises(WeightsError, match="was distilled from another teacher of gaussians"):
        students.load(f"genie:weights={folder}", task="gaussians")


# Options


def test_options_of_a_sampler_stand_in_a_spec():
    plain, noisy = students.load("ctm", task="gaussians"), students.load("ctm:gamma=0.5", task="gaussians")
    assert plain.solver_options == {"gamma": 0.0} and noisy.solver_options == {"gamma": 0.5}
    assert noisy.name == "ctm:gamma=0.5"
    assert plain.sample(1).equal(noisy.sample(1)) and not plain.sample(4).equal(noisy.sample(4))
    uniform, other = (students.load(f"reflow{options}", task="digits") for options in ("", ":grid=log_snr"))
    assert (uniform.grid, other.grid) == ("uniform", "log_snr")
    ddim = students.load("consistency:solver=ddim", task="gaussians")
    assert not ddim.sample(4).equal(students.load("consistency", task="gaussians").sample(4))


@pytest.mark.parametrize(
    "spec, message",
    [
        ("ctm:gamma=2", r"sampler 'leaps': gamma must be a number from 0 to 1, got 2"),
        ("ctm:gama=1", r"sampler 'leaps' takes no option 'gama': did you mean 'gamma'\?"),
        ("consistency:solver=heun", r"sampler 'levels': solver must be one of ddim, consistency, got 'heun'"),
        ("reflow:grid=unifrom", "grid must be one of .*did you mean 'uniform'"),
        ("boot:steps=2", "sampler 'signal' takes no option 'steps': it takes none"),
        ("genie:teacher=x", "takes no option 'teacher'"),
        ("consistency:levels=9", "takes no option 'levels'"),
        ("consistency:prior=9", "takes no option 'prior'"),
        ("consistency:model=9", "takes no option 'model'"),
        ("consistency:device=cpu", "takes no option 'device'"),
        ("consistency:method=ctm", "takes no option 'method'"),
        ("consistency:weights=nowhere", "no weights of consistency in nowhere"),
    ],
)
def test_bad_options_are_named_in_one_line(spec, message):
    with pytest.raises(FewstepError, match=message) as caught:
        students.load(spec, task="gaussians")
    assert "\n" not in str(caught.value)


def test_an_unknown_sampler_of_a_record(folder):
    with pytest.raises(FewstepError, match="unknown sampler 'leap': did you mean 'leaps'"):
        make(Sampler("leap"), None)
    change(folder / "consistency.json", sampler={"name": "level", "options": {}})
    with pytest.raises(FewstepError, match="unknown sampler 'level': did you mean 'levels'"):
        students.load(f"consistency:weights={folder}", task="gaussians")


def test_weights_of_another_network_are_refused(folder):
    path = folder / "consistency.safetensors"
    record = json.loads((folder / "consistency.json").read_text())
    save_weights(path, {"network.nothing": torch.zeros(3)}, record)
    with pytest.raises(WeightsError, match="do not fit"):
        students.load(f"consistency:weights={folder}", task="gaussians")


def test_a_trained_student_is_loaded_by_the_name_of_its_task(mixture):
    with pytest.raises(FewstepError, match="was distilled from a task's teacher: load it with the task's name"):
        students.load("consistency", task=mixture)


@pytest.mark.parametrize("method", ["lcm", "guidance"])
def test_guidance_is_an_input_of_what_was_distilled_with_it(method):
    student = students.load(method, task="digits")
    assert not student.sample(1, guidance=1.0).equal(student.sample(1, guidance=3.0))
    with pytest.raises(Unsupported, match="guidance from 1 to 4"):
        student.sample(1, guidance=9.0)
    with pytest.raises(Unsupported, match="without guidance"):
        students.load("consistency", task="digits").check(1, guidance=2.0)


@pytest.mark.parametrize("method", ["consistency", "genie", "dsno"])
def test_networks_may_run_in_half_precision(method):
    plain = students.load(method, task="digits")
    half = students.load(method, task="digits", dtype="bfloat16")
    found = half.sample(2 if method == "genie" else 1)
    assert found.dtype == torch.float32
    assert (found - plain.sample(2 if method == "genie" else 1)).abs().mean() < 0.1
    for network in half.networks():
        assert any(p.dtype == torch.bfloat16 for p in network.parameters()) or method == "genie"


@pytest.mark.parametrize(
    "altered",
    [
        {"sampler": "levels"},
        {"sampler": {"options": {}}},
        {"sampler": {"name": "levels", "options": {}}},
        {"sampler": {"name": "levels", "options": {"levels": {}}}},
        {"sampler": {"name": "levels", "options": {"levels": {"a": [1.0, 0.1]}}}},
        {"sampler": {"name": "levels", "options": {"levels": {"1": ["a", "b"]}}}},
        {"sampler": {"name": "levels", "options": {"levels": {"1": [1.0, 0.1]}, "solver": "heun"}}},
        {"sampler": {"name": "trajectory", "options": {}}},
        {"model": {}},
        {"model": "network"},
        {"model": {"network": {"kind": "foo"}}},
        {"prior": "x"},
        {"before": {}},
        {"teacher": {}},
        {"evaluations": "none"},
        {"quality_curve": [[1]]},
        {"seconds": None},
        {"stage": "4"},
    ],
)
def test_an_altered_record_is_one_line(folder, altered):
    change(folder / "consistency.json", **altered)
    spec = f"consistency:weights={folder}"
    with pytest.raises(FewstepError) as error:
        trained_identity(parse(spec), "gaussians")
        students.load(spec, task="gaussians")
    assert "\n" not in str(error.value)


def test_a_stage_under_another_name_is_refused(tmp_path):
    for suffix in (".safetensors", ".json"):
        shutil.copy(weights_folder("gaussians") / f"progressive-1{suffix}", tmp_path / f"progressive-16{suffix}")
    with pytest.raises(WeightsError, match="is stage '1' of progressive, not '16'"):
        students.load(f"progressive:weights={tmp_path}", task="gaussians")


def test_a_staged_student_speaks_of_itself():
    with pytest.raises(Unsupported, match="progressive was distilled without guidance"):
        students.load("progressive", task="digits").check(1, guidance=2.0)
