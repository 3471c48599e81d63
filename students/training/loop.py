"""One training loop: Adam with warm-up and cosine decay, gradient clipping, an average of the weights, a record."""

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm


class EMA:
    """An exponential moving average of a module's parameters, `decay` per step, warmed up as (1 + n) / (10 + n)."""

    def __init__(self, module: nn.Module, decay: float):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to `peak` over `warmup` steps, then half a cosine to zero at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    warmup: int = 200,
    ema_decay: float = 0.999,
    clip: float = 1.0,
    weight_decay: float = 0.0,
    time_limit: float = math.inf,
    title: str = "training",
) -> tuple[nn.Module, dict]:
    """Minimise `loss()`, the mean loss of a fresh batch, over the parameters of `model`.

    Returns the averaged model and a record: steps, images_seen, seconds, final_loss (mean of the last
    hundred). Stops after `time_limit` seconds if that comes first. Raises FloatingPointError, with the
    step, when the loss is no longer finite.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    ema = EMA(model, ema_decay)
    recent: list[float] = []
    start = time.monotonic()
    model.train()
    with tqdm(total=steps, desc=title, unit="step", mininterval=1) as bar:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, lr, warmup)
            value = loss()
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss became {value.item()} at step {step}")
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
            ema.update(model)
            recent = [*recent[-99:], value.item()]
            bar.update()
            if step % 50 == 0:
                rate = (step + 1) * batch_size / (time.monotonic() - start)
                bar.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}, {rate:.0f} images/s")
            if time.monotonic() - start > time_limit:
                break
    record = {
        "steps": step + 1,
        "images_seen": (step + 1) * batch_size,
        "seconds": round(time.monotonic() - start, 1),
        "final_loss": sum(recent) / len(recent),
    }
    return ema.module, record
