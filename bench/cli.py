"""The command line: `python -m bench run|score|tune|search|repeat|study|table|list|plot|...`.

Nothing heavy is imported before a command needs it.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

from bench import cli_score, cli_table, cli_training
from bench.cli_shared import say_written, whole
from students.datafiles import add_data_root, apply_data_root
from students.errors import FewstepError

EXAMPLES = """examples:
  python -m bench run digits --steps 1 2 4 8
  python -m bench run digits --students unipc ddim:eta=1 diffusers:HeunDiscreteScheduler --nfe 4 8
  python -m bench run digits --students unipc --guidance 1 2 4 --samples 200 --seed-blocks 1
  python -m bench run my_task.yaml --students my_package.my_module:MyStudent
"""
DTYPES = ("float32", "bfloat16", "float16")


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns 0, or 2 after an error that the user can mend or a cell that failed."""
    arguments = _parser().parse_args(argv)
    try:
        apply_data_root(arguments)
        return arguments.function(arguments)
    except FewstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: finished cells are kept, the same command continues", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="How good, how fast and how costly is a diffusion model in 1, 2, 4 or 8 steps?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    run = command("run", _run, "sweep students over step counts, measure, report")
    run.add_argument("task", help="a task by name, or the path of a task's YAML file")
    budget = run.add_mutually_exclusive_group()
    budget.add_argument("--steps", nargs="+", type=whole, metavar="N", help="step counts (default: the task's)")
    budget.add_argument(
        "--nfe", nargs="+", type=whole, metavar="N", help="network evaluations: each student takes the steps they buy"
    )
    run.add_argument("--students", nargs="+", metavar="SPEC", help="students (default: the task's)")
    run.add_argument("--samples", type=whole, metavar="N", help="samples per seed block (default: the task's)")
    run.add_argument("--seed-blocks", type=whole, metavar="K", help="seed blocks (default: the task's)")
    run.add_argument(
        "--first-block", type=whole, default=0, metavar="K", help="block k is the seeds kN ... (k+1)N - 1 (default: 0)"
    )
    run.add_argument("--guidance", nargs="+", type=float, metavar="W", help="guidance scales; 1 is none")
    run.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics (default: the task's)")
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    run.add_argument("--dtype", default="float32", choices=DTYPES, help="of the teacher's network")
    run.add_argument("--batch-size", type=whole, metavar="N", help="of sampling (default: the task's)")
    run.add_argument("--extractor", metavar="NAME", help="of features (default: the task's)")
    run.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS", help="begin no cell after that")
    run.add_argument("--workers", type=whole, metavar="N", help="processes on this machine (default: what is fastest)")
    run.add_argument("--save-images", action="store_true", help="also keep every image as PNG, beside its cell")

    trainings = cli_training.add_commands(command)
    brought = cli_score.add_commands(command)
    table = cli_table.add_command(command)

    listing = command("list", _list, "tasks, students, metrics, protocols ... by name")
    sections = ("tasks", "students", "metrics", "studies", "protocols", "references", "tables")
    listing.add_argument("what", nargs="?", choices=sections, help="default: all")

    plot = command("plot", _plot, "redraw reports/<task> from the store")
    board = command("leaderboard", _leaderboard, "rewrite leaderboards/<task>.md from the store")
    for sub in (plot, board):
        sub.add_argument("tasks", nargs="*", metavar="TASK", help="default: every task that the store has cells of")
    for sub in (run, plot, board):
        sub.add_argument(
            "--out",
            type=Path,
            default=Path(),
            metavar="DIR",
            help="parent of run/, reports/, leaderboards/ (default: .)",
        )
    doctor = command("doctor", _doctor, "what is installed, found and missing, and what each missing piece needs")
    for sub in (run, doctor, table, *trainings, *brought):
        add_data_root(sub)
    return parser


def _run(arguments) -> int:
    from bench import report, sweep
    from bench.plan import check_metrics, plan
    from bench.store import FAILED, Store
    from bench.tasks import load_task

    default = load_task(arguments.task)
    task = _asked(default, arguments)
    names = arguments.students or task.students
    metrics = arguments.metrics or task.metrics
    scales = arguments.guidance or task.guidance
    check_metrics(task, metrics)
    if arguments.nfe:
        from bench.budgets import runs_for_budgets

        runs = runs_for_budgets(task, names, arguments.nfe, scales, arguments.device, arguments.dtype)
        if not runs:
            raise FewstepError("no student can do with so few evaluations: give --nfe more")
    else:
        runs = [(name, n, w) for name in names for w in scales for n in arguments.steps or task.steps]
    cells = plan(task, runs, arguments.dtype, arguments.first_block)
    store = Store(arguments.out, task.name)
    records = sweep.run(
        cells,
        task,
        store,
        metrics,
        arguments.device,
        arguments.dtype,
        arguments.save_images,
        arguments.time_limit,
        arguments.workers,
    )
    report.print_table(records, task, store)
    say_written(report.write(task, store, arguments.out, report.variant_folder(task, default)))
    failed = [(record, record["reason"]) for record in records if record["status"] == FAILED]
    failed += [
        (record, f"{name}: {reason}")
        for record in records
        for name, reason in record.get("failures", {}).items()
        if name in metrics
    ]
    for record, reason in failed:
        print(f"error: {record['student']} at {record['steps']} steps: {reason}", file=sys.stderr)
    return 2 if failed else 0


def _asked(task, arguments):
    """The task with the samples, seed blocks, batch size and extractor of the command line."""
    from bench.plan import resolve_extractor

    if math.isnan(arguments.time_limit):
        raise FewstepError("--time-limit must be a number of seconds, got nan")
    if arguments.save_images and task.kind != "image":
        raise FewstepError(f"task {task.name!r} has no images: leave --save-images out")
    if arguments.first_block < 0:
        raise FewstepError(f"--first-block must be at least 0, got {arguments.first_block}")
    if arguments.workers is not None and arguments.workers < 1:
        raise FewstepError(f"--workers must be at least 1, got {arguments.workers}")
    for key in ("samples", "seed_blocks", "batch_size"):
        value = getattr(arguments, key, None)
        if value is not None:
            if value < 1:
                raise FewstepError(f"--{key.replace('_', '-')} must be at least 1, got {value}")
            task = replace(task, **{key: value})
    return resolve_extractor(task, arguments.extractor)


def _list(arguments) -> int:
    from bench.listing import lines

    print("\n".join(lines(arguments.what)))
    return 0


def _plot(arguments) -> int:
    from bench import report

    for task, store in _stored(arguments):
        for variant in report.variants(task, store.cells()):
            say_written(report.write(variant, store, arguments.out, report.variant_folder(variant, task)))
    return 0


def _leaderboard(arguments) -> int:
    from bench import report

    for task, store in _stored(arguments):
        for path in report.write_leaderboard(task, store, arguments.out):
            print(f"wrote {path}")
    return 0


def _stored(arguments):
    """The tasks named, or all that have cells, each with its store."""
    from bench.store import Store
    from bench.tasks import load_task, task_names

    tasks = [load_task(name) for name in arguments.tasks or task_names()]
    found = [(task, Store(arguments.out, task.name)) for task in tasks if (arguments.out / "run" / task.name).is_dir()]
    if len(found) < len(arguments.tasks) or not found:
        missing = ", ".join(arguments.tasks) or "any task"
        raise FewstepError(f"{arguments.out / 'run'} has no cells of {missing}: python -m bench run TASK makes them")
    return found


def _doctor(arguments) -> int:
    from bench import doctor

    lines, sound = doctor.report()
    print("\n".join(lines))
    return 0 if sound else 2
