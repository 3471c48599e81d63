"""Distilled networks that are still an ODE, sampled by a solver on a grid."""

from typing import Annotated

from torch import Tensor, nn

from students.diffusion.denoiser import Denoiser
from students.diffusion.grids import GRIDS
from students.models.teacher import Teacher
from students.options import Choices
from students.solvers.euler import euler
from students.student import SolverStudent


class FlowStudent(SolverStudent):
    """Euler's method on a named grid: the paths of a rectified flow are nearly straight."""

    family = "distilled"
    takes_guidance = False
    uses_teacher = False
    build = staticmethod(Denoiser.from_record)

    def __init__(
        self, model: nn.Module, grid: Annotated[str, Choices(*GRIDS)] = "uniform", prior: Tensor | None = None
    ):
        super().__init__(Teacher(model, prior=prior), euler, grid)
