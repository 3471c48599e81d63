"""All noise of a scheduler of `diffusers` from one source."""

import sys
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _BrownianPath:
    """Normalised increments (W_b - W_a) / sqrt(|b - a|), nested ones with the same start on one path."""

    def __init__(self, draw):
        self.draw = draw
        self.start = None

    def __call__(self, a, b) -> Tensor:
        a, b = float(a), float(b)
        if a != self.start:
            self.start, self.end, self.w = a, a, 0
        self.w = self.w + abs(b - self.end) ** 0.5 * self.draw()
        self.end = b
        return self.w / abs(b - a) ** 0.5


@contextmanager
def noise_from(draw, scheduler):
    """Let the scheduler take all its noise from `draw()`, by replacing the two sources its module has."""
    module: Any = sys.modules[type(scheduler).__module__]
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = _BrownianPath(draw)
    if not hasattr(module, "randn_tensor"):
        yield
        return
    original = module.randn_tensor
    module.randn_tensor = lambda shape, *args, dtype=None, **kwargs: draw().reshape(shape).to(dtype or torch.float64)
    try:
        yield
    finally:
        module.randn_tensor = original
