"""How much a sweep costs beyond its bare network calls: `python -m tests.speed.overhead [TASK]`.

Runs one seed block of the task's solvers, in this process, into a temporary folder, with every call of a denoiser timed
by hooks, and prints (loading + sampling + measuring + storing) / (time inside denoisers).
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from bench import sweep
from bench.plan import plan
from bench.store import Store
from bench.tasks import load_task
from students.diffusion.analytic import GaussianMixture
from students.diffusion.denoiser import Denoiser
from students.spec import TRAINED, parse


class Clock:
    """The seconds spent in calls of denoisers anywhere in this process."""

    def __init__(self):
        self.seconds = self._start = 0.0

    def enter(self, module, inputs) -> None:
        if isinstance(module, Denoiser | GaussianMixture):
            self._start = time.perf_counter()

    def leave(self, module, inputs, output) -> None:
        if isinstance(module, Denoiser | GaussianMixture):
            self.seconds += time.perf_counter() - self._start


def main() -> None:
    task = replace(load_task(sys.argv[1] if len(sys.argv) > 1 else "digits"), seed_blocks=1)
    solvers = [name for name in task.students if parse(name).kind != TRAINED]
    cells = plan(task, [(name, steps, 1.0) for name in solvers for steps in task.steps])
    clock = Clock()
    register_module_forward_pre_hook(clock.enter)
    register_module_forward_hook(clock.leave)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sweep.run(cells, task, Store(Path(folder), task.name), task.metrics)
        total = time.perf_counter() - start
    print(f"{task.name}: {total:.1f} s in all, {clock.seconds:.1f} s in the network, ratio {total / clock.seconds:.3f}")


if __name__ == "__main__":
    main()
