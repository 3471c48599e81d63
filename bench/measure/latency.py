"""Time and memory: device-synchronised, warm-up excluded, the networks' share apart."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

MIB = 2**20
LEAST_CALLS = 3
TIMED_BATCHES = 2
SPARE_SECONDS = 1.0


def synchronise(device: torch.device) -> None:
    """Wait until a device has done its queued work; the CPU queues none."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile (linearly interpolated) in milliseconds."""
    median, p90 = np.percentile(seconds, [50, 90]) * 1000
    return {"median_ms": float(median), "p90_ms": float(p90)}


def measure_latency(
    run: Callable[[], object], device, repeats: int = 10, warmup: int = 2, enough: float = math.inf
) -> list[float]:
    """The seconds of `repeats` calls of `run`, after `warmup` calls that do not count.

    They are as few as LEAST_CALLS where these take `enough` seconds together: what is slow varies less.
    """
    device = torch.device(device)
    seconds = []
    for i in range(warmup + repeats):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        if i >= warmup:
            seconds.append(time.perf_counter() - start)
        if len(seconds) >= LEAST_CALLS and sum(seconds) >= enough:
            break
    return seconds


def measure_throughput(batches: Sequence[tuple[int, float]], again: Callable[[int], float]) -> dict[str, float]:
    """Milliseconds an image in batches of the full size: median and 90th percentile of those that are warm.

    batches: (images, seconds) in the order they were drawn. The first of the full size warms up and does not count.
    If none is left, `again(size)` draws one more and gives its seconds; up to TIMED_BATCHES are drawn so, as long as
    another one promises to end within SPARE_SECONDS.
    """
    size = max(length for length, _ in batches[-2:])
    warm = [seconds for length, seconds in batches if length == size][1:]
    spare = SPARE_SECONDS
    while not warm or (len(warm) < TIMED_BATCHES and warm[-1] <= spare):
        warm.append(again(size))
        spare -= warm[-1]
    times = summary([seconds / size for seconds in warm])
    return {"throughput_batch": size, "throughput_ms": times["median_ms"], "throughput_p90_ms": times["p90_ms"]}


class NetworkClock:
    """Times the calls of given modules inside the block, by hooks; `seconds` is their sum.

        with NetworkClock(student.networks(), device) as clock:
            student.sample(4)
        clock.seconds

    A module called by another timed module is part of it. The device is synchronised around each call, which
    on a GPU can make the whole slower: take the latency without it and only the share from here.
    """

    def __init__(self, modules: Iterable[nn.Module], device):
        self.modules = list(modules)
        self.device = torch.device(device)
        self.seconds = 0.0
        self._depth = 0
        self._start = 0.0

    def _enter(self, module, args):
        if self._depth == 0:
            synchronise(self.device)
            self._start = time.perf_counter()
        self._depth += 1

    def _leave(self, module, args, output):
        self._depth -= 1
        if self._depth == 0:
            synchronise(self.device)
            self.seconds += time.perf_counter() - self._start

    def __enter__(self):
        self._hooks = [module.register_forward_pre_hook(self._enter) for module in self.modules]
        self._hooks += [module.register_forward_hook(self._leave, always_call=True) for module in self.modules]
        return self

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()


class PeakMemory:
    """The largest memory in use at any time inside the block: `peak_mb` in MiB, and `kind`, what was watched.

    kind: "cuda" (allocated by torch on the device), "resident" (the process' resident memory, Linux), or
    "process" (resident memory since the process began, where the peak cannot be reset: an upper bound).
    """

    def __init__(self, device):
        self.device = torch.device(device)
        self.kind = "cuda" if self.device.type == "cuda" else "process"
        self.peak_mb = float("nan")

    def __enter__(self):
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _reset_resident_peak():
            self.kind = "resident"
        return self

    def __exit__(self, *error):
        if self.kind == "cuda":
            self.peak_mb = torch.cuda.max_memory_allocated(self.device) / MIB
        elif self.kind == "resident":
            self.peak_mb = _resident_peak_kib() / 1024
        else:
            self.peak_mb = _process_peak_mb()


def _reset_resident_peak() -> bool:
    """Set VmHWM back to the current resident memory (proc(5), clear_refs); False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident_peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _process_peak_mb() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
