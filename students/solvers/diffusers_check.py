"""A dry run of a scheduler of `diffusers`, without the network, on denoisers whose samples are known.

Schedulers are affine in their draws of noise (clipping is out of reach here). So one row of the batch gets no noise,
row k only draw k as 1, and the deviation from the first row, squared and summed, is the variance of a sample.
"""

import math
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

ORDINARY = 10  # steps that every scheduler should be able to run
CONSTANT = 0.5
MEAN, DEVIATION = 0.3, 0.4
CONSTANT_TOLERANCE = 0.03
GAUSSIAN_TOLERANCE = 0.2  # what another order or spacing may cost


class Outcome(NamedTuple):
    """Mean and deviation of the samples where the denoiser always says CONSTANT, and where data is Gaussian."""

    constant_mean: float
    constant_deviation: float
    mean: float
    deviation: float

    def finite(self) -> bool:
        return all(map(math.isfinite, self))

    def error(self) -> float:
        return max(abs(self.mean - MEAN), abs(self.deviation - DEVIATION))


def gaussian_denoiser(schedule, x: Tensor, t: Tensor) -> Tensor:
    """The exact denoiser of N(MEAN, DEVIATION^2)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def dry_run(student, n_steps: int) -> Outcome:
    """What the student's samples come to."""
    rows = 4 * n_steps + 16
    draws = count(1)
    schedule = student.denoiser.schedule

    def draw() -> Tensor:
        unit = torch.zeros(2, rows, 1, 1, 1, dtype=torch.float64, device=student.device)
        unit[:, (next(draws) - 1) % (rows - 1) + 1] = 1
        return unit.flatten(0, 1)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        constant = torch.full_like(x[:rows], CONSTANT)
        return torch.cat([constant, gaussian_denoiser(schedule, x[rows:], t)])

    x = student.run(n_steps, denoise, draw, draw()).double().reshape(2, rows)
    means, deviations = x[:, 0].tolist(), (x - x[:, :1]).norm(dim=1).tolist()
    return Outcome(means[0], deviations[0], means[1], deviations[1])


def fault(student, n_steps: int) -> str:
    """Why the scheduler cannot run in n_steps, with the options that were given; empty if it can."""
    given = ", ".join(f"{key}={value}" for key, value in student.given.items())
    start = f"{student.name} cannot run in {n_steps} steps" + (f" with {given}" if given else "")
    try:
        found = _empty_step(student, n_steps) or _wrong_end(student, n_steps)
    except Exception as error:
        return f"{start}: {first_line(error)}"
    if not found:
        return ""
    right = f"leave out {given}" if given else "choose another scheduler"
    if student.outcome(ORDINARY).finite():
        right += ", or another count"
    return f"{start}: they {found}; {right}"


def first_line(error: Exception) -> str:
    """What somebody else's error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _empty_step(student, n_steps: int) -> str:
    sigmas = getattr(student.make_scheduler(n_steps), "sigmas", None) if student.given else None
    if sigmas is None or len(set(sigmas.tolist())) > n_steps:
        return ""
    return f"are not {n_steps}: some keep the noise level they start from"


def _wrong_end(student, n_steps: int) -> str:
    outcome = student.outcome(n_steps)
    if not outcome.finite():
        return "give non-finite values"
    schedule = student.denoiser.schedule
    noise = max(CONSTANT_TOLERANCE, 3 * schedule.sigma(schedule.t_min).item())
    if abs(outcome.constant_mean - CONSTANT) > noise or outcome.constant_deviation > noise:
        return (
            f"do not reach the data end: for a denoiser that always says {CONSTANT} they give "
            f"{outcome.constant_mean:.2f} +- {outcome.constant_deviation:.2f}"
        )
    if student.plain is None:
        return ""
    allowed = GAUSSIAN_TOLERANCE + _plain_error(student, n_steps)
    if outcome.error() <= allowed:
        return ""
    return (
        f"turn data of {MEAN} +- {DEVIATION} into {outcome.mean:.2f} +- {outcome.deviation:.2f}, "
        f"with {allowed:.2f} allowed"
    )


def _plain_error(student, n_steps: int) -> float:
    """The error without options; 0 where that cannot run."""
    try:
        outcome = student.plain.outcome(n_steps)
    except Exception:
        return 0.0
    return outcome.error() if outcome.finite() else 0.0
