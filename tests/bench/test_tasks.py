"""Task files: what loads, and what each mistake is answered with."""

import pytest
import yaml

from bench.measure import METRICS
from bench.tasks import load_task, task_names
from students.errors import FewstepError
from students.models.teachers import entry, recipe
from students.spec import parse


def write(tmp_path, **changes):
    content = yaml.safe_load((load_task.__globals__["FOLDER"] / "digits.yaml").read_text())
    content |= changes
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value != "REMOVE"}))
    return str(path)


@pytest.mark.parametrize("name", task_names())
def test_shipped_tasks_name_only_what_exists(name):
    task = load_task(name)
    for spec in task.students:
        parse(spec)
    for metric in task.metrics:
        assert METRICS[metric].kind == task.kind
    assert task.name == name
    own_grid = entry(task.teacher).grid or recipe(task.teacher).grid
    assert task.grid == own_grid, "students.load samples as the task does"


def test_a_copy_with_changes_loads(tmp_path):
    assert load_task(write(tmp_path, samples=12, classes=10)).samples == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": 5}, "did you mean 'samples'"),
        ({"samples": "many"}, "key 'samples' must be a whole number, got 'many'"),
        ({"samples": True}, "key 'samples' must be a whole number"),
        ({"samples": 0}, "at least 1"),
        ({"threads": 0}, "key 'threads' must be at least 1, got 0"),
        ({"steps": [1, 2.5]}, "key 'steps' must be a list, each a whole number"),
        ({"steps": 4}, "must be a list"),
        ({"teacher": "REMOVE"}, "key 'teacher' is missing"),
        ({"rounding": "floor"}, "unknown rounding 'floor'"),
        ({"extractor": None}, "needs an extractor"),
        ({"primary": "swd"}, "unknown metric of the task 'swd'"),
        ({"name": "../elsewhere"}, "names folders"),
        ({"steps": []}, "key 'steps' must not be empty"),
        ({"grid": ""}, "key 'grid' must not be empty"),
        ({"shape": [8, 8]}, r"key 'shape' must be \[C, H, W\] of images or \[D\] of vectors, got \[8, 8\]"),
        ({"shape": []}, r"key 'shape' .* got \[\]"),
        ({"shape": [1, 0, 8]}, "key 'shape'"),
        ({"classes": 0}, "key 'classes' must be at least 1, or null for none, got 0"),
    ],
)
def test_mistakes_in_a_task_file_are_named(tmp_path, changes, message):
    with pytest.raises(FewstepError, match=message) as caught:
        load_task(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_unknown_tasks_and_broken_files(tmp_path):
    with pytest.raises(FewstepError, match="did you mean 'digits'"):
        load_task("digit")
    with pytest.raises(FewstepError, match="no task file"):
        load_task(str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(FewstepError, match="not readable as YAML"):
        load_task(str(broken))
    broken.write_text("name: a\nversion: 1\nname: b")
    with pytest.raises(FewstepError, match="key 'name' is given twice"):
        load_task(str(broken))
    broken.write_text("- 1")
    with pytest.raises(FewstepError, match="must be a YAML mapping"):
        load_task(str(broken))
