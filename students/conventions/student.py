"""A teacher and a solver under a published convention."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from students.conventions import CONVENTIONS
from students.conventions import levels as lists
from students.conventions.levels import Setting
from students.diffusion.denoiser import guided
from students.errors import FewstepError, Unsupported, UnsupportedSteps
from students.models.teacher import Teacher
from students.options import Option, describe
from students.samplers.consistency import consistency
from students.solvers.adaptive import adaptive_sde, rk45
from students.solvers.ancestral import ddpm
from students.solvers.dpm_solver import dpm_solver, dpm_solver_fast, fast_orders
from students.solvers.dpm_solver_pp import dpm_solver_pp_2s
from students.solvers.euler import ddim, dpm2, edm_stochastic, euler, heun
from students.solvers.score_distillation import nfsd, sds
from students.student import MAX_STEPS, SolverStudent

PURE_NOISE = 4096.0  # sigma / alpha that diffusers takes for no signal, an alpha_bar of 2^-24
CONSISTENCY = "cm"  # the convention of consistency sampling, and of nothing else
REFUSED: dict[Callable, str] = {
    adaptive_sde: "chooses its own steps",
    rk45: "chooses its own steps",
    sds: "optimises an image, and follows no trajectory",
    nfsd: "optimises an image, and follows no trajectory",
}
SINGLE_STEPS = (ddim, euler, ddpm)  # for which a step from a level to itself changes nothing
TWICE = (heun, dpm2, edm_stochastic, dpm_solver_pp_2s)  # evaluations a step


def convention_options(name: str) -> dict[str, Option]:
    """What a convention takes: rho, zero_snr ..."""
    return describe(getattr(lists, name))


class ConventionStudent(SolverStudent):
    """A solver at the noise levels of a convention (`CONVENTIONS`), the same sigma / alpha for every teacher.

    given: options of the convention. Other options go to the solver. Levels beyond the range of the teacher's schedule
    are pulled in to it. Raises FewstepError for a solver that the convention does not fit, or a teacher that has not
    seen its first level; `sample` raises UnsupportedSteps for step counts that it is not defined for, or at which a
    solver would step from a level to itself.
    """

    def __init__(
        self,
        teacher: Teacher,
        solver: Callable,
        convention: str,
        given: dict,
        *,
        name: str,
        fewest: int = 1,
        device=None,
        **options,
    ):
        self.name, self.convention, self.given = name, convention, given
        self.rules, self.plain = CONVENTIONS[convention], inspect.unwrap(solver)
        self.solver_options = self._last_step() | options
        schedule, ends = teacher.schedule, [teacher.schedule.t_max, teacher.schedule.t_min]
        self.highest, self.lowest = (schedule.sigma(ends) / schedule.alpha(ends)).tolist()
        self._check_solver()
        steps = self._step_counts(fewest)
        first = self.levels(steps[0]).tolist()  # raises what every step count would
        super().__init__(teacher, solver, first, name=name, supported_steps=steps, device=device, **self.solver_options)
        self.grid = convention
        self.options = {"convention": convention, **given, **self.solver_options}

    def _last_step(self) -> dict:
        """Whether Heun's method and DPM-2 correct their last step, as the convention has it unless it is said."""
        return {"lower_order_final": False} if self.plain in (heun, dpm2) and self.rules.corrects_last else {}

    def _check_solver(self) -> None:
        solver = self.plain.__name__
        if self.plain in REFUSED:
            raise FewstepError(f"{self.name}: {solver} {REFUSED[self.plain]}: leave convention out")
        if self.plain is consistency and self.convention != CONSISTENCY:
            raise FewstepError(
                f"{self.name}: {self.convention} is for solvers: consistency sampling takes convention={CONSISTENCY}"
            )
        if self.plain is not consistency and self.convention == CONSISTENCY:
            raise FewstepError(f"{self.name}: {CONSISTENCY} is of consistency sampling alone: {solver} takes others")
        corrects = self.plain in (heun, dpm2) and self.solver_options.get("lower_order_final") is False
        if corrects and self.rules.to_zero:
            raise FewstepError(
                f"{self.name}: {self.convention} ends at sigma = 0, where {solver} has no slope to correct by: "
                "leave lower_order_final out"
            )

    def _step_counts(self, fewest: int):
        if self.convention == CONSISTENCY:
            points = self.given.get("points")
            return tuple(lists.POINTS) if points is None else (len(points) - 1,)
        return range(max(fewest, self.rules.least), MAX_STEPS + 1)

    def _evaluations(self, n_steps: int) -> int:
        if self.plain is dpm_solver:
            order = inspect.signature(dpm_solver).parameters["order"].default
            return n_steps * self.solver_options.get("order", order)
        return n_steps * (2 if self.plain in TWICE else 1)

    def levels(self, n_steps: int) -> Tensor:
        """(n + 1,) float64: sigma / alpha at both ends of each step, decreasing, within the teacher's range."""
        orders = tuple(fast_orders(n_steps)) if self.plain is dpm_solver_fast else None
        setting = Setting(n_steps, self.lowest, self.highest, self._evaluations(n_steps), orders)
        levels = getattr(lists, self.convention)(setting, **self.given)
        if levels[0].isinf() and self.highest < PURE_NOISE:
            raise Unsupported(
                f"{self.name} begins without any signal, and the noise that this teacher has seen is at most "
                f"{self.highest:.4g} times the signal: leave zero_snr out, or take a teacher of flow matching"
            )
        again = bool((levels.diff() >= 0).any())
        if again and self.plain not in SINGLE_STEPS:
            raise UnsupportedSteps(f"{self.name} visits a level twice in {n_steps} steps: take fewer, or ddim")
        inside = levels.clamp(self.lowest, self.highest)
        if self.rules.to_zero:
            inside[-1] = 0
        if not again and (inside.diff() >= 0).any():
            raise UnsupportedSteps(
                f"{self.name} has several levels in {n_steps} steps beyond what this teacher has seen, "
                f"{self.lowest:.4g} to {self.highest:.4g}: take fewer"
            )
        return inside

    def times(self, n_steps: int) -> Tensor:
        """The times of `levels` in the teacher's schedule; of a network that knows some times alone, the nearest."""
        schedule, levels = self.denoiser.schedule, self.levels(n_steps)
        times = schedule.time(-levels.log())
        known = schedule.rounded(times)
        return torch.where(levels > 0, known, times)

    def check(self, n_steps, guidance=1.0):
        super().check(n_steps, guidance)
        self.levels(n_steps)

    def generate(self, n_steps, noise, conditions, guidance):
        times, schedule = self.times(n_steps), self.denoiser.schedule
        alpha, sigma = schedule.alpha(times[0]), schedule.sigma(times[0])
        x = noise() * (torch.hypot(alpha, sigma) if self.rules.unit else sigma)
        return self.solver(guided(self.denoiser, conditions, guidance), x, times, noise=noise, **self.solver_options)
