"""Teachers by name and of one's own, and what students of them start from."""

import pytest
import torch
from torch import nn

import students
from students.diffusion.denoiser import Denoiser
from students.diffusion.schedules import VE
from students.errors import FewstepError
from students.models import teachers
from students.models.load import build, load_start, load_teacher
from students.models.teacher import DEFAULT_GRID, CallableDenoiser, Teacher, as_teacher
from students.models.teachers import TEACHERS, Entry, classes, entry, recipe, trained_name
from students.networks.mlp import MLP
from tests.conftest import make_mixture


def own() -> Teacher:
    return Teacher(Denoiser(MLP((2,), width=8), VE(), "edm", (2,)), grid="uniform")


def plain(denoise, x, times, *, noise=None):
    return denoise(x, times[0])


def nothing() -> object:
    return object()


def bare():
    """A callable that is no module."""
    denoise = lambda x, t: x
    denoise.schedule, denoise.shape = VE(), (2,)
    return denoise


OWN = f"{__name__}:own"


def test_a_denoiser_says_how_it_is_sampled_by_its_attributes():
    mixture = make_mixture(conditional=True)
    teacher = as_teacher(mixture)
    assert teacher.denoiser is mixture and as_teacher(teacher) is teacher
    assert (teacher.grid, teacher.shape, teacher.classes, teacher.has_no_class) == (DEFAULT_GRID, (2,), 3, True)
    torch.testing.assert_close(teacher.prior, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    mixture.grid, mixture.has_no_class = "uniform", False
    teacher = as_teacher(mixture)
    assert teacher.grid == "uniform" and not teacher.has_no_class


def test_a_plain_callable_becomes_a_module():
    teacher = as_teacher(bare())
    assert isinstance(teacher.denoiser, CallableDenoiser) and isinstance(teacher.denoiser, nn.Module)
    assert teacher.classes is None and teacher.shape == (2,) and not teacher.has_no_class
    x = torch.ones(3, 2)
    assert teacher.denoiser(x, torch.tensor(0.5)) is x


def test_a_function_of_one_s_own_may_return_a_teacher():
    found = load_teacher(OWN)
    assert found.grid == "uniform" and students.load(f"{__name__}:plain", task=OWN).grid == "uniform"
    assert all(parameter.is_meta for parameter in load_teacher(OWN, device="meta").denoiser.parameters())
    assert load_teacher("tests.conftest:make_mixture").grid == DEFAULT_GRID
    with pytest.raises(FewstepError, match="must be a function that returns a denoiser"):
        load_teacher(f"{__name__}:nothing")


@pytest.mark.parametrize("name", ["digits", "gaussians", "gaussians-cond", "gaussians-mlp", "cifar10"])
def test_every_teacher_that_ships_is_what_its_line_says(name):
    found = load_teacher(name)
    assert found.name == name and found.shape == recipe(name).shape
    assert found.classes == classes(name) and found.grid == (entry(name).grid or recipe(name).grid)
    assert not any(parameter.requires_grad for parameter in found.denoiser.parameters())
    assert found.classes is None or len(found.prior) == found.classes


def test_what_a_name_stands_for():
    assert {name: trained_name(name) for name in ("digits", "cifar10", "gaussians")} == {
        "digits": "digits", "cifar10": "cifar10-cond", "gaussians": "gaussians-mlp"
    }  # fmt: skip
    assert classes("cifar10") is None and classes("cifar10-cond") == 10 and classes("gaussians-cond") == 8
    for name, line in TEACHERS.items():
        assert (line.recipe is None) != (trained_name(name) == name)


def test_students_start_from_the_teacher_or_from_a_network_trained_for_the_same():
    teacher, start = load_start("digits")
    assert start is teacher.denoiser
    teacher, start = load_start("gaussians")
    assert not isinstance(teacher.denoiser, Denoiser) and isinstance(start, Denoiser)
    teacher, start = load_start("gaussians", OWN)
    assert start is teacher.denoiser and teacher.grid == "uniform"


def at_fault():
    raise RuntimeError("a fault\nof its own")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{__name__}:at_fault", "cannot load teacher .*: RuntimeError: a fault of its own"),
        (f"{__name__}:OWN", "must be a function that returns a denoiser.*: it is a str"),
        ("builtins:dict", "must be a function that returns a denoiser.*: it returns a dict"),
        ("edm:uncond-vp", "is a checkpoint, no teacher of a task"),
    ],
)
def test_what_is_no_teacher(name, message):
    with pytest.raises(FewstepError, match=message):
        load_teacher(name)


def test_what_students_cannot_start_from(monkeypatch):
    with pytest.raises(FewstepError, match=r"has \(shape, classes\) .*, task 'digits' asks for"):
        load_start("digits", OWN)
    with pytest.raises(FewstepError, match="is no torch module"):
        load_start("gaussians", f"{__name__}:bare")
    with pytest.raises(FewstepError, match="'file:' names no checkpoint: write file:PATH"):
        load_start("digits", "file:")
    with pytest.raises(FewstepError, match="unknown task 'digit': did you mean 'digits'"):
        load_start("digit")
    monkeypatch.setitem(teachers.TEACHERS, "plane", Entry(recipe("gaussians-mlp")))
    with pytest.raises(FewstepError, match="is no network, so students cannot start from it"):
        load_start("plane", "tests.conftest:make_mixture")


def test_a_recipe_builds_its_network():
    for name in ("digits", "gaussians-cond-mlp"):
        made, denoiser = recipe(name), build(recipe(name))
        assert (denoiser.shape, denoiser.classes, denoiser.sigma_data) == (made.shape, made.classes, made.sigma_data)
