"""Distilled networks that are sampled by a solver at noise levels fixed for each step count."""

from collections.abc import Callable
from typing import Annotated

from torch import Tensor, nn

from students.diffusion.denoiser import Denoiser
from students.diffusion.grids import make_grid
from students.errors import Unsupported
from students.models.teacher import Teacher
from students.options import Choices
from students.samplers.consistency import consistency
from students.solvers.euler import ddim
from students.student import SolverStudent, Student

SOLVERS: dict[str, Callable[..., Tensor]] = {"ddim": ddim, "consistency": consistency}
LARGEST_SCALE = 4.0


class LevelsStudent(SolverStudent):
    """A network and the noise levels that each step count visits.

    levels: steps -> noise levels (times of the model's schedule), the last one the data end; the keys are what it
    supports. solver: "ddim", or "consistency" for a network that leads every state to the data end. Other options go
    to the solver.
    """

    family = "distilled"
    takes_guidance = False
    uses_teacher = False
    build = staticmethod(Denoiser.from_record)

    def __init__(
        self,
        model: nn.Module,
        levels: dict,
        solver: Annotated[str, Choices(*SOLVERS)] = "ddim",
        prior: Tensor | None = None,
        **options,
    ):
        self.levels = {int(steps): list(times) for steps, times in levels.items()}
        teacher = Teacher(model, prior=prior)
        for count, times in self.levels.items():
            make_grid(times, teacher.schedule, count)  # raises for levels that are none
        steps = tuple(sorted(self.levels))
        solve = SOLVERS[solver] if isinstance(solver, str) else solver
        super().__init__(teacher, solve, grid=self.levels[steps[0]], supported_steps=steps, **options)
        self.options = {"levels": {str(n): self.levels[n] for n in steps}, **self.solver_options}

    def times(self, n_steps: int) -> Tensor:
        return make_grid(self.levels[n_steps], self.denoiser.schedule, n_steps)


class GuidedLevelsStudent(LevelsStudent):
    """The same for a network that takes the guidance scale w, from 1 to 4, as extra conditioning."""

    takes_guidance = True

    def check(self, n_steps, guidance=1.0):
        super().check(n_steps, guidance)
        if not 1 <= guidance <= LARGEST_SCALE:
            raise Unsupported(f"the student was distilled for guidance from 1 to {LARGEST_SCALE:g}, not {guidance:g}")

    def generate(self, n_steps, noise, conditions, guidance):
        def scaled(x, t):
            return self.denoiser(x, t, conditions, x.new_full((len(x), 1), guidance))

        scaled.schedule = self.denoiser.schedule  # type: ignore[attr-defined]
        times = self.times(n_steps)
        return self.solver(scaled, noise() * scaled.schedule.sigma(times[0]), times, noise=noise, **self.solver_options)  # type: ignore[attr-defined]


class StagedStudent(Student):
    """One network for each step count, as of a method whose stages halve the steps."""

    def __init__(self, members: dict[int, Student]):
        first = next(iter(members.values()))
        self.members = members
        self.shape, self.classes, self.prior = first.shape, first.classes, first.prior
        self.supported_steps = tuple(sorted(members))

    def networks(self) -> list[nn.Module]:
        return [network for member in self.members.values() for network in member.networks()]

    def check(self, n_steps, guidance=1.0):
        super().check(n_steps)
        member = self.members[n_steps]
        member.name = self.name
        member.check(n_steps, guidance)

    def generate(self, n_steps, noise, conditions, guidance):
        return self.members[n_steps].generate(n_steps, noise, conditions, guidance)
