"""The contract of every solver's callback (students/solvers/__init__.py)."""

from itertools import accumulate

import pytest
import torch

from students.diffusion.grids import make_grid
from students.diffusion.noise import SeedNoise
from students.diffusion.schedules import VPLinear
from students.solvers.dpm_solver import fast_orders
from students.spec import STUDENTS, import_object
from tests.conftest import make_mixture
from tests.students.solvers.orders import starts

N_STEPS = 6
ADAPTIVE = {"adaptive_sde", "rk45"}
OPTIMISERS = {"sds", "nfsd"}  # which have an image, not a state of the trajectory
MULTISTEP = {
    "deis",
    "dpm_solver_pp",
    "dpm_solver_pp_3m",
    "dpm_solver_pp_sde",
    "ipndm",
    "ipndm_v",
    "pndm",
    "unipc",
    "unipc_2",
}


def times_reached(name, times):
    if name in ADAPTIVE:
        return times[-1:]
    if name == "dpm_solver":
        return times[list(accumulate(fast_orders(len(times) - 1)))]
    return times[1:]


@pytest.mark.parametrize("name", STUDENTS)
def test_the_callback_sees_every_step_and_changes_nothing(name):
    entry, schedule = STUDENTS[name], VPLinear()
    times, calls = make_grid("log_snr", schedule, N_STEPS), []

    def run(x, times, callback=None):
        noise = SeedNoise(range(len(x)), (2,), dtype=torch.float64)
        solver = import_object(entry.target)
        return solver(make_mixture(schedule), x, times, noise=noise, callback=callback, **entry.options)

    def callback(index, time, x, x0):
        calls.append((index, time, x, x.clone(), x0))

    x = starts(schedule, float(times[0]), n=4)
    result = run(x, times, callback)
    indices, reached, states, at_the_call, estimates = zip(*calls, strict=True)
    assert result.equal(run(x, times))
    assert list(indices) == list(range(len(calls)))
    assert torch.stack(reached).equal(times_reached(name, times))
    assert states[-1].equal(result)
    for state, copy, estimate in zip(states, at_the_call, estimates, strict=True):
        assert state.equal(copy)
        assert estimate.shape == state.shape and estimate.dtype == state.dtype
        assert estimate.abs().max() < 3


@pytest.mark.parametrize("name", [name for name in STUDENTS if name not in ADAPTIVE | OPTIMISERS])
def test_only_a_multistep_solver_goes_on_otherwise_than_from_its_state(name):
    """Its steps use those before, so its states come from one run, not from a run started anew at each of them."""
    entry, schedule = STUDENTS[name], VPLinear()
    times, states = make_grid("log_snr", schedule, N_STEPS), {}
    x = starts(schedule, float(times[0]), n=4)

    def run(x, times, callback=None):
        noise = lambda: torch.zeros_like(x)
        solver = import_object(entry.target)
        return solver(make_mixture(schedule), x, times, noise=noise, callback=callback, **entry.options)

    result = run(x, times, lambda index, time, x, x0: states.update({times.tolist().index(time): x}))
    for i, state in states.items():
        if i < N_STEPS - 1 and N_STEPS - i >= entry.min_steps:
            restarted = run(state, times[i:])
            if name in MULTISTEP:
                assert (restarted - result).abs().max() > 1e-6
            else:
                assert restarted.equal(result)
