"""What commands share: numbers of the command line, and the line that says what was written."""

import argparse
from pathlib import Path


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def say_written(paths: list[Path]) -> None:
    """One line a folder."""
    for folder in dict.fromkeys(path.parent for path in paths):
        names = [path.name for path in paths if path.parent == folder]
        print(f"wrote {folder}/: {', '.join(names) if len(names) <= 8 else f'{len(names)} files'}")
