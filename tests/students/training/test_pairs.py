"""Pair sets are what the sampler itself makes; they are kept, completed, and refused when they are of another maker."""

import json
import shutil
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from students.data import load_data
from students.diffusion.denoiser import Denoiser
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import VPLinear
from students.errors import FewstepError, Stopped
from students.models.load import load_teacher
from students.networks.mlp import MLP
from students.solvers.deis import deis
from students.solvers.dpm_solver_pp import dpm_solver_pp
from students.solvers.euler import ddim, euler, heun
from students.solvers.pndm import ipndm
from students.solvers.unipc import unipc
from students.student import SolverStudent
from students.training.distill import method_class, pair_maker, train_method
from students.training.pairs import CHUNK, FIRST_SEED, PairSet, pairs_folder
from tests.conftest import make_mixture

SOLVERS = [ddim, euler, heun, dpm_solver_pp, unipc, deis, ipndm]


def rows_of(folder, student, count=8, **options):
    return PairSet(folder, student, {}, count=count, **options).rows(torch.arange(count), "cpu")


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)
@pytest.mark.parametrize("conditional", [False, True])
def test_pairs_are_what_the_sampler_makes(tmp_path, solver, conditional):
    student = SolverStudent(make_mixture(conditional=conditional), solver)
    found = rows_of(tmp_path, student, steps=4)
    seeds = range(FIRST_SEED, FIRST_SEED + 8)
    noise = SeedNoise(seeds, (2,))
    assert found.x0.equal(student.sample(4, seeds=seeds))
    assert found.noise.equal(noise()) and found.path is None
    if conditional:
        assert found.condition.equal(noise.classes(3, student.prior))
    else:
        assert found.condition is None


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)
def test_the_path_is_that_of_one_call_of_the_solver(tmp_path, solver):
    """A multistep method that was started anew at each state kept would lose its memory, and end elsewhere."""
    student = SolverStudent(make_mixture(), solver)
    found = rows_of(tmp_path, student, steps=12, path=4)
    schedule, times = student.denoiser.schedule, student.times(12)
    states = {}
    x = found.noise * schedule.sigma(times[0])
    last = solver(student.denoiser, x, times, callback=lambda index, time, x, x0: states.setdefault(index, (time, x)))
    assert last.equal(found.x0)
    expected = [x / schedule.alpha(times[0]).to(x)]
    for index in (3, 7, 11):
        time, state = states[index]
        assert time == times[index + 1]
        expected.append(state / schedule.alpha(time).to(state))
    assert found.path.equal(torch.stack(expected, dim=1))


def test_states_are_kept_in_ve_coordinates_evenly_among_the_steps(tmp_path):
    network = Denoiser(MLP((2,), width=8), VPLinear(), "edm", (2,))
    maker = SolverStudent(network, ddim)
    pairs = PairSet(tmp_path, maker, {}, count=4, steps=6, path=3)
    found = pairs.rows(torch.arange(4), "cpu")
    assert found.path.shape == (4, 3, 2) and pairs.kept.equal(maker.times(6)[[0, 3, 6]])
    ends = network.schedule.u(torch.tensor([network.schedule.t_max, network.schedule.t_min])).float()
    assert torch.allclose(found.path[:, 0], found.noise * ends[0], rtol=1e-4)
    assert torch.allclose(found.path[:, -1] / (1 + ends[1] ** 2).sqrt(), found.x0, rtol=1e-4)
    alone = PairSet(tmp_path / "b", maker, {}, count=4, steps=6).rows(torch.arange(4), "cpu")
    assert alone.x0.equal(found.x0)


def test_images_are_not_clamped_and_classes_follow_the_prior(tmp_path):
    teacher = load_teacher("digits")
    student = SolverStudent(teacher, ddim)
    found = rows_of(tmp_path, student, count=64, steps=2)
    clamped = student.sample(2, seeds=range(FIRST_SEED, FIRST_SEED + 64))
    assert found.x0.abs().max() > 1 and found.x0.clamp(-1, 1).equal(clamped)
    assert found.condition.equal(SeedNoise(range(FIRST_SEED, FIRST_SEED + 64), (1,)).classes(10, teacher.prior))


