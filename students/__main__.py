"""`python -m students list`, `train METHOD --task TASK` and `convert IN OUT`."""

import argparse
import sys
from pathlib import Path

from students.cards import listing
from students.datafiles import add_data_root, apply_data_root
from students.errors import FewstepError, unknown
from students.recipes import RECIPES
from students.registry import STUDENTS

METHODS = {"teacher": "the task's teacher, by denoising score matching"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m students", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every student by name, and what can be trained")
    train = commands.add_parser("train", help="train a method on a task")
    train.add_argument("method", help=", ".join(METHODS))
    train.add_argument("--task", required=True, help=", ".join(RECIPES))
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu")
    train.add_argument("--time-limit", type=float, default=float("inf"), metavar="SECONDS")
    train.add_argument("--state", type=Path, help="folder of checkpoints (default: run/train/METHOD-TASK)")
    train.add_argument("--out", type=Path, help="weights file to write (default: the weights that ship)")
    add_data_root(train)
    convert = commands.add_parser("convert", help="a public checkpoint as safetensors, without running its code")
    convert.add_argument("source", type=Path)
    convert.add_argument("out", type=Path, help="ends in .safetensors")
    convert.add_argument("--trust-pickle", action="store_true", help="run the code of a pickle that has to be run")
    arguments = parser.parse_args(argv)
    try:
        apply_data_root(arguments)
        return {"list": _list, "train": _train, "convert": _convert}[arguments.command](arguments)
    except FewstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _list(arguments) -> int:
    print("students (python -m bench run TASK --students ...):")
    for name, entry in STUDENTS.items():
        print(f"  {name:<22}{entry.summary}")
    print(f"  {'diffusers:<Class>':<22}any scheduler of diffusers, by class name")
    print("public checkpoints, FAMILY:NAME, and of a teacher also FAMILY:NAME:STUDENT; one's own, file:PATH:STUDENT:")
    for spec, summary in listing():
        print(f"  {spec:<36}{summary}")
    print("methods (python -m students train METHOD --task TASK):")
    for name, summary in METHODS.items():
        print(f"  {name:<22}{summary}; tasks: {', '.join(RECIPES)}")
    return 0


def _train(arguments) -> int:
    if arguments.method not in METHODS:
        raise unknown("method", arguments.method, METHODS)
    from students.teachers import train_teacher

    state = arguments.state or Path("run", "train", f"{arguments.method}-{arguments.task}")
    path = train_teacher(arguments.task, arguments.out, arguments.seed, arguments.device, arguments.time_limit, state)
    print(f"wrote {path} and {path.with_suffix('.json')}")
    return 0


def _convert(arguments) -> int:
    from students.checkpoints.convert import convert

    path = convert(arguments.source, arguments.out, arguments.trust_pickle)
    print(f"wrote {path} and {path.with_suffix('.json')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
