"""What a training records on its way: the losses of the players, and evaluations of networks."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from students.errors import FewstepError
from students.nfe import batch_rows

CURVE_POINTS = 100
RECENT = 100


class History:
    """The loss of every player at every step, and its named terms (`player.term`); NaN where it was not its turn.

    main: the player whose loss is the training's. What is added may not have been computed yet: `collect` waits for it.
    """

    def __init__(self, steps: int, main: str):
        self.steps, self.main = steps, main
        self.values: dict[str, Tensor] = {}
        self._pending: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        self._pending.append((step, losses))

    def collect(self, step: int, note: str = "") -> None:
        """Store what was added; raises FewstepError, with the step, for a player's loss that is not finite."""
        broken = []
        for key in dict.fromkeys(key for _, losses in self._pending for key in losses):
            at = [i for i, losses in self._pending if key in losses]
            values = torch.stack([losses[key] for _, losses in self._pending if key in losses]).float().cpu()
            self._of(key)[at] = values
            if "." not in key:
                broken += [
                    (i, value, key) for i, value in zip(at, values.tolist(), strict=True) if not math.isfinite(value)
                ]
        if broken:
            first, value, key = min(broken, key=lambda entry: entry[0])
            whose = "the loss" if key == self.main else f"the loss of the {key}"
            raise FewstepError(f"{whose} or its gradient became {value} at step {first}: lower the learning rate{note}")
        self._pending.clear()

    def recent(self, step: int) -> float:
        """The training's loss, its mean over the last hundred updates."""
        losses = self._of(self.main)[:step]
        losses = losses[~losses.isnan()]
        return losses[-RECENT:].mean().item() if len(losses) else math.nan

    def curves(self, step: int) -> dict:
        """`loss_curve`, pairs of step and mean loss, and `loss_curves` of whatever else there is by name."""
        found = {key: _curve(values[:step]) for key, values in self.values.items()}
        rest = {key: curve for key, curve in found.items() if key != self.main}
        return {"loss_curve": found.get(self.main, [])} | ({"loss_curves": rest} if rest else {})

    def tensors(self, step: int) -> dict[str, Tensor]:
        """What a checkpoint at `step` keeps."""
        return {f"history.{key}": values[:step] for key, values in self.values.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        for name, values in tensors.items():
            if name.startswith("history."):
                self._of(name.removeprefix("history."))[:step] = values

    def _of(self, key: str) -> Tensor:
        return self.values.setdefault(key, torch.full((self.steps,), math.nan))


def _curve(losses: Tensor) -> list[tuple[int, float]]:
    """Pairs of step and mean loss since the pair before, at most CURVE_POINTS."""
    parts = losses.split(max(1, math.ceil(len(losses) / CURVE_POINTS)))
    ends = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
    means = [part.nanmean().item() for part in parts]
    return [(end, round(mean, 5)) for end, mean in zip(ends, means, strict=True) if not math.isnan(mean)]


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
