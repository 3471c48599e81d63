"""Examples in Markdown pages, and how they are run.

A block under `<!-- file: NAME -->` is a file. Every line of a ```sh block is run where the files are, and so is every
other ```python block, which prints what the ```text block after it says, if there is one. Blocks without a language are
lists of commands to read.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n\s*)?^```([^\n`]*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FOLDERS = "students|bench|tests|docs|reports|leaderboards"
MENTION = re.compile(rf"`((?:{FOLDERS})/[\w./-]+)(?:::(\w+))?`")
MODULE = re.compile(r"`((?:students|bench)(?:\.\w+)+)`")
COMMAND = re.compile(r"python3? -m (students|bench) ([\w-]+)(.*)")


@dataclass(frozen=True)
class Page:
    """The examples of a page. snippets: (code, what it prints or None)."""

    path: Path
    text: str
    files: dict[str, str]
    commands: list[str]
    snippets: list[tuple[str, str | None]]

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    def to_read(self) -> list[tuple[str, str, list[str]]]:
        """The command lines of students and bench that the page shows: (package, command, its flags)."""
        found = COMMAND.findall(self.text)
        return [(package, command, re.findall(r"(?<!\S)--[\w-]+", rest)) for package, command, rest in found]

    def broken_mentions(self) -> list[str]:
        """Paths, tests and modules in code style that are not there."""
        broken = []
        for path, test in MENTION.findall(self.text):
            there = (ROOT / path).exists()
            if not there or (test and f"def {test}(" not in (ROOT / path).read_text()):
                broken.append(f"{path}::{test}" if test else path)
        for module in MODULE.findall(self.text):
            parts = module.split(".")
            if not any(_is_module(parts[:n]) for n in range(max(2, len(parts) - 2), len(parts) + 1)):
                broken.append(module)
        return broken


def read_page(path: Path) -> Page:
    text = path.read_text()
    files, commands, snippets = {}, [], []
    blocks = BLOCK.findall(text)
    for (name, language, code), (_, after, printed) in zip(blocks, [*blocks, ("", "", "")][1:], strict=True):
        if name:
            files[name] = code
        elif language == "sh":
            commands += code.splitlines()
        elif language == "python":
            snippets.append((code, printed if after == "text" else None))
    return Page(path, text, files, commands, snippets)


def _is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run Python in a folder, with this repository's packages."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, text=True, capture_output=True)


@cache
def help_text(package: str, command: str) -> str:
    """What `python -m PACKAGE COMMAND --help` prints; empty for an unknown command."""
    result = run(["-m", package, command, "--help"], ROOT)
    return result.stdout if result.returncode == 0 else ""


def check_command(line: str, files: dict[str, str], folder: Path) -> str:
    """Run a line of a ```sh block in a folder with these files; returns what it prints."""
    assert line.startswith("python -m "), f"{line!r} is no command of this project"
    _write(files, folder)
    result = run(line.split()[1:], folder)
    assert result.returncode == 0, result.stderr
    assert "error" not in result.stderr
    return result.stdout


def check_snippet(code: str, printed: str | None, files: dict[str, str], folder: Path) -> None:
    """Run a ```python block in a folder with these files."""
    _write(files, folder)
    result = run(["-c", code], folder)
    assert result.returncode == 0, result.stderr
    if printed is not None:
        assert result.stdout == printed


def _write(files: dict[str, str], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_text(content)
