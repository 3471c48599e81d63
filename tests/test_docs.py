"""The documentation's examples run as they stand, and what it names is there."""

import pytest

from tests.examples import ROOT, check_command, check_snippet, help_text, read_page

PAGES = [read_page(path) for path in sorted((ROOT / "docs").rglob("*.md"))]
FILES = {name: content for page in PAGES for name, content in page.files.items()}
COMMANDS = [line for page in PAGES for line in page.commands]
SNIPPETS = [
    pytest.param(*snippet, id=f"{page.path.stem}-{i}") for page in PAGES for i, snippet in enumerate(page.snippets)
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)


def test_there_are_examples():
    assert {"my_solver.py", "my_student.py", "my_model.py", "my_task.yaml", "my_data.py"} <= FILES.keys()
    assert len(COMMANDS) >= 4 and len(SNIPPETS) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line, tmp_path):
    check_command(line, FILES, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "printed"), SNIPPETS)
def test_snippets(code, printed, tmp_path):
    check_snippet(code, printed, FILES, tmp_path)


@every_page
def test_commands_to_read_are_known(page):
    for package, command, flags in page.to_read():
        text = help_text(package, command)
        assert text, f"no command {package} {command}"
        assert not [flag for flag in flags if flag not in text]


@every_page
def test_what_is_named_is_there(page):
    assert not page.broken_mentions()
