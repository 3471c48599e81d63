"""The analytical first step: one evaluation less, with the authors' slope in place of it."""

from itertools import pairwise

import pytest
import torch

import students
from students.conventions.afs import TAKERS, noise_estimate
from students.diffusion.grids import make_grid
from students.diffusion.schedules import VE
from students.errors import FewstepError
from students.nfe import count_nfe
from students.spec import STUDENTS, import_object
from tests.conftest import make_mixture
from tests.students.solvers.orders import starts

NAMES = [name for name, entry in STUDENTS.items() if import_object(entry.target) in TAKERS]
OTHERS = [name for name in STUDENTS if name not in NAMES]


def spent(spec, n):
    student = students.load(spec, task=make_mixture())
    with count_nfe(student) as nfe:
        images = student.sample(n)
    assert images.isfinite().all()
    return nfe.per_image, images


@pytest.mark.parametrize("steps", ["", "convention=edm,", "convention=diff_sampler_polynomial,", "grid=uniform,"])
@pytest.mark.parametrize("name", NAMES)
def test_it_saves_exactly_one_evaluation(name, steps):
    for n in (2, 4, 7):
        whole, plain = spent(f"{name}:{steps}afs=false", n)
        less, images = spent(f"{name}:{steps}afs=true", n)
        assert less == whole - 1
        assert not images.equal(plain)


def test_it_is_one_of_the_students_options():
    for steps, expected in (("", {"grid": "polynomial"}), ("convention=edm,", {"convention": "edm"})):
        assert students.load(f"heun:{steps}afs=true", task=make_mixture()).options == expected | {"afs": True}
        assert students.load(f"heun:{steps}afs=false", task=make_mixture()).options == expected


def test_in_one_step_no_network_is_asked():
    nfe, images = spent("ddim:convention=diff_sampler_polynomial,afs=true", 1)
    assert nfe == 0 and images.isfinite().all()


def ve(x, denoise, levels, corrected):
    """diff-sampler's euler_sampler, or heun_sampler, with afs, in variance-exploding coordinates."""
    for i, (s, t) in enumerate(pairwise(levels)):
        slope = x / (1 + s**2).sqrt() if i == 0 else (x - denoise(x, s)) / s
        there = x + (t - s) * slope
        if corrected:
            slope = (slope + (there - denoise(there, t)) / t) / 2
            there = x + (t - s) * slope
        x = there
    return x


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_it_is_that_of_diff_sampler(name):
    mixture = make_mixture(VE(t_min=0.002, t_max=80.0))
    student = students.load(f"{name}:convention=diff_sampler_polynomial,afs=true", task=mixture)
    x, times = starts(mixture.schedule, 80.0), student.times(5)
    found = student.solver(mixture, x, times, **student.solver_options)
    torch.testing.assert_close(found, ve(x, mixture, times, name == "heun"), rtol=1e-10, atol=1e-10)


def test_the_estimate_is_the_same_under_every_schedule(schedule):
    """z - u z / sqrt(1 + u^2) at z = x / alpha, and nearly nothing where there is no signal."""
    x = torch.tensor([[3.0, -5.0]], dtype=torch.float64)
    for t in (0.1, 0.5):
        t = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        z, u = x / alpha, sigma / alpha
        torch.testing.assert_close(noise_estimate(schedule, x, t), z - u * z / (1 + u**2).sqrt(), rtol=1e-12, atol=0)
    end = torch.tensor(schedule.t_max, dtype=torch.float64)
    assert noise_estimate(schedule, x, end).abs().max() < 0.05


def test_later_steps_ask_the_network():
    mixture, asked = make_mixture(VE()), []

    def denoise(x, t):
        asked.append(float(t))
        return mixture(x, t)

    denoise.schedule = mixture.schedule
    student = students.load("ipndm:afs=true", task=mixture)
    times = make_grid("polynomial", mixture.schedule, 4)
    for _ in range(2):
        asked.clear()
        student.solver(denoise, starts(mixture.schedule, 80.0), times)
        assert asked == times[1:-1].tolist()


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_refused_by_name(name):
    with pytest.raises(FewstepError, match=f"{name}:afs=true has no analytical first step: leave afs out, or take one"):
        students.load(f"{name}:afs=true", task=make_mixture())
