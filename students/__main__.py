"""`python -m students list`, `train METHOD --task TASK` and `convert IN OUT`."""

import argparse
import sys
from pathlib import Path

from students.cards import listing
from students.datafiles import add_data_root, apply_data_root
from students.errors import FewstepError, unknown
from students.recipes import EXACT, RECIPES, UNCONDITIONAL
from students.registry import METHODS, STUDENTS

TEACHER = "teacher"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m students", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every student by name, and what can be trained")
    train = commands.add_parser("train", help="train a teacher, or distil a student")
    train.add_argument("method", help=", ".join([TEACHER, *METHODS]))
    train.add_argument("--task", required=True, help=", ".join([*RECIPES, *UNCONDITIONAL, *EXACT]))
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu")
    train.add_argument("--time-limit", type=float, default=float("inf"), metavar="SECONDS")
    train.add_argument("--state", type=Path, help="folder of checkpoints (default: run/train/METHOD-TASK)")
    train.add_argument("--out", type=Path, help="of a teacher the weights file, of a method their folder, "
                       "to write (default: the weights that ship)")  # fmt: skip
    train.add_argument("--teacher", help="distil another than the task's: weights of its recipe, file:PATH ...")
    train.add_argument("--pairs", type=Path, help="folder of noise-image pairs (default: named by what makes them)")
    train.add_argument("--budget", type=float, help="network evaluations, relative to the teacher's own training")
    train.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings",
                       help="of the loop: steps, batch_size, lr, warmup, ema_decay, clip; pairs")  # fmt: skip
    train.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="of the method (see its file)")
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
    print(f"  {TEACHER:<22}the task's teacher, by denoising score matching; tasks: {', '.join(RECIPES)}")
    for name, entry in METHODS.items():
        print(f"  {name:<22}{entry.summary}")
    return 0


def _train(arguments) -> int:
    if arguments.method != TEACHER and arguments.method not in METHODS:
        raise unknown("method", arguments.method, [TEACHER, *METHODS])
    state = arguments.state or Path("run", "train", f"{arguments.method}-{arguments.task}")
    common = (arguments.task, arguments.out, arguments.seed, arguments.device, arguments.time_limit, state)
    if arguments.method == TEACHER:
        from students.teachers import train_teacher

        given = [key for key in ("teacher", "pairs", "budget", "settings", "options") if getattr(arguments, key)]
        if given:
            raise FewstepError(f"a teacher is trained by its recipe: leave --{given[0].replace('settings', 'set')} out")
        paths = [train_teacher(*common)]
    else:
        from students.training.distill import train_method

        paths = train_method(
            arguments.method,
            *common,
            pairs=arguments.pairs,
            teacher=arguments.teacher,
            budget=arguments.budget,
            settings=_values(arguments.settings, "--set"),
            options=_values(arguments.options, "--options"),
        )
    for path in paths:
        print(f"wrote {path} and {path.with_suffix('.json')}")
    return 0


def _values(assignments: list[str], flag: str) -> dict:
    """Of `key=value` arguments, the values read as numbers where they are."""
    values = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not (equals and value and key.isidentifier()):
            raise FewstepError(f"cannot read {assignment!r}: write {flag} key=value")
        values[key] = _number(value)
    return values


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _convert(arguments) -> int:
    from students.checkpoints.convert import convert

    path = convert(arguments.source, arguments.out, arguments.trust_pickle)
    print(f"wrote {path} and {path.with_suffix('.json')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
