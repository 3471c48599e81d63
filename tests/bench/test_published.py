"""The published figures: the file that ships is sound, and an impossible value is named by line and column."""

import csv

import pytest

from bench import published
from bench.published import BENCHMARKS, COLUMNS, LIMITS, agree, read, sources
from bench.tasks import task_names
from students.errors import FewstepError


def edited(tmp_path, line: int, **values):
    """A copy of the file with other values in a line."""
    with open(published.FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    for column, value in values.items():
        rows[line - 1][COLUMNS.index(column)] = value
    path = tmp_path / "published.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_the_file_that_ships_is_sound():
    rows = read()
    assert len(rows) == 1225
    assert {row.benchmark for row in rows} == {*BENCHMARKS}
    assert {row.confirmed for row in rows} == {row.quoted for row in rows} == {True, False}
    known = [row for row in rows if (row.paper, row.table, row.nfe) == ("Progressive Distillation", "Table 2", 8)]
    assert [(row.method, row.fid, row.quoted) for row in known] == [("Progressive Distillation", 2.57, False)]
    assert sorted(name for name in ("cifar10", "cifar10-cond") if name in task_names()) == ["cifar10", "cifar10-cond"]


@pytest.mark.parametrize("column", LIMITS)
@pytest.mark.parametrize("value", ["-1", "nan", "1e9", "many"])
def test_an_impossible_number_is_named_by_line_and_column(column, value, tmp_path):
    with pytest.raises(FewstepError, match=rf"published\.csv, line 17, column {column}: must be .* got '{value}'"):
        read(edited(tmp_path, 17, **{column: value}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "6.119"}, "line 17, column precision: must be a number from 0 to 1, or empty, got '6.119'"),
        ({"steps": "1.5"}, "line 17, column steps: must be a whole number"),
        ({"fid": ""}, "line 17, column fid: must not be empty"),
        ({"method": " "}, "line 17, column method: must not be empty"),
        ({"quoted": "maybe"}, "line 17, column quoted: must be yes or no, got 'maybe'"),
        ({"benchmark": "cifar-10-cond"}, "line 17, column benchmark: .*did you mean 'cifar10-cond'"),
        ({"family": "gans"}, "line 17, column family: .*did you mean 'gan'"),
        ({"arxiv": "DMD"}, "line 17, column arxiv: must be like 2311.18828"),
    ],
)
def test_an_impossible_value_is_named(values, message, tmp_path):
    with pytest.raises(FewstepError, match=message):
        read(edited(tmp_path, 17, **values))


def test_a_figure_that_is_there_twice_a_missing_column_and_a_missing_file(tmp_path):
    path = edited(tmp_path, 17)
    text = path.read_text()
    path.write_text(text + text.splitlines()[16] + "\n")
    with pytest.raises(FewstepError, match="line 1227: the figure of line 17 is there again"):
        read(path)
    other = tmp_path / "columns.csv"
    other.write_text(text.replace("fid,", "FID,", 1))
    with pytest.raises(FewstepError, match="line 1: the columns must be benchmark, method"):
        read(other)
    short = tmp_path / "short.csv"
    short.write_text("\n".join([*text.splitlines()[:5], "cifar10-uncond,DDIM"]))
    with pytest.raises(FewstepError, match="line 6: 2 values for 19 columns"):
        read(short)
    with pytest.raises(FewstepError, match="cannot read the published figures"):
        read(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [(1.524, 1.52, True), (3.78, 3.8, True), (7.83, 8.35, False), (3.0, 2.57, False), (110.03, 110.0, True)],
)
def test_figures_agree_to_the_decimals_of_the_shorter(first, second, same):
    assert agree(first, second) is agree(second, first) is same


def test_sources_are_of_one_method_benchmark_nfe_and_guidance():
    row = next(r for r in read() if (r.paper, r.method, r.nfe) == ("Consistency Models", "DDIM", 10))
    found = sources(row, "fid", read())
    assert found[0] == row
    assert {(other.benchmark, other.method, other.nfe, other.guidance_scale) for other in found} == {
        ("cifar10-uncond", "DDIM", 10, None)
    }
    assert {8.23, 13.36, 13.74} == {other.fid for other in found}
    unknown = next(r for r in read() if r.nfe is None)
    assert sources(unknown, "fid", read()) == [unknown]
