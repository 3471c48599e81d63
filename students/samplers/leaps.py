"""Consistency trajectory models (Kim et al. 2023 [2310.02279]): leaps from any time to any earlier one."""

from typing import Annotated

from torch import Tensor

from students.diffusion.denoiser import Denoiser, expand
from students.options import Range
from students.samplers.levels import LevelsStudent


def g(model: Denoiser, x: Tensor, t: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
    """g(x, t, s): the denoiser, told the time it is to go to; t and s (N,)."""
    return model(x, t, condition, (s.log() / 4)[:, None])


def leap(model: Denoiser, x: Tensor, t: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
    """G(x, t, s) = s/t x + (1 - s/t) g(x, t, s) (Eq. 5), from levels t to s, (N,) each."""
    ratio = expand(s / t, x)
    return ratio * x + (1 - ratio) * g(model, x, t, s, condition)


def gamma_sampling(
    model, x: Tensor, times: Tensor, *, noise=None, callback=None, condition=None, gamma: float = 0.0
) -> Tensor:
    """Algorithm 3: leap to sqrt(1 - gamma^2) t, add gamma t of noise; 0 is deterministic, 1 consistency sampling."""
    for i, (s, t) in enumerate(times.unfold(0, 2, 1)):
        last = t == times[-1]
        to = t if last else (t * (1 - gamma**2) ** 0.5).clamp(min=times[-1])
        start, x = x, leap(model, x, s.expand(len(x)).to(x.device), to.expand(len(x)).to(x.device), condition)
        x0 = (x - to / s * start) / (1 - to / s) if callback else None
        if gamma and not last:
            x = x + gamma * t * noise()
        if callback:
            callback(i, t, x, x0)
    return x


class LeapStudent(LevelsStudent):
    """A network of two times, stepped by gamma-sampling, which takes the conditions itself."""

    def __init__(self, model: Denoiser, levels: dict, gamma: Annotated[float, Range(0, 1)] = 0.0, prior=None):
        super().__init__(model, levels, gamma_sampling, prior, gamma=gamma)  # type: ignore[arg-type]

    def generate(self, n_steps, noise, conditions, guidance):
        times = self.times(n_steps)
        x = noise() * self.denoiser.schedule.sigma(times[0])
        return self.solver(self.denoiser, x, times, noise=noise, condition=conditions, **self.solver_options)
