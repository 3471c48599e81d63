"""GENIE (Dockhorn et al. 2022 [2210.05475]): DDIM with a second-order term from a small head on the teacher."""

from torch import Tensor, nn

from students.diffusion.denoiser import Denoiser, expand, under
from students.diffusion.schedules import VE
from students.models.teacher import Teacher
from students.networks import build_network
from students.solvers.euler import corrected_step
from students.student import MAX_STEPS, SolverStudent


def noise_and_features(denoiser, x: Tensor, gamma: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """eps = (x - D) / gamma, and what the last layer of the denoiser's network saw, None for an exact denoiser."""
    if isinstance(denoiser, Denoiser):
        x0, hidden = denoiser.with_features(x, gamma, condition)
        return (x - x0) / expand(gamma, x), hidden[-1]
    return (x - denoiser(x, gamma, condition)) / expand(gamma, x), None


class TaylorDenoiser(nn.Module):
    """The teacher and the head in one call: (x0, k), each (N, *shape), for states of the teacher's own schedule."""

    def __init__(self, teacher: Teacher, head: nn.Module):
        super().__init__()
        self.denoiser, self.head = teacher.denoiser, head
        self.view = under(self.denoiser, VE)
        self.schedule, self.shape, self.classes = teacher.schedule, teacher.shape, teacher.classes

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        alpha, gamma = self.schedule.alpha(t), self.schedule.u(t)
        x, gamma = x / expand(alpha, x), gamma.to(x.device).expand(len(x))
        eps, features = noise_and_features(self.view, x, gamma, condition)
        return x - expand(gamma, x) * eps, self.head(x, gamma, eps, features)


def taylor(denoise, x: Tensor, times: Tensor, *, noise=None, callback=None) -> Tensor:
    """The second truncated Taylor method (Eq. 9), for denoisers that return (x0, k); one evaluation a step."""
    schedule = denoise.schedule
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0, k = denoise(x, s)
        x = corrected_step(schedule, x, x0, (schedule.u(t) - schedule.u(s)) / 2 * k, s, t)
        if callback:
            callback(i, t, x, x0)
    return x


class TaylorStudent(SolverStudent):
    """The trained solver on the teacher's own grid, in two steps or more: what the head gets wrong in gamma k, a step
    from gamma all the way to the data multiplies by gamma / 2, which at the noise end is more than the data's size.
    """

    family = "distilled"
    takes_guidance = False
    uses_teacher = True
    build = staticmethod(build_network)

    def __init__(self, model: nn.Module, teacher: Teacher, prior: Tensor | None = None):
        joined = Teacher(TaylorDenoiser(teacher, model), teacher.grid, teacher.prior)
        super().__init__(joined, taylor, supported_steps=range(2, MAX_STEPS + 1))
