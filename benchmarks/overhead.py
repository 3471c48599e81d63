"""How much a sweep costs beyond its bare network calls: `python -m benchmarks.overhead [TASK]`.

Runs the task's sweep into a temporary folder with every network call timed by hooks, and prints
(sampling + measuring + storing) / (time inside the networks). Loading the teacher, data and extractor is left out.
"""

import sys
import tempfile
import time
from pathlib import Path

from bench.evaluate import Evaluator
from bench.measure.latency import NetworkClock
from bench.plan import REAL, plan
from bench.results import Store
from bench.tasks import load_task

task = load_task(sys.argv[1] if len(sys.argv) > 1 else "digits")
runs = [(name, steps, 1.0) for name in task.students for steps in task.steps]
evaluator = Evaluator(task, task.metrics, "cpu", "float32")
evaluator.prepare(task.students)
network = evaluator.teacher
with tempfile.TemporaryDirectory() as folder, NetworkClock([network], evaluator.device) as clock:
    store = Store(Path(folder), task.name)
    store.open()
    start = time.perf_counter()
    for cell in plan(task, runs):
        if cell.student != REAL and cell.seed_block == 0:
            with store.claim(cell.id):
                evaluator.complete(cell, store)
    total = time.perf_counter() - start
print(f"{task.name}: {total:.1f} s in all, {clock.seconds:.1f} s in the network, ratio {total / clock.seconds:.3f}")
