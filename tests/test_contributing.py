"""The recipes of CONTRIBUTING.md do what they say, and what they point to is there."""

import pytest

from tests.examples import ROOT, check_snippet, help_text, read_page

PAGE = read_page(ROOT / "CONTRIBUTING.md")
RECIPES = ["solver", "distillation method", "sampler", "metric", "task", "teacher", "checkpoint format"]


def test_there_are_recipes():
    assert all(f"\n## A {name}\n" in PAGE.text for name in RECIPES)
    assert len(PAGE.snippets) == len(PAGE.files) == len(RECIPES) - 1


@pytest.mark.slow
@pytest.mark.parametrize(("code", "printed"), PAGE.snippets, ids=PAGE.files)
def test_recipes(code, printed, tmp_path):
    check_snippet(code, printed, PAGE.files, tmp_path)


def test_what_is_named_is_there():
    assert not PAGE.broken_mentions()
    assert all(help_text(package, command) for package, command, _ in PAGE.to_read())


def test_tables_are_where_they_are_said_to_be():
    places = {
        "students/spec.py": ["STUDENTS", "METHODS"],
        "students/samplers/__init__.py": ["SAMPLERS"],
        "students/data.py": ["DATASETS"],
        "students/models/teachers.py": ["TEACHERS"],
        "students/models/public.py": ["READERS", "SUFFIXES"],
        "students/models/cards/__init__.py": ["FORMATS"],
        "bench/measure/__init__.py": ["METRICS"],
        "bench/measure/extractors.py": ["EXTRACTORS"],
    }
    for path, names in places.items():
        text = (ROOT / path).read_text()
        assert all(f"`{name}`" in PAGE.text and f"\n{name}" in text for name in names), path
