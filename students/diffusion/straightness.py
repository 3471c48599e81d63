"""How straight the paths of a flow are (Liu et al. 2022 [2209.03003], Eq. 8)."""

import torch
from torch import Tensor

from students.diffusion.denoiser import under
from students.diffusion.schedules import Flow


@torch.inference_mode()
def straightness(denoiser, noise: Tensor, condition: Tensor | None = None, steps: int = 32) -> float:
    """E of the mean over t of |(x_1 - x_0) - v(x_t, t)|^2 / D, along Euler paths from `noise`; 0 for straight lines.

    noise: (N, *shape), standard normal. v = (x - D(x, t)) / t is the velocity in flow coordinates.
    """
    view = under(denoiser, Flow)
    schedule = view.schedule
    times = torch.linspace(schedule.t_max, schedule.t_min, steps + 1, dtype=torch.float64).to(noise.device)
    first = x = noise * schedule.sigma(times[0]).to(noise)
    velocities = []
    for s, t in times.unfold(0, 2, 1):
        velocities.append((x - view(x, s, condition)) / s.to(x))
        x = x + (t - s).to(x) * velocities[-1]
    chord = (first - x) / (times[0] - times[-1]).to(x)
    return torch.stack([(chord - v).square().mean() for v in velocities]).mean().item()
