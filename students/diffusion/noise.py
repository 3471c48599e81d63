"""Per-seed noise: seed i means the same numbers at any batch size, in any shard, on any device.

Noise is a pure function of (seed, stream, draw, element): a counter-based generator needs no state and
no loop over seeds. Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
gives 32-bit words, Box-Muller makes normals of them. The words are equal on every device; the normals
agree to the rounding of log, cos and sin.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from students.whole import whole_numbers

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

STATE, LABEL = 0, 1  # streams: what the numbers are for


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Four 32-bit words from a counter of four words and a key of two, all held in int64 tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    # What stands above the 32 bits of c1, c3 and the keys never reaches the 32 bits of a word, so it is cut off late.
    for i in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) ^ c1 ^ (k0 + i * _KEY_STEPS[0])) & _MASK
        c2 = ((p0 >> 32) ^ c3 ^ (k1 + i * _KEY_STEPS[1])) & _MASK
        c1, c3 = p1, p0
    return [c0, c1 & _MASK, c2, c3 & _MASK]


def uniforms(seeds: Tensor, draws: Tensor, n: int, stream: int) -> Tensor:
    """(len(seeds), n) float64 numbers in (0, 1): the draw of index `draws[i]` of stream `stream` of seed i."""
    blocks = torch.arange((n + 3) // 4, device=seeds.device)[None, :]
    zero = torch.zeros_like(blocks)
    words = philox(
        (blocks, draws[:, None] + zero, zero + stream, zero),
        ((seeds[:, None] & _MASK), ((seeds[:, None] >> 32) & _MASK)),
    )
    return (torch.stack(words, dim=-1).flatten(1)[:, :n].double() + 0.5) / 2**32


def normals(seeds: Tensor, draws: Tensor, n: int) -> Tensor:
    """(len(seeds), n) float64 standard normals by Box-Muller."""
    u = uniforms(seeds, draws, n + n % 2, STATE).unflatten(1, (-1, 2))
    radius, angle = (-2 * u[..., 0].log()).sqrt(), 2 * math.pi * u[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :n]


def class_uniforms(seeds: Tensor) -> Tensor:
    """(len(seeds),) float64 numbers in (0, 1), independent of the noise, by which classes are drawn."""
    return uniforms(seeds, torch.zeros_like(seeds), 1, LABEL)[:, 0]


class SeedNoise:
    """The noise of a batch of seeds, one draw after another.

    `noise()` is the next standard normal draw of every seed, `(len(seeds), *shape)`; `noise(rows)` the
    next draw of the given rows only (index or mask), for solvers whose rows advance at their own pace.
    """

    def __init__(self, seeds, shape: Sequence[int], device="cpu", dtype=torch.float32):
        self.seeds = whole_numbers(seeds, "seeds").to(device)
        self.shape = tuple(shape)
        self.dtype = dtype
        self._draws = torch.zeros_like(self.seeds)

    def __call__(self, rows=slice(None)) -> Tensor:
        self._draws[rows] += 1
        values = normals(self.seeds[rows], self._draws[rows], math.prod(self.shape))
        return values.to(self.dtype).unflatten(1, self.shape)

    def classes(self, count: int, prior: Tensor | None = None) -> Tensor:
        """(len(seeds),) classes, one of `count` a seed, independent of the noise.

        prior: (count,) probabilities, up to a factor; None for equal ones.
        """
        u = class_uniforms(self.seeds)
        prior = torch.ones(count) if prior is None else torch.as_tensor(prior)
        edges = prior.to(u).cumsum(0) / prior.sum().to(u)
        return torch.searchsorted(edges, u).clamp(max=count - 1)
