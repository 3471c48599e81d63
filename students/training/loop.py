"""One training loop: AdamW with warm-up and cosine decay, clipping, an average of the weights, exact resume.

All randomness of step n is drawn from generators seeded by (seed, n), so that a run that was stopped and
resumed ends with the weights of an uninterrupted one, and a checkpoint needs no generator's state.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from students.base import batch_rows
from students.errors import FewstepError
from students.training.checkpoint import check_folder, load_checkpoint, save_checkpoint

LOG_EVERY = 50
CURVE_POINTS = 100


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


def step_seed(seed: int, step: int) -> int:
    """32 bits that differ from step to step and from seed to seed (the finaliser of SplitMix64)."""
    x = (seed * 0x9E3779B97F4A7C15 + step + 1) * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return (x ^ (x >> 31)) >> 32


def train(
    model: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    warmup: int = 200,
    ema_decay: float = 0.999,
    clip: float = 1.0,
    weight_decay: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    state: Path | None = None,
    config: dict | None = None,
    save_every: float = 300.0,
    time_limit: float = math.inf,
    networks: dict[str, Sequence[nn.Module]] | None = None,
    title: str = "training",
) -> tuple[nn.Module, dict]:
    """Minimise `loss(generator)`, the mean loss of a fresh batch, over the parameters of `model`.

    generator: on the model's device; what the batch draws, it draws from it (dropout uses the global one).
    dtype: bfloat16 runs the networks under autocast, float32 as they are.
    state: a folder for checkpoints, one every `save_every` seconds and one at the end. A checkpoint found there
        is continued, if it is of the same `config`. time_limit: seconds, after which this call stops.
    networks: modules by role ("teacher", "student"), whose evaluations are counted, one for each row of a batch.

    Returns the averaged model and a record: steps, planned_steps, images_seen, seconds, images_per_second (without
    the first steps of a call, which compile), evaluations by role, final_loss (mean of the last hundred), loss_curve
    (pairs of step and mean loss). Raises FewstepError, with
    the step, when the loss or its gradient is no longer finite (the last checkpoint stays), for a checkpoint of
    another configuration, for a folder that cannot be written, and what `save_checkpoint` raises.
    """
    device = next(model.parameters()).device
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=device.type == "cuda"
    )
    ema = EMA(model, ema_decay)
    rows = dict.fromkeys(networks or {}, 0)
    losses = torch.zeros(steps)
    first, before = 0, 0.0
    if state is not None:
        check_folder(state)
        if (found := load_checkpoint(state, config)) is not None:
            tensors, progress = found
            first, before = progress["step"], progress["seconds"]
            rows |= progress["evaluations"]
            losses[:first] = tensors.pop("losses")
            _restore(tensors, model, ema, optimiser, first)
    generator = torch.Generator(device)
    pending: list[Tensor] = []  # losses that may not have been computed yet; where a gradient is not finite, its norm
    start = saved = warm = time.monotonic()
    warm_step = first

    def seconds() -> float:
        return before + time.monotonic() - start

    def rate() -> float:
        return (step - warm_step) * batch_size / max(time.monotonic() - warm, 1e-9)

    def collect() -> None:
        since = step - len(pending)
        losses[since:step] = torch.stack(pending).float().cpu()
        pending.clear()
        if not (finite := losses[since:step].isfinite()).all():
            at = since + int(finite.logical_not().nonzero()[0])
            raise FewstepError(
                f"the loss or its gradient became {losses[at].item()} at step {at}: lower the learning rate"
                + ("" if state is None else f"; {state} keeps the last good checkpoint, if there was one")
            )

    def checkpoint() -> None:
        tensors = _state(model, ema, optimiser) | {"losses": losses[:step]}
        save_checkpoint(state, config, tensors, {"step": step, "seconds": seconds(), "evaluations": rows})

    model.train()
    step = first
    with (
        tqdm(total=steps, initial=first, desc=title, unit="step", mininterval=1, dynamic_ncols=True) as bar,
        count_rows(networks or {}, rows),
    ):
        while step < steps:
            torch.manual_seed(step_seed(seed, 2 * step))
            generator.manual_seed(step_seed(seed, 2 * step + 1))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, lr, warmup)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                value = loss(generator)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
            ema.update(model)
            pending.append(torch.where(norm.isfinite(), value.detach(), norm))
            step += 1
            bar.update()
            now = time.monotonic()
            stop = now - start > time_limit
            if step % LOG_EVERY == 0 or step == steps or stop:
                collect()
                if warm_step == first and not (stop or step == steps):
                    warm, warm_step = now, step
                bar.set_postfix_str(f"loss {losses[max(0, step - 100) : step].mean():.4f}, {rate():.0f} images/s")
                if state is not None and (stop or step == steps or now - saved > save_every):
                    checkpoint()
                    saved = time.monotonic()
            if stop:
                break
    return ema.module, {
        "steps": step,
        "planned_steps": steps,
        "images_seen": step * batch_size,
        "seconds": round(seconds(), 1),
        "images_per_second": round(rate(), 1),
        "evaluations": rows,
        "final_loss": losses[max(0, step - 100) : step].mean().item(),
        "loss_curve": _curve(losses[:step]),
    }


def _curve(losses: Tensor) -> list[tuple[int, float]]:
    """Pairs of step and mean loss since the pair before, at most CURVE_POINTS."""
    parts = losses.split(max(1, math.ceil(len(losses) / CURVE_POINTS)))
    ends = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
    return [(end, round(part.mean().item(), 5)) for end, part in zip(ends, parts, strict=True)]


@contextmanager
def count_rows(networks: dict[str, Sequence[nn.Module]], rows: dict[str, int]) -> Iterator[None]:
    """Add to `rows[role]` the rows of every batch that goes through a network of that role."""

    def counter(role):
        def count(module, args, kwargs):
            rows[role] += batch_rows(args, kwargs)

        return count

    hooks = [
        network.register_forward_pre_hook(counter(role), with_kwargs=True)
        for role, members in networks.items()
        for network in members
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _state(model: nn.Module, ema: EMA, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a step changes, as named tensors."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.module.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    return tensors


def _restore(
    tensors: dict[str, Tensor], model: nn.Module, ema: EMA, optimiser: torch.optim.Optimizer, step: int
) -> None:
    def part(prefix):
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("model."))
    ema.module.load_state_dict(part("ema."))
    ema.updates = step
    parameters = list(model.parameters())
    moments: dict[int, dict] = {}
    for name, tensor in part("optimiser.").items():
        index, _, moment = name.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter).copy_(tensor)  # in the parameter's memory format, as a fused step asks
        moments.setdefault(int(index), {})[moment] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
