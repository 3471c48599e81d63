"""The README's examples are run as they stand, in a folder that holds only its files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TEXT, flags=re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()]
SNIPPETS = [code for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL) if code not in FILES.values()]


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def run(arguments, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, cwd=folder, env=environment, text=True, capture_output=True)


def test_there_are_examples():
    assert {"my_solver.py", "my_student.py", "my_model.py", "my_task.yaml"} <= FILES.keys()
    assert len(COMMANDS) == 3 and len(SNIPPETS) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, folder):
    arguments = command.split()
    assert arguments[:3] == ["python", "-m", "bench"]
    result = run([sys.executable, *arguments[1:]], folder)
    assert result.returncode == 0, result.stderr
    assert "error" not in result.stderr
    for spec in re.findall(r"my_\w+:\w+|ddim|unipc", command):
        assert spec in result.stdout


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets(code, folder):
    result = run([sys.executable, "-c", code], folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "8.0\n"


def test_every_command_of_the_list_is_known():
    printed = run([sys.executable, "-m", "bench", "--help"], ROOT).stdout
    for command in re.findall(r"^python -m bench (\w+)", TEXT, flags=re.MULTILINE):
        assert f"\n    {command}" in printed
