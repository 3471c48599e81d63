"""One training loop for any number of players: AdamW with warm-up and cosine decay, clipping, averages, exact resume.

All randomness of a player at step n is drawn from generators seeded by (seed, process, player, n), so that a run that
was stopped and resumed ends with the weights of an uninterrupted one, and a checkpoint needs no generator's state.
Started by `accelerate launch` or torchrun, every process takes its share of the batch, gradients are averaged over all
of them, and the clock of the first one decides for all when to save and when to stop.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from tqdm import tqdm

from students.errors import FewstepError
from students.training.checkpoint import check_folder, hold, load_checkpoint, save_checkpoint
from students.training.ema import EMA
from students.training.history import History, RowCount
from students.training.players import Player, others_fixed

LOG_EVERY = 50
MEASUREMENTS = 10
MOST_PLAYERS = 16


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to `peak` over `warmup` steps, then half a cosine to zero at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """32 bits that differ from step to step, stream to stream and seed to seed (the finaliser of SplitMix64).

    Streams lie 2^40 steps apart, so that no process or player of one seed repeats another's, nor another seed's.
    """
    x = (seed * 0x9E3779B97F4A7C15 + (stream << 40) + step + 1) * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return (x ^ (x >> 31)) >> 32


def train(
    players: dict[str, Player],
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    state: Path | None = None,
    config: dict | None = None,
    save_every: float = 300.0,
    time_limit: float = math.inf,
    networks: dict[str, Sequence[nn.Module]] | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    title: str = "training",
) -> tuple[dict[str, nn.Module], dict]:
    """Let the players take turns, in their order, for `steps` steps; the last one is what the training is about.

    batch_size: images a step, of all processes; a loss is of `batch_share(batch_size)` of them.
    dtype: bfloat16 runs the networks under autocast, float32 as they are.
    state: a folder for checkpoints, one every `save_every` seconds and one at the end. A checkpoint found there
        is continued, if it is of the same `config`, players and number of processes. time_limit: seconds, after which
        this call stops.
    networks: modules by role ("teacher", "student"), whose evaluations are counted, one for each row of a batch.
    measure: the quality of the last player's average, taken MEASUREMENTS times over the planned steps; its evaluations
        of networks are not counted.

    Returns the average of each player, or its module if none is kept, and a record: steps, planned_steps, images_seen,
    seconds, processes, images_per_second (without the first steps of a call, which compile), evaluations by role,
    final_loss (of the last player, mean of the last hundred), loss_curve (pairs of step and mean loss), loss_curves
    (those of other players and of named terms, where there are any), quality_curve (triples of images, evaluations and
    measure). Raises FewstepError, with the step, when a loss or its gradient is no longer finite (the last checkpoint
    stays), for a checkpoint of another configuration, for a folder that cannot be written, and what `save_checkpoint`
    raises.
    """
    run = _Run(players, steps, seed, dtype)
    processes, main = run.processes, list(players)[-1]
    config = None if config is None else config | {"processes": processes.num_processes, "players": list(players)}
    rows, curve, before = dict.fromkeys(networks or {}, 0), [], 0.0
    history = History(steps, main)
    measured_at = {round(steps * (i + 1) / MEASUREMENTS) for i in range(MEASUREMENTS)} if measure else set()
    if state is not None:
        check_folder(state, "--state folder")
        if processes.is_main_process:
            hold(state)
        if (found := load_checkpoint(state, config)) is not None:
            tensors, progress = found
            run.restore(tensors, progress["step"])
            history.restore(tensors, run.step)
            before, curve = progress["seconds"], progress["quality_curve"]
            rows |= progress["evaluations"]
    first = run.step
    start = saved = warm = time.monotonic()
    warm_step = first

    kept = "" if state is None else f"; {state} keeps the last good checkpoint, if there was one"

    def seconds() -> float:
        return before + time.monotonic() - start

    def rate() -> float:
        return (run.step - warm_step) * batch_size / max(time.monotonic() - warm, 1e-9)

    def checkpoint() -> None:
        progress = {"step": run.step, "seconds": seconds(), "evaluations": rows, "quality_curve": curve}
        if processes.is_main_process:
            save_checkpoint(state, config, run.tensors() | history.tensors(run.step), progress)  # type: ignore[arg-type]
        processes.wait_for_everyone()

    with (
        tqdm(total=steps, initial=first, desc=title, unit="step", mininterval=1, dynamic_ncols=True,
             disable=not processes.is_main_process) as bar,
        RowCount(networks or {}, rows, processes.num_processes) as counting,
    ):  # fmt: skip
        while run.step < steps:
            history.add(run.step, run.advance())
            bar.update()
            if run.step in measured_at:
                with counting.paused():
                    curve.append((run.step * batch_size, sum(rows.values()), measure(run.trained(main))))  # type: ignore[misc]
            now = time.monotonic()
            stop, save = run.agree(now - start > time_limit, now - saved > save_every)
            last = stop or run.step == steps
            if run.step % LOG_EVERY == 0 or last:
                history.collect(run.step, kept)
                if warm_step == first and not last:
                    warm, warm_step = now, run.step
                bar.set_postfix_str(f"loss {history.recent(run.step):.4f}, {rate():.0f} images/s")
                if state is not None and (save or last):
                    checkpoint()
                    saved = time.monotonic()
            if stop:
                break
    return {name: run.trained(name) for name in players}, {
        "steps": run.step,
        "planned_steps": steps,
        "images_seen": run.step * batch_size,
        "seconds": round(seconds(), 1),
        "processes": processes.num_processes,
        "images_per_second": round(rate(), 1),
        "evaluations": rows,
        "final_loss": history.recent(run.step),
        **history.curves(run.step),
        "quality_curve": curve,
    }


class _Run:
    """The players, their optimisers and averages, and the step they have come to."""

    def __init__(self, players: dict[str, Player], steps: int, seed: int, dtype: torch.dtype):
        self.processes = PartialState()
        self.players, self.steps, self.seed, self.dtype = players, steps, seed, dtype
        self.step = 0
        if self.processes.num_processes > 1:  # apart from the GPUs, which are not to be waited for
            self._hosts = torch.distributed.new_group(backend="gloo")
        self.device = next(list(players.values())[-1].module.parameters()).device
        self.generator = torch.Generator(self.device)
        self.parameters, self.optimisers, self.averages = {}, {}, {}
        for name, player in players.items():
            player.module.train()
            self.parameters[name] = [p for p in player.module.parameters() if p.requires_grad]
            self.optimisers[name] = torch.optim.AdamW(
                self.parameters[name], lr=player.lr, betas=player.betas, weight_decay=player.weight_decay,
                fused=True,
            )  # fmt: skip
            own = {} if player.ema_decay is None else {"ema": EMA(player.module, player.ema_decay)}
            self.averages[name] = own | player.averages

    def trained(self, name: str) -> nn.Module:
        """The average of a player, or its module if none is kept."""
        average = self.averages[name].get("ema")
        return self.players[name].module if average is None else average.module

    def advance(self) -> dict[str, Tensor]:
        """One step: the players whose turn it is, in order. Returns losses, and terms as `player.term`."""
        losses: dict[str, Tensor] = {}
        for place, (name, player) in enumerate(self.players.items()):
            if self.step % player.every == 0:
                stream = self.processes.process_index * MOST_PLAYERS + len(self.players) - 1 - place
                losses |= self._update(name, player, stream)
        self.step += 1
        return losses

    def _update(self, name: str, player: Player, stream: int) -> dict[str, Tensor]:
        self._seed_dropout(step_seed(self.seed, 2 * self.step, stream))
        self.generator.manual_seed(step_seed(self.seed, 2 * self.step + 1, stream))
        optimiser = self.optimisers[name]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, player.lr, player.warmup)
        with others_fixed(self.parameters, name):
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                value = player.loss(self.generator, self.step)
            terms = value if isinstance(value, dict) else {}
            total: Tensor = sum(terms.values()) if terms else value  # type: ignore[assignment]
            optimiser.zero_grad(set_to_none=True)
            total.backward()
        losses = {name: total} | {f"{name}.{term}": part for term, part in terms.items()}
        losses = {key: self._mean(part.detach()) for key, part in losses.items()}
        for parameter in self.parameters[name]:
            if parameter.grad is not None:
                parameter.grad = self._mean(parameter.grad)
        norm = nn.utils.clip_grad_norm_(self.parameters[name], player.clip)
        optimiser.step()
        for average in self.averages[name].values():
            average.update(player.module)
        losses[name] = torch.where(norm.isfinite(), losses[name], norm)
        return losses

    def _seed_dropout(self, seed: int) -> None:
        """As torch.manual_seed, which costs as much as a small network's evaluation: it visits devices of all kinds."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return value if self.processes.num_processes == 1 else reduce(value, "mean")

    def agree(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """What the first process wants, in all of them, as their clocks differ."""
        if self.processes.num_processes == 1:
            return stop, save
        wanted = torch.tensor([stop, save])
        torch.distributed.broadcast(wanted, 0, group=self._hosts)  # type: ignore[arg-type]
        return tuple(wanted.tolist())

    def tensors(self) -> dict[str, Tensor]:
        """What a step changes, by name."""
        tensors: dict[str, Tensor] = {}
        for name, player in self.players.items():
            modules = {"module": player.module} | {key: ema.module for key, ema in self.averages[name].items()}
            for role, module in modules.items():
                tensors |= {f"{name}.{role}.{key}": tensor for key, tensor in module.state_dict().items()}
            for index, moments in self.optimisers[name].state_dict()["state"].items():
                tensors |= {f"{name}.optimiser.{index}.{key}": torch.as_tensor(v) for key, v in moments.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from what `tensors` gave after `step` steps."""
        self.step = step
        for name, player in self.players.items():
            player.module.load_state_dict(_part(tensors, f"{name}.module."))
            for key, average in self.averages[name].items():
                average.module.load_state_dict(_part(tensors, f"{name}.{key}."))
                average.updates = math.ceil(step / player.every)
            _restore_optimiser(self.optimisers[name], self.parameters[name], _part(tensors, f"{name}.optimiser."))


def batch_share(batch_size: int) -> int:
    """The images of a batch that this process takes; raises FewstepError where processes cannot share it equally."""
    count = PartialState().num_processes
    if batch_size % count:
        raise FewstepError(f"{count} processes cannot share a batch of {batch_size}: take a multiple of {count}")
    return batch_size // count


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _restore_optimiser(optimiser: torch.optim.Optimizer, parameters: list, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict] = {}
    for name, tensor in tensors.items():
        index, _, moment = name.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter).copy_(tensor)  # in the parameter's memory format, as a fused step asks
        moments.setdefault(int(index), {})[moment] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
