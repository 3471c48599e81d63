"""The analytical first step: the first network evaluation replaced by what is known of pure noise."""

import functools
from collections.abc import Callable

from torch import Tensor

from students.errors import FewstepError
from students.solvers.deis import deis
from students.solvers.dpm_solver_pp import dpm_solver_pp
from students.solvers.euler import ddim, dpm2, euler, heun
from students.solvers.pndm import ipndm, ipndm_v
from students.solvers.unipc import unipc

# Those that diff-sampler has it for; each evaluates at the first time before anything else
TAKERS: tuple[Callable[..., Tensor], ...] = (ddim, euler, heun, dpm2, deis, ipndm, ipndm_v, dpm_solver_pp, unipc)


def noise_estimate(schedule, x: Tensor, t) -> Tensor:
    """The estimate D of x0 that takes all of a state for noise.

    AFS (GENIE [2210.05475]; diff-sampler/diff-solvers-main/solvers.py) takes the state, scaled to unit variance in
    variance-preserving coordinates, as eps: the slope z / sqrt(1 + u^2) at z = x / alpha, u = sigma / alpha. So

        D = z - u z / sqrt(1 + u^2) = alpha / (r (r + sigma)) x,    r = sqrt(alpha^2 + sigma^2),

    which is finite at alpha = 0.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    r = (alpha**2 + sigma**2).sqrt()
    return alpha / (r * (r + sigma)) * x


def analytical_first_step(solver: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """The solver with `noise_estimate` in place of its first evaluation: one network evaluation less.

    The first stage alone: Heun and the midpoint method evaluate at their second. Raises FewstepError for a solver that
    it is not defined for.
    """
    if solver not in TAKERS:
        known = ", ".join(taker.__name__ for taker in TAKERS)
        raise FewstepError(f"{name} has no analytical first step: leave afs out, or take one of {known}")

    @functools.wraps(solver)
    def solve(denoise, x: Tensor, times: Tensor, **options) -> Tensor:
        calls = 0

        def after_the_first(state, t):
            nonlocal calls
            calls += 1
            return noise_estimate(denoise.schedule, state, t) if calls == 1 else denoise(state, t)

        after_the_first.schedule = denoise.schedule  # type: ignore[attr-defined]
        return solver(after_the_first, x, times, **options)

    return solve
