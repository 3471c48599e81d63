"""Mathematics that methods share: distances, random levels, steps in VE coordinates, forward-mode derivatives."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from students.diffusion.denoiser import expand
from students.diffusion.schedules import VE
from students.errors import FewstepError, unknown
from students.networks.network import Network
from students.samplers.levels import LARGEST_SCALE
from students.training.perceptual import load_lpips


def jump(x: Tensor, x0: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """DDIM's step from noise level s to t, each 0-d or (N,), in VE coordinates: x0 + t / s (x - x0)."""
    return x0 + expand(t / s, x) * (x - x0)


def heun_jump(denoise, x: Tensor, s: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """Heun's step from noise level s to t, each (N,), in VE coordinates (EDM [2206.00364], Alg. 1)."""
    slope = (x - denoise(x, s, condition)) / expand(s, x)
    there = x + expand(t - s, x) * slope
    slope_there = (there - denoise(there, t, condition)) / expand(t, x)
    return x + expand((t - s) / 2, x) * (slope + slope_there)


def moved(step, network, x: Tensor, start: Tensor, end: Tensor, condition: Tensor | None) -> Tensor:
    """x (N, ...) after `step(network, x, start, end, condition)`, but of rows whose two levels, (N,), are one."""
    rows = (start != end).nonzero()[:, 0]
    if not len(rows):
        return x
    part = None if condition is None else condition[rows]
    return x.index_copy(0, rows, step(network, x[rows], start[rows], end[rows], part))


def squared(a: Tensor, b: Tensor) -> Tensor:
    """(N,) mean squared differences."""
    return (a - b).square().flatten(1).mean(1)


def absolute(a: Tensor, b: Tensor) -> Tensor:
    """(N,) mean absolute differences."""
    return (a - b).abs().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """(N,) sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(D) (iCT [2310.14189], Sec. 3.3)."""
    difference = (a - b).flatten(1)
    c = 0.00054 * difference.shape[1] ** 0.5
    return (difference.square().sum(1) + c**2).sqrt() - c


@contextmanager
def as_target(model: nn.Module) -> Iterator[None]:
    """Within, a model that is trained computes targets for itself: without gradients, and without dropout."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


SLOW = 4.0  # times t, of order one, before its sines and cosines are taken: their derivatives are of order one as well

DISTANCES = {"l1": absolute, "l2": squared, "pseudo_huber": pseudo_huber}
LPIPS = "lpips"


def distance(name: str, shape: Sequence[int], device) -> Callable[[Tensor, Tensor], Tensor]:
    """(N,) distances of two batches: "l1", "l2" (means), "pseudo_huber", or "lpips" for colour images.

    Raises FewstepError for another name, and for LPIPS where it cannot be had: nothing takes its place silently.
    """
    if name in DISTANCES:
        return DISTANCES[name]
    if name != LPIPS:
        raise unknown("distance", name, [*DISTANCES, LPIPS])
    if len(shape) != 3 or shape[0] != 3:
        raise FewstepError(f"LPIPS compares colour images, not {tuple(shape)}: take l2 or pseudo_huber")
    lpips = load_lpips(device)
    return lambda a, b: lpips(a, b).flatten()


def randint(high: int, n: int, generator: torch.Generator) -> Tensor:
    """(n,) integers from 0 to high - 1, uniform."""
    return torch.randint(high, (n,), generator=generator, device=generator.device)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape of `like`."""
    return torch.randn(like.shape, generator=generator, device=like.device)


def log_normal(n: int, mean: float, std: float, schedule: VE, generator: torch.Generator) -> Tensor:
    """(n,) noise levels, float64: log sigma ~ N(mean, std^2), clipped to the schedule's range."""
    z = torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
    return (mean + std * z).exp().clamp(schedule.t_min, schedule.t_max)


def matching_levels(n: int, sigma_data: float, schedule: VE, generator: torch.Generator) -> Tensor:
    """(n,) noise levels at which a teacher tells a generator about its images.

    Half of them lie below a quarter of sigma_data. Higher ones say where the modes are, which the generator knows in a
    few hundred updates; lower ones how sharp they are. Even levels of EDM's grid, as in DMD and SiD, half of them above
    5 sigma_data, are worse here: 0.30 against 0.19 of SiD on the digits after 1,280 updates.
    """
    return log_normal(n, math.log(0.25 * sigma_data), 1.4, schedule, generator)


def draw_scales(n: int, generator: torch.Generator) -> Tensor:
    """(n, 1) guidance scales, uniform from 1 (none) to LARGEST_SCALE."""
    return 1 + (LARGEST_SCALE - 1) * torch.rand(n, 1, generator=generator, device=generator.device)


def slow_time(network: Network, first: float, last: float, updates: int = 500, lr: float = 1e-2) -> None:
    """Give a trained network an embedding of t slow enough for `tangent`, like the one it had for t from first to last.

    For networks that are to keep what they know; one that starts from scratch needs `Network.slow_time` alone.
    """
    if network.scale <= SLOW:
        return
    times = torch.linspace(first, last, 256, device=next(network.parameters()).device)
    with torch.no_grad():
        wanted = network.embed_time(times)
    network.slow_time(SLOW)
    optimiser = torch.optim.Adam(network.parameters(), lr)
    for _ in range(updates):
        optimiser.zero_grad()
        squared(network.embed_time(times), wanted).mean().backward()
        optimiser.step()
    optimiser.zero_grad()


def tangent(f: Callable, at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """f(*at), and its derivative in the direction `along`, in forward mode."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no forward-mode derivative
        return torch.func.jvp(f, at, along)  # type: ignore[return-value]
