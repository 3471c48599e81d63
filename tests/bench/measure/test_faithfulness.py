"""Distances to the teacher's samples: zero for the teacher, small for who follows it, large for who does not."""

import math
from dataclasses import replace

import pytest
import torch

from bench.context import context_of
from bench.measure import TEACHER_SOLVER as SOLVER
from bench.measure import TEACHER_STEPS as STEPS
from bench.measure.faithfulness import distances
from bench.plan import TEACHER, Cell, Setup, plan
from bench.store import Store
from bench.sweep import _Sweep, run
from bench.tasks import load_task

DIGITS = replace(load_task("digits"), samples=16, seed_blocks=1, batch_size=10)
GAUSSIANS = replace(load_task("gaussians"), samples=50, seed_blocks=1, batch_size=32)
TEACHERS_OWN = f"{SOLVER}:grid=quadratic"
METRICS = {"digits": "faithfulness", "gaussians": "faithfulness_vector"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("bench.evaluate.LATENCY_CALLS", 1)


def measured(task, folder, *runs):
    """The metrics of each (student, steps, guidance)."""
    task = replace(task, metrics=(METRICS[task.name],))
    real, *records = run(plan(task, runs), task, Store(folder, task.name), task.metrics)
    return [record["metrics"] for record in records if record["student"] != TEACHER], real["metrics"]


def test_distances():
    images = torch.zeros(3, 1, 2, 2), torch.zeros(3, 4)
    teachers = torch.full((3, 1, 2, 2), 0.5), torch.full((3, 4), 2.0)
    assert distances(images, teachers).tolist() == [[0.5, 4.0]] * 3
    assert distances([torch.zeros(2, 2)], [torch.tensor([[3.0, 4.0], [0.0, 1.0]])]).tolist() == [[5.0], [1.0]]
    assert distances(images, None).shape == (3, 2) and distances(images, None).isnan().all()


def test_vectors_near_the_teachers_trajectories(tmp_path):
    runs = [(TEACHERS_OWN, STEPS, 1.0), ("ddim", 16, 1.0), ("ddim", 2, 1.0), ("ddpm", 16, 1.0)]
    found, real = measured(GAUSSIANS, tmp_path, *runs)
    teacher, close, far, stochastic = (metrics["teacher_distance"] for metrics in found)
    assert teacher < 1e-6 and 0 < close < 0.1 < 0.3 < far and stochastic > 1
    assert math.isnan(real["teacher_distance"])


def test_images_are_compared_under_the_same_classes_and_guidance(tmp_path):
    runs = [
        (TEACHERS_OWN, STEPS, 1.0),
        (TEACHERS_OWN, STEPS, 3.0),
        ("ddim", 16, 1.0),
        ("ddpm", 16, 1.0),
    ]
    found, real = measured(DIGITS, tmp_path, *runs)
    for column in ("teacher_pixel", "teacher_digits_cnn"):
        teacher, guided, close, stochastic = (metrics[column] for metrics in found)
        assert max(teacher, guided) < 1e-4 and 0 < close < 0.3 * stochastic and math.isnan(real[column])


def test_the_teachers_samples_are_drawn_once(tmp_path, monkeypatch):
    drawn, setups = [], []

    def counted(setup):
        context = context_of(setup)
        if setup not in setups:
            setups.append(setup)
            sample = context.trajectories.sample
            context.trajectories.sample = lambda steps, **given: (
                drawn.append((steps, given["seeds"])) or sample(steps, **given)
            )
        return context

    monkeypatch.setattr("bench.evaluate.context_of", counted)
    measured(GAUSSIANS, tmp_path, ("ddim", 1, 1.0), ("ddim", 2, 1.0), ("ddpm", 1, 1.0))
    batches = [(steps, seeds) for steps, seeds in drawn if len(seeds) > 1]  # one image is drawn to see its cost
    assert batches == [(STEPS, range(0, 32)), (STEPS, range(32, 50))]


@pytest.mark.parametrize("size", [7, 50])
def test_the_batch_size_does_not_matter(size, tmp_path):
    (found,), _ = measured(replace(GAUSSIANS, batch_size=size), tmp_path / "a", ("ddim", 2, 1.0))
    (expected,), _ = measured(GAUSSIANS, tmp_path / "b", ("ddim", 2, 1.0))
    assert found["teacher_distance"] == pytest.approx(expected["teacher_distance"], rel=1e-5)


def test_a_student_of_another_model_has_no_teacher_here():
    sweep = _Sweep(Setup(DIGITS, ("faithfulness",)), None, None, 0.0, [])
    assert not sweep._has_teacher(Cell("file:my.safetensors:heun", 1, 1.0, 0, {}))
    assert sweep._has_teacher(Cell("ddim", 1, 1.0, 0, {}))
