"""Training throughput of a teacher and where its time goes: `python -m tests.speed.training TASK [--device cuda]`.

Trains for `--seconds` without keeping the weights, prints images a second after the first steps (which compile),
then profiles a few steps and prints the operations that took most of the device's time.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from students.datafiles import add_data_root, apply_data_root
from students.models.teachers import TEACHERS, entry, trained_name
from students.training.teacher import train_teacher

PROFILED_STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch-size", type=int, help="default: the recipe's")
    add_data_root(parser)
    arguments = parser.parse_args()
    apply_data_root(arguments)
    name = trained_name(arguments.task)
    recipe = entry(name).recipe
    recipe = replace(recipe, batch_size=arguments.batch_size or recipe.batch_size)
    TEACHERS[name] = replace(entry(name), recipe=recipe)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "teacher.safetensors")
        train_teacher(name, out, device=arguments.device, time_limit=arguments.seconds)
        speed = json.loads(out.with_suffix(".json").read_text())["images_per_second"]
        print(f"{name} on {arguments.device}, batch {recipe.batch_size}: {speed:.0f} images a second")
        TEACHERS[name] = replace(entry(name), recipe=replace(recipe, steps=PROFILED_STEPS))
        cuda = torch.device(arguments.device).type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities) as profiler:
            train_teacher(name, out, device=arguments.device)
    table = profiler.key_averages().table(
        sort_by="self_cuda_time_total" if cuda else "self_cpu_time_total", row_limit=25, max_name_column_width=60
    )
    print(table)


if __name__ == "__main__":
    main()
