"""The README's examples run as they stand, in a folder with only its files; its commands and links are there."""

import re

import pytest

from tests.examples import ROOT, check_command, check_snippet, help_text, read_page

PAGE = read_page(ROOT / "README.md")
TEXT = (ROOT / "README.md").read_text()


def test_it_is_short_and_has_examples():
    assert TEXT.count("\n") <= 250
    assert "my_solver.py" in PAGE.files and len(PAGE.commands) == 1 and len(PAGE.snippets) == 1


@pytest.mark.slow
@pytest.mark.parametrize("line", PAGE.commands)
def test_commands(line, tmp_path):
    check_command(line, PAGE.files, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "printed"), PAGE.snippets)
def test_snippets(code, printed, tmp_path):
    check_snippet(code, printed, PAGE.files, tmp_path)


def test_commands_to_read_are_known():
    for package, command, flags in PAGE.to_read():
        text = help_text(package, command)
        assert text, f"no command {package} {command}"
        assert not [flag for flag in flags if flag not in text]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_tables_are_generated():
    assert re.findall(r"<!-- ([a-z ]+): digits", TEXT) == ["table", "against solvers"]
