"""One training loop: AdamW with warm-up and cosine decay, clipping, an average of the weights, exact resume.

All randomness of step n is drawn from generators seeded by (seed, n), so that a run that was stopped and
resumed ends with the weights of an uninterrupted one, and a checkpoint needs no generator's state. Started by
`accelerate launch`, every process takes its share of the batch, and gradients are averaged over all of them.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from tqdm import tqdm

from students.base import batch_rows
from students.errors import FewstepError
from students.training.checkpoint import check_folder, hold, load_checkpoint, save_checkpoint
from students.training.ema import EMA

LOG_EVERY = 50
CURVE_POINTS = 100
MEASUREMENTS = 10


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
    loss: Callable[[torch.Generator, int], Tensor],
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
    averages: dict[str, EMA] | None = None,
    networks: dict[str, Sequence[nn.Module]] | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    title: str = "training",
) -> tuple[nn.Module, dict]:
    """Minimise `loss(generator, step)`, the mean loss of a fresh batch, over the parameters of `model`.

    generator: on the model's device; what the batch draws, it draws from it (dropout uses the global one).
    batch_size: images a step, of all processes; the loss is of `batch_share(batch_size)` of them.
    dtype: bfloat16 runs the networks under autocast, float32 as they are.
    state: a folder for checkpoints, one every `save_every` seconds and one at the end. A checkpoint found there
        is continued, if it is of the same `config`. time_limit: seconds, after which this call stops.
    averages: moving averages of `model` that the loss uses, updated after every step and stored with the rest.
    networks: modules by role ("teacher", "student"), whose evaluations are counted, one for each row of a batch.
    measure: the quality of the averaged model, taken MEASUREMENTS times over the planned steps; its evaluations of
        networks are not counted.

    Returns the averaged model and a record: steps, planned_steps, images_seen, seconds, processes, images_per_second
    (without the first steps of a call, which compile), evaluations by role, final_loss (mean of the last hundred),
    loss_curve (pairs of step and mean loss), quality_curve (triples of images, evaluations and measure). Raises
    FewstepError, with the step, when the loss or its gradient is no longer finite (the last checkpoint stays), for a
    checkpoint of another configuration, for a folder that cannot be written, and what `save_checkpoint` raises.
    """
    processes = PartialState()
    device = next(model.parameters()).device
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=device.type == "cuda"
    )
    followers = {"ema": EMA(model, ema_decay), **(averages or {})}
    rows = dict.fromkeys(networks or {}, 0)
    losses = torch.zeros(steps)
    curve: list[tuple[int, int, float]] = []
    measured_at = {round(steps * (i + 1) / MEASUREMENTS) for i in range(MEASUREMENTS)} if measure else set()
    first, before = 0, 0.0
    if state is not None:
        check_folder(state)
        if processes.is_main_process:
            hold(state)
        if (found := load_checkpoint(state, config)) is not None:
            tensors, progress = found
            first, before = progress["step"], progress["seconds"]
            rows |= progress["evaluations"]
            curve = progress["quality_curve"]
            losses[:first] = tensors.pop("losses")
            _restore(tensors, model, followers, optimiser, first)
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
        tensors = _state(model, followers, optimiser) | {"losses": losses[:step]}
        progress = {"step": step, "seconds": seconds(), "evaluations": rows, "quality_curve": curve}
        if processes.is_main_process:
            save_checkpoint(state, config, tensors, progress)

    model.train()
    step = first
    with (
        tqdm(total=steps, initial=first, desc=title, unit="step", mininterval=1, dynamic_ncols=True) as bar,
        RowCount(networks or {}, rows, processes.num_processes) as counting,
    ):
        while step < steps:
            torch.manual_seed(step_seed(seed + processes.process_index, 2 * step))
            generator.manual_seed(step_seed(seed + processes.process_index, 2 * step + 1))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, lr, warmup)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                value = loss(generator, step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            if processes.num_processes > 1:
                value = reduce(value.detach(), "mean")
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad = reduce(parameter.grad, "mean")
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
            for follower in followers.values():
                follower.update(model)
            pending.append(torch.where(norm.isfinite(), value.detach(), norm))
            step += 1
            bar.update()
            if step in measured_at:
                with counting.paused():
                    value = measure(followers["ema"].module)
                curve.append((step * batch_size, sum(rows.values()), value))
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
    return followers["ema"].module, {
        "steps": step,
        "planned_steps": steps,
        "images_seen": step * batch_size,
        "seconds": round(seconds(), 1),
        "processes": processes.num_processes,
        "images_per_second": round(rate(), 1),
        "evaluations": rows,
        "final_loss": losses[max(0, step - 100) : step].mean().item(),
        "loss_curve": _curve(losses[:step]),
        "quality_curve": curve,
    }


def batch_share(batch_size: int) -> int:
    """The images of a batch that this process takes; raises FewstepError where processes cannot share it equally."""
    count = PartialState().num_processes
    if batch_size % count:
        raise FewstepError(f"{count} processes cannot share a batch of {batch_size}: take a multiple of {count}")
    return batch_size // count


def _curve(losses: Tensor) -> list[tuple[int, float]]:
    """Pairs of step and mean loss since the pair before, at most CURVE_POINTS."""
    parts = losses.split(max(1, math.ceil(len(losses) / CURVE_POINTS)))
    ends = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
    return [(end, round(part.mean().item(), 5)) for end, part in zip(ends, parts, strict=True)]


class RowCount:
    """Adds to `rows[role]` the rows of every batch that goes through a network of that role, times `factor`."""

    def __init__(self, networks: dict[str, Sequence[nn.Module]], rows: dict[str, int], factor: int = 1):
        self.rows, self.factor, self.counting = rows, factor, True
        self.hooks = [
            network.register_forward_pre_hook(self._counter(role), with_kwargs=True)
            for role, members in networks.items()
            for network in members
        ]

    def _counter(self, role: str):
        def count(module, args, kwargs):
            if self.counting:
                self.rows[role] += self.factor * batch_rows(args, kwargs)

        return count

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.counting = False
        yield
        self.counting = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def _state(model: nn.Module, followers: dict[str, EMA], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a step changes, as named tensors."""
    modules = {"model": model} | {name: follower.module for name, follower in followers.items()}
    tensors = {
        f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    return tensors


def _restore(
    tensors: dict[str, Tensor],
    model: nn.Module,
    followers: dict[str, EMA],
    optimiser: torch.optim.Optimizer,
    step: int,
) -> None:
    def part(prefix):
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("model."))
    for name, follower in followers.items():
        follower.module.load_state_dict(part(f"{name}."))
        follower.updates = step
    parameters = list(model.parameters())
    moments: dict[int, dict] = {}
    for name, tensor in part("optimiser.").items():
        index, _, moment = name.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter).copy_(tensor)  # in the parameter's memory format, as a fused step asks
        moments.setdefault(int(index), {})[moment] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
