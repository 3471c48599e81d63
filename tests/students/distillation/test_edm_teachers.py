"""Methods that ask a network for more than its output, on teachers in EDM's format: two updates, then samples."""

from dataclasses import replace

import pytest
import torch

import students
from students.data import Dataset, Split
from students.errors import FewstepError
from students.models import teachers
from students.models.public import load_model
from students.models.teachers import Entry, Recipe
from students.nfe import count_nfe
from students.training.distill import train_method
from tests.students.models.checkpoints.edm_pickles import ADM, NCSNPP, SKIPS, edm_pickle, make_weights

SMALL = {"img_resolution": 8, "attn_resolutions": [4], "num_blocks": 1}
NETWORKS = {"song": ("SongUNet", NCSNPP | SMALL), "song-skips": ("SongUNet", SKIPS | SMALL)}
NETWORKS |= {"dhariwal": ("DhariwalUNet", ADM | SMALL)}
METHODS = ["guidance", "lcm", "ctm", "meanflow", "genie", "dsno", "consistency"]
GUIDED = ("guidance", "lcm")
SETTINGS = {"steps": 2, "batch_size": 4}


def images() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(256, (24, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(24) % 3
    return Dataset(Split(samples[:18], labels[:18]), Split(samples[18:], labels[18:]), classes=3)


@pytest.fixture
def teacher(request, tmp_path, monkeypatch):
    """Writes a teacher's checkpoint, and makes a task of it."""
    architecture, arguments = NETWORKS[request.param]
    path = tmp_path / "teacher.pkl"
    weights = make_weights(architecture, arguments, 3)
    path.write_bytes(edm_pickle(architecture, arguments | {"label_dropout": 0.1}, weights, classes=3))
    recipe = Recipe(data=f"{__name__}:images", shape=(3, 8, 8), classes=3, network={})
    monkeypatch.setitem(teachers.TEACHERS, "tiny", Entry(recipe))
    monkeypatch.setattr("students.training.quality.SAMPLES", 3)
    return f"file:{path}"


CASES = [(name, method) for name in ("song", "dhariwal") for method in METHODS]
CASES += [("song-skips", method) for method in ("ctm", "genie", "dsno")]
QUICK = [("song", "ctm"), ("song", "genie"), ("song", "meanflow"), ("dhariwal", "genie"), ("dhariwal", "lcm")]


@pytest.mark.parametrize(
    "teacher, method",
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES],
    indirect=["teacher"],
)
def test_two_updates_and_a_student_that_samples(teacher, method, tmp_path):
    settings = SETTINGS | ({"pairs": 4} if method == "dsno" else {})
    made = {"out": tmp_path / "out", "state": tmp_path / "state", "teacher": teacher, "settings": settings}
    train_method(method, "tiny", **made)
    student = students.load(f"{method}:weights={tmp_path / 'out'}", task="tiny")
    assert student.shape == (3, 8, 8) and student.classes == 3 and student.training["relative"] is None
    steps = next(n for n in (2, 1) if n in student.supported_steps)
    with count_nfe(student) as nfe:
        plain = student.sample(steps, seeds=range(3), conditions=[0, 1, 2])
    assert nfe.per_image == (4 if method == "dsno" else steps)
    assert plain.shape == (3, 3, 8, 8) and plain.isfinite().all()
    if method in GUIDED:
        student.sample(steps, seeds=range(3), conditions=[0, 1, 2], guidance=3.0)
    else:
        with pytest.raises(FewstepError, match="without guidance"):
            student.sample(steps, guidance=3.0)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", NETWORKS, indirect=True)
def test_a_student_starts_as_its_teacher(teacher, tmp_path):
    """Updates of a rate next to zero leave the extra inputs and states without effect."""
    denoiser = load_model(teacher).denoiser
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    condition = torch.tensor([0, 1, 2, 3])
    expected = denoiser(x, 0.7, condition)
    made = {"state": tmp_path / "state", "teacher": teacher, "settings": SETTINGS | {"lr": 1e-30}}
    for method in ("lcm", "ctm"):
        train_method(method, "tiny", out=tmp_path / "out", **made)
        student = students.load(f"{method}:weights={tmp_path / 'out'}", task="tiny")
        model = student.denoiser
        model.prediction, model.schedule = denoiser.prediction, denoiser.schedule
        found = model(x, 0.7, condition, torch.ones(4, 1))
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)  # weights are kept in half precision


@pytest.mark.parametrize("teacher", ["song"], indirect=True)
def test_a_teacher_of_another_shape_is_refused_before_training(teacher, tmp_path, monkeypatch):
    entry = teachers.TEACHERS["tiny"]
    for change in ({"shape": (3, 16, 16)}, {"classes": 4}):
        monkeypatch.setitem(teachers.TEACHERS, "tiny", replace(entry, recipe=replace(entry.recipe, **change)))
        with pytest.raises(FewstepError, match="asks for"):
            train_method("lcm", "tiny", out=tmp_path / "o", state=tmp_path / "s", teacher=teacher, settings=SETTINGS)
