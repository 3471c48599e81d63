"""How the times of each scheduler of `diffusers` are set: what Row.times may be.

Each takes a student, a scheduler and the number of steps.
"""

import torch


def count(student, scheduler, n_steps: int) -> None:
    scheduler.set_timesteps(n_steps)


def bounds(student, scheduler, n_steps: int) -> None:
    scheduler.set_timesteps(n_steps + 1)  # it counts times, not steps


def sigmas(student, scheduler, n_steps: int) -> None:
    scheduler.set_timesteps(n_steps, sigmas=[1 - i / n_steps for i in range(n_steps)])


def sigmas_and_zero(student, scheduler, n_steps: int) -> None:
    scheduler.set_timesteps(sigmas=[1 - i / n_steps for i in range(n_steps + 1)], device=student.device)


def angle(student, scheduler, n_steps: int) -> None:
    schedule = student.denoiser.schedule
    angle = torch.atan(schedule.u(schedule.t_max)).item()
    scheduler.set_timesteps(n_steps, max_timesteps=angle, intermediate_timesteps=None)


def own_betas(schedule, n_steps: int) -> list[float]:
    """The "betas" of IPNDM: sigma(t) on its grid, below 1 in float32 so that its alphas stay positive."""
    times = torch.linspace(schedule.t_max, schedule.t_min, n_steps + 1, dtype=torch.float64)
    return schedule.sigma(times).clamp(max=1 - 2**-24).tolist()


def set_times(student, scheduler, n_steps: int) -> None:
    """Set n_steps steps, with options none of them empty.

    A spacing of n noise levels that already contains the last one repeats it: then n + 1 levels make n steps. Without
    options only a count of num_train_timesteps does so, and there are no more levels.
    """
    times = student.row.times
    times(student, scheduler, n_steps)
    sigmas = getattr(scheduler, "sigmas", None)
    if student.given and sigmas is not None and len(sigmas) == n_steps + 1 and sigmas[-1] == sigmas[-2]:
        times(student, scheduler, n_steps + 1)
        scheduler.sigmas, scheduler.timesteps = scheduler.sigmas[:-1], scheduler.timesteps[:-1]
        scheduler.num_inference_steps = n_steps
        if hasattr(scheduler, "order_list"):
            scheduler.order_list = scheduler.get_order_list(n_steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
