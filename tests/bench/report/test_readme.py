"""Tables between markers: rewritten where their task is meant, and nothing else of the file."""

import pytest

from bench.report.readme import update
from students.errors import FewstepError
from tests.bench.report.test_tables import tiny

TEXT = """# A page
<!-- table: t -->
stale
<!-- end of table -->
between
<!-- against solvers: t -->
<!-- end of table -->
<!-- table: other -->
kept
<!-- end of table -->
"""
BLOCKS = (0, 1, 2)


def cells():
    rows = [("ddim", 1, block, 3.0 + block) for block in BLOCKS] + [("heun", 1, block, 4.0 + block) for block in BLOCKS]
    rows += [("good", 1, block, 2.0 + block) for block in BLOCKS]
    rows += [("same", 1, block, (3.1, 3.9, 5.0)[block]) for block in BLOCKS]
    rows += [("bad", 1, block, 9.0 + block) for block in BLOCKS]
    table = tiny(*rows)
    return table.assign(family=["solver" if name in ("ddim", "heun") else "distilled" for name in table["student"]])


def test_the_tables_of_a_task_are_rewritten_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    assert update(path, cells(), "t", "fd", {"fd": "lower"}) == path
    text = path.read_text()
    assert "stale" not in text and "kept" in text and "between" in text and "good" in text.partition("between")[0]
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert row == "| 1 | `ddim` 4 | `good` 3 | `same` 4 | `bad` 10 |"  # by the paired difference, not by the spread
    assert update(path, cells(), "t", "fd", {"fd": "lower"}) == path and path.read_text() == text


def test_a_file_without_markers_is_left_alone(tmp_path):
    path = tmp_path / "README.md"
    assert update(path, cells(), "t", "fd", {"fd": "lower"}) is None
    path.write_text("# A page\n")
    assert update(path, cells(), "t", "fd", {"fd": "lower"}) is None and path.read_text() == "# A page\n"
    path.write_text("<!-- sums: t -->\n<!-- end of table -->\n")
    with pytest.raises(FewstepError, match="no table 'sums'"):
        update(path, cells(), "t", "fd", {"fd": "lower"})
