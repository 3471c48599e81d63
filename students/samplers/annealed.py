"""Consistent annealed sampling (Jolicoeur-Martineau et al. 2020 [2009.05475]): noise falls as it is meant to."""

from typing import Annotated

from torch import Tensor

from students.diffusion.denoiser import Denoiser
from students.options import Range
from students.samplers.levels import LevelsStudent


def consistent_annealed(
    denoise, x: Tensor, times: Tensor, *, noise=None, callback=None, beta: Annotated[float, Range(0, 1)] = 1.0
) -> Tensor:
    """Towards H = D(x, s), and noise that makes up for what that removes beyond the level it goes to. NFE n.

        x_t = x_s + eta (H - x_s) + beta sigma_t z,    beta^2 = 1 - (1 - eta)^2 / gamma^2,    gamma = sigma_t / sigma_s

    so that the noise follows the levels (Proposition 2), written for VE schedules, where sigma_s^2 times the score is
    H - x_s. The paper names the step eta; here it follows from beta: 0 is DDIM, 1 draws all noise anew. The last step
    returns H, the expected denoised sample.
    """
    schedule = denoise.schedule
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        x0 = denoise(x, s)
        sigma = schedule.sigma(t)
        if t > times[-1]:
            x = x0 + (1 - beta**2) ** 0.5 * sigma / schedule.sigma(s) * (x - x0)
            x = x + beta * sigma * noise() if beta else x
        else:
            x = x0
        if callback:
            callback(i, t, x, x0)
    return x


class AnnealedStudent(LevelsStudent):
    """A network that makes a sample of what it is given, and how much of the noise is drawn anew in a step."""

    def __init__(
        self, model: Denoiser, levels: dict, beta: Annotated[float, Range(0, 1)] = 1.0, prior: Tensor | None = None
    ):
        super().__init__(model, levels, consistent_annealed, prior, beta=beta)  # type: ignore[arg-type]