@pytest.mark.parametrize("name, solver", [("knowledge", ddim), ("reflow", euler)])
def test_a_method_s_pairs_are_made_on_the_teacher_s_own_grid(name, solver):
    teacher = load_teacher("gaussians")
    maker = pair_maker(teacher, method_class(name).pairs.solver, "cpu")
    assert maker.solver is solver and maker.grid == teacher.grid == "quadratic"
    given = SolverStudent(teacher, solver, "quadratic")
    assert maker.sample(4).equal(given.sample(4))


def test_pairs_of_another_maker_are_refused_and_unfinished_ones_completed(tmp_path):
    student = SolverStudent(load_data("gaussians").mixture, ddim)
    whole = PairSet(tmp_path / "whole", student, {"teacher": "a"}, count=600, steps=4, path=3)
    assert whole.spent == 600 * 4 and CHUNK == 512
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    manifest = tmp_path / "cut" / "pairs.json"
    manifest.write_text(manifest.read_text().replace('"made": 600', '"made": 512').replace("2400", "2048"))
    completed = PairSet(tmp_path / "cut", student, {"teacher": "a"}, count=600, steps=4, path=3)
    assert completed.spent == whole.spent
    every = torch.arange(600)
    ours, theirs = (astuple(pairs.rows(every, "cpu")) for pairs in (whole, completed))
    compared = [torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(a, Tensor)]
    assert compared == [True] * 3  # noise, images, paths
    with pytest.raises(FewstepError, match="of another teacher"):
        PairSet(tmp_path / "whole", student, {"teacher": "b"}, count=600, steps=4, path=3)
    with pytest.raises(FewstepError, match="of another path"):
        PairSet(tmp_path / "whole", student, {"teacher": "a"}, count=600, steps=4, path=5)
    with pytest.raises(FewstepError, match="cannot be spaced evenly"):
        PairSet(tmp_path / "c", student, {"teacher": "a"}, count=600, steps=4, path=4)
    for broken in ("{", manifest.read_text().replace('"made": 600', '"made": 601')):
        manifest.write_text(broken)
        with pytest.raises(FewstepError, match="cannot be read"):
            PairSet(tmp_path / "cut", student, {"teacher": "a"}, count=600, steps=4, path=3)
    images = tmp_path / "whole" / "images.npy"
    images.write_bytes(images.read_bytes()[:-800])
    with pytest.raises(FewstepError, match="cannot be opened"):
        PairSet(tmp_path / "whole", student, {"teacher": "a"}, count=600, steps=4, path=3)


def test_the_deadline_keeps_what_was_made(tmp_path):
    student = SolverStudent(load_data("gaussians").mixture, ddim)
    with pytest.raises(Stopped, match=r"stopped at pair 0 of 600: .* goes on"):
        PairSet(tmp_path, student, {}, count=600, steps=4, deadline=0.0)
    assert PairSet(tmp_path, student, {}, count=600, steps=4).spent == 2400
    again = PairSet(tmp_path, student, {}, count=600, steps=4, deadline=0.0)  # nothing is left to make
    assert again.spent == 2400


def test_a_folder_is_named_by_what_pairs_are_made_by(tmp_path):
    one, other = ({"solver": "ddim", "steps": steps} for steps in (4, 8))
    assert pairs_folder(tmp_path, one) == pairs_folder(tmp_path, dict(reversed(one.items())))
    assert pairs_folder(tmp_path, one) != pairs_folder(tmp_path, other)


def test_pairs_of_a_flow_are_made_on_the_flows_own_grid(tmp_path):
    for name in ("rectified_flow", "reflow"):
        settings = {"steps": 2, "batch_size": 8} | ({"pairs": 16} if name == "reflow" else {})
        train_method(name, "gaussians", out=tmp_path, state=tmp_path / "state" / name, settings=settings)
    record = json.loads((tmp_path / "reflow.json").read_text())
    assert (record["pairs"]["grid"], record["pairs"]["solver"]) == ("uniform", "euler")
