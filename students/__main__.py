"""`python -m students list`, `train METHOD --task TASK`, `schedule METHOD --task TASK` and `convert IN OUT`."""

import argparse
import os
import sys
from pathlib import Path

from students.conventions import CONVENTIONS
from students.datafiles import add_data_root, apply_data_root
from students.errors import FewstepError, Stopped, unknown
from students.models.cards import listing
from students.models.found_grids import SEARCHES
from students.models.teachers import TEACHERS
from students.options import parse_assignments
from students.spec import METHODS, STUDENTS

TEACHER, ENCODER = "teacher", "encoder"


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns 0, also where --time-limit ended a training, or 2 after an error the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m students", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every student by name, and what can be trained")
    train = commands.add_parser("train", help="train a teacher or an encoder, or distil a student")
    train.add_argument("method", help=", ".join([TEACHER, ENCODER, *METHODS]))
    train.add_argument("--task", required=True, help=", ".join(TEACHERS))
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu")
    train.add_argument("--time-limit", type=float, default=float("inf"), metavar="SECONDS",
                       help="stop then with a checkpoint, from which the same command goes on")  # fmt: skip
    train.add_argument("--state", type=Path, help="folder of checkpoints (default: run/train/METHOD-TASK)")
    train.add_argument("--out", type=Path, help="the weights file of a teacher or encoder, or the folder for a "
                       "method's, to write (default: the weights that ship)")  # fmt: skip
    train.add_argument("--teacher", help="distil another than the task's: weights of its recipe, file:PATH ...")
    train.add_argument("--pairs", type=Path, help="folder of noise-image pairs (default: named by what makes them)")
    train.add_argument("--budget", type=float, help="network evaluations, relative to the teacher's own training")
    train.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings",
                       help="of the training: steps, batch_size, lr ... (students/training/settings.py)")  # fmt: skip
    train.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="of the method (see its file)")
    add_data_root(train)
    schedule = commands.add_parser("schedule", help="find time grids for a teacher")
    schedule.add_argument("method", help=", ".join(SEARCHES))
    schedule.add_argument("--task", required=True, help="a teacher: a task's, FAMILY:NAME, file:PATH, module:attribute")
    schedule.add_argument("--steps", nargs="+", type=int, metavar="N", help="step counts (default: 1 to 32)")
    schedule.add_argument("--images", type=int, metavar="N", help="trajectories (default: the method's)")
    schedule.add_argument("--out", type=Path, help="the file to write (default: beside the teacher's weights)")
    schedule.add_argument("--device", default="cpu")
    add_data_root(schedule)
    convert = commands.add_parser("convert", help="a public checkpoint as safetensors, without running its code")
    convert.add_argument("source", type=Path)
    convert.add_argument("out", type=Path, help="ends in .safetensors")
    convert.add_argument("--trust-pickle", action="store_true", help="run the code of a pickle that has to be run")
    arguments = parser.parse_args(argv)
    try:
        apply_data_root(arguments)
        return {"list": _list, "train": _train, "schedule": _schedule, "convert": _convert}[arguments.command](
            arguments
        )
    except Stopped as note:
        if os.environ.get("RANK", "0") == "0":  # of several processes all stop, and one says so
            print(f"note: {note}", file=sys.stderr)
        return 0
    except FewstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = arguments.command == "train"
        left = "the same command goes on from the last checkpoint" if goes_on else "nothing was written"
        print(f"\ninterrupted: {left}", file=sys.stderr)
        return 130


def _list(arguments) -> int:
    print("students (python -m bench run TASK --students ...):")
    for name, entry in STUDENTS.items():
        print(f"  {name:<22}{entry.summary}; grid {entry.grid.name}")  # type: ignore[union-attr]
    print(f"  {'diffusers:<Class>':<22}any scheduler of diffusers, by class name")
    print("published conventions, for solvers, STUDENT:convention=NAME (docs/guides/grids.md):")
    for name, rules in CONVENTIONS.items():
        print(f"  {name:<28}{rules.summary}; {rules.source}")
    print("public checkpoints, FAMILY:NAME, and of a teacher also FAMILY:NAME:STUDENT; one's own, file:PATH:STUDENT:")
    for spec, summary in listing():
        print(f"  {spec:<36}{summary}")
    print("methods (python -m students train METHOD --task TASK); METHOD or METHOD:weights=FOLDER is its student, also")
    print("where a family of checkpoints has that name:")
    trainable = ", ".join(name for name, entry in TEACHERS.items() if entry.recipe)
    print(f"  {TEACHER:<22}the task's teacher, by denoising score matching; tasks: {trainable}")
    print(f"  {ENCODER:<22}the task's encoder, in whose feature space adversarial students may be trained")
    for name, entry in METHODS.items():
        print(f"  {name:<22}{entry.summary}")
    return 0


def _train(arguments) -> int:
    if arguments.method not in (TEACHER, ENCODER, *METHODS):
        raise unknown("method", arguments.method, [TEACHER, ENCODER, *METHODS])
    if arguments.task not in TEACHERS:
        raise unknown("task", arguments.task, TEACHERS)
    if not 0 <= arguments.seed < 2**63:
        raise FewstepError(f"--seed must be a whole number from 0 to 2^63 - 1, got {arguments.seed}")
    state = arguments.state or Path("run", "train", f"{arguments.method}-{arguments.task}")
    common = (arguments.task, arguments.out, arguments.seed, arguments.device, arguments.time_limit, state)
    if arguments.method in (TEACHER, ENCODER):
        from students.training.encoder import train_encoder
        from students.training.teacher import train_teacher

        given = [key for key in ("teacher", "pairs", "budget", "settings", "options") if getattr(arguments, key)]
        if given:
            what = {TEACHER: "a teacher", ENCODER: "an encoder"}[arguments.method]
            raise FewstepError(f"{what} is trained by its recipe: leave --{given[0].replace('settings', 'set')} out")
        paths = {TEACHER: train_teacher, ENCODER: train_encoder}[arguments.method](*common)
    else:
        from students.training.distill import train_method

        paths = train_method(
            arguments.method,
            *common,
            pairs=arguments.pairs,
            teacher=arguments.teacher,
            budget=arguments.budget,
            settings=parse_assignments(arguments.settings, "--set"),
            options=parse_assignments(arguments.options, "--options"),
        )
    from students.training.processes import is_first

    for path in paths if is_first() else ():
        print(f"wrote {path} and {path.with_suffix('.json')}")
    return 0


def _schedule(arguments) -> int:
    from students.optimised_grids.write import write_grids

    path, record = write_grids(
        *(getattr(arguments, key) for key in ("method", "task", "steps", "images", "out", "device"))
    )
    cost = record["cost"]
    print(f"wrote {path}: {cost['evaluations']:,} network evaluations, {cost['seconds']:g} seconds")
    return 0


def _convert(arguments) -> int:
    from students.models.checkpoints.convert import convert

    path = convert(arguments.source, arguments.out, arguments.trust_pickle)
    print(f"wrote {path} and {path.with_suffix('.json')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
