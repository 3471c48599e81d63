"""Commands that train and choose: tune, search, repeat, study, memory. Nothing heavy is imported before one runs."""

import argparse
from pathlib import Path

from bench.cli_shared import say_written, whole


def add_commands(command) -> list[argparse.ArgumentParser]:
    """Add them by `command(name, function, text)`; returns their parsers."""
    tune = command("tune", _tune, "choose the grid of each solver and step count: the file of grid=best")
    tune.add_argument("task", help="a task by name, or the path of a task's YAML file")
    tune.add_argument("--students", nargs="+", metavar="SPEC", help="solvers (default: the task's rows with grid=best)")
    tune.add_argument("--steps", nargs="+", type=whole, metavar="N", help="step counts (default: the task's)")
    tune.add_argument("--out", type=Path, metavar="FILE", help="default: beside the teacher's weights")
    tune.add_argument("--device", default="cpu")

    search = command("search", _search, "train every method under the same few learning rates and dropouts")
    search.add_argument("task", help="a task by name")
    search.add_argument("--methods", nargs="+", metavar="NAME", help="distillation methods (default: all)")
    search.add_argument("--out", type=Path, metavar="FILE", help="default: reports/<task>/search.csv")
    search.add_argument("--device", default="cpu")

    again = command("repeat", _repeat, "train methods again from other seeds, for the spread over them")
    again.add_argument("task", help="a task by name")
    again.add_argument("--methods", nargs="+", metavar="NAME", required=True, help="distillation methods")
    again.add_argument("--seeds", nargs="+", type=whole, metavar="N", default=[1, 2], help="of the training")
    again.add_argument("--device", default="cpu")

    study = command("study", _study, "train a paper's variants of its method, and compare them")
    study.add_argument("study", metavar="NAME", help="python -m bench list studies")
    study.add_argument("task", help="a task by name")
    study.add_argument("--device", default="cpu")

    memory = command("memory", _memory, "what an update of every method holds in memory, beside one of plain diffusion")
    memory.add_argument("task", help="a task by name")
    memory.add_argument("--methods", nargs="+", metavar="NAME", help="distillation methods (default: all)")
    return [tune, search, again, study, memory]


def _task(arguments):
    """The task named, with an extractor that is at hand."""
    from bench.plan import resolve_extractor
    from bench.tasks import load_task

    return resolve_extractor(load_task(arguments.task))


def _tune(arguments) -> int:
    from bench.tune import tune

    print(f"wrote {tune(_task(arguments), arguments.students, arguments.steps, arguments.out, arguments.device)}")
    return 0


def _search(arguments) -> int:
    from bench.trials import search

    print(f"wrote {search(_task(arguments), arguments.methods, arguments.out, arguments.device)}")
    return 0


def _repeat(arguments) -> int:
    from bench.trials import repeat

    say_written(repeat(_task(arguments), arguments.methods, arguments.seeds, arguments.device))
    return 0


def _study(arguments) -> int:
    import pandas as pd

    from bench.study import study

    paths = study(arguments.study, _task(arguments), arguments.device)
    print(pd.read_csv(paths[0]).to_string(index=False, float_format="%.3g"))
    say_written(paths)
    return 0


def _memory(arguments) -> int:
    import pandas as pd

    from bench.memory import memory

    path = memory(_task(arguments), arguments.methods or ())
    print(pd.read_csv(path).to_string(index=False))
    say_written([path])
    return 0
