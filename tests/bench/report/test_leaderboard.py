"""Leaderboards: who enters within a budget, who ties, and what the page says."""

import re

import pytest

from bench.report.leaderboard import leaderboard, ranks, write_leaderboard
from bench.report.tables import aggregate, within_budget
from students.errors import FewstepError
from tests.bench.report.test_tables import BETTER, make_cells, tiny

LOWER = {"fd": "lower"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return make_cells(tmp_path_factory.mktemp("run"))


def rankings(text: str) -> dict[int, list[list[str]]]:
    """NFE budget -> the cells of its table's rows."""
    tables = {}
    for budget, body in re.findall(r"### At most (\d+) NFE\n\n((?:\|.*\n)+)", text):
        tables[int(budget)] = [[cell.strip() for cell in row.split("|")[1:-1]] for row in body.splitlines()[2:]]
    return tables


def test_a_student_enters_with_its_most_steps_and_not_with_its_best_score():
    cells = tiny(("a", 2, 0, 1.0), ("a", 4, 0, 7.0), ("b", 4, 0, 3.0))
    table = aggregate(cells)
    assert within_budget(table, 4).set_index("student")["fd"].to_dict() == {"a": 7.0, "b": 3.0}
    assert within_budget(table, 3)[["student", "steps"]].values.tolist() == [["a", 2]]
    found = rankings(leaderboard([(cells, "fd", LOWER, {})]))
    assert {budget: [row[1:5] for row in rows] for budget, rows in found.items()} == {
        2: [["a", "2", "2", "1.00"]],
        4: [["b", "4", "4", "3.00"], ["a", "4", "4", "7.00"]],
    }


def test_measured_evaluations_count_and_not_steps():
    cells = tiny(("heun", 2, 0, 5.0), ("heun", 4, 0, 2.0), ("ddim", 4, 0, 3.0))
    cells["nfe"] = [3.0, 7.0, 4.0]
    found = rankings(leaderboard([(cells, "fd", LOWER, {})]))
    assert [row[1:4] for row in found[4]] == [["ddim", "4", "4"], ["heun", "2", "3"]]
    assert [row[1:4] for row in found[8]] == [["heun", "4", "7"], ["ddim", "4", "4"]]


def test_ties_are_judged_against_the_first_of_a_rank_in_pairs():
    """b is above a in every block alike, c cannot be told from b, d is level with c but not with b, the first."""
    cells = tiny(
        *[("a", 2, block, value) for block, value in enumerate((1.0, 2.0, 3.0))],
        *[("b", 2, block, value) for block, value in enumerate((1.1, 2.1, 3.11))],
        *[("c", 2, block, value) for block, value in enumerate((3.0, 1.0, 2.9))],
        *[("d", 2, block, value) for block, value in enumerate((2.5, 3.6, 4.4))],
    )
    entries = aggregate(cells).sort_values("fd")
    assert list(entries["student"]) == ["a", "b", "c", "d"]
    assert ranks(entries, cells, "fd") == [1, 2, 2, 4]
    page = rankings(leaderboard([(cells, "fd", LOWER, {})]))[2]
    assert [row[0] for row in page] == ["1", "2 ≈", "2 ≈", "4"]
    assert [row[5] for row in page] == ["", "0.103 ± 0.003", "0.300 ± 0.889", "1.50 ± 0.06"]


def test_of_one_block_that_knows_no_groups_only_equals_are_ties():
    cells = tiny(("a", 2, 0, 1.0), ("b", 2, 0, 1.0), ("c", 2, 0, 1.1))
    assert ranks(aggregate(cells).sort_values("fd"), cells, "fd") == [1, 1, 3]


def test_higher_is_better():
    cells = tiny(("a", 2, 0, 1.0), ("b", 2, 0, 2.0))
    assert [row[1] for row in rankings(leaderboard([(cells, "fd", {"fd": "higher"}, {})]))[2]] == ["b", "a"]


def test_the_page_states_its_protocol_and_rule(sweep):
    text = leaderboard([(sweep, "fd_digits_cnn", BETTER, {"reference": "training half", "extractor": "`digits_cnn`"})])
    for words in (
        "899 samples, 3 seed blocks, guidance 1, float32", "reference: training half", "extractor: `digits_cnn`",
        "device: cpu x2", "python -m bench leaderboard digits", "largest step count", "paired\ndifference",
        "Every number here is measured", "- heun 1: it supports", "- rk45 16: rk45 made images",
    ):  # fmt: skip
        assert words in text
    found = rankings(text)
    assert list(found) == [1, 2, 4, 8, 16, 32]
    assert "heun" not in [row[1] for row in found[1]] and "heun" not in [row[1] for row in found[2]]
    assert ["rk45", "8", "8"] in [row[1:4] for row in found[16]]  # 16 failed, 8 is its largest
    assert all(row[1] != "real" for rows in found.values() for row in rows)


def test_protocols_have_their_own_tables():
    text = leaderboard([(tiny(("a", 2, 0, 1.0)), "fd", LOWER, {})])
    guided = tiny(("a", 2, 0, 1.0), ("b", 2, 0, 1.0)).assign(guidance=[1.0, 2.0])
    both = leaderboard([(guided, "fd", LOWER, {})])
    assert text.count("### At most") == 1 and both.count("### At most") == 2
    assert "guidance 2" in both and "guidance 2" not in text


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    cells = tiny(("a", 2, 0, 1.0))
    path = write_leaderboard([(cells, "fd", LOWER, {})], tmp_path)
    assert path == tmp_path / "leaderboards" / "t.md"
    before = path.read_text()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(FewstepError, match=r"t\.md: No space left on device; give another folder with --out"):
        write_leaderboard([(tiny(("a", 2, 0, 2.0)), "fd", LOWER, {})], tmp_path)
    assert path.read_text() == before


def test_parts_of_other_extractors_follow_with_their_own_metric():
    other = tiny(("a", 2, 0, 5.0)).rename(columns={"fd": "fid768"})
    text = leaderboard([(tiny(("a", 2, 0, 1.0)), "fd", LOWER, {}), (other, "fid768", {"fid768": "lower"}, {})])
    assert text.count("## ") - text.count("### ") == 2 and "`fid768`" in text


def test_the_spread_over_training_seeds_is_a_column_where_there_is_one():
    cells = tiny(("ecm", 1, 0, 2.0), ("lcm", 1, 0, 3.0))
    assert "| over training seeds |" not in leaderboard([(cells, "fd", LOWER, {})])
    cells["fd_repeats"] = [[4.0, 6.0], float("nan")]
    page = leaderboard([(cells, "fd", LOWER, {})])
    assert "| over training seeds |" in page
    assert [row[5] for row in rankings(page)[1]] == ["2.00", ""]


def test_who_was_trained_in_the_feature_space_of_the_metric_has_no_rank():
    rows = ("ecm", 1, 0, 2.0), ("dmd2", 1, 0, 0.5), ("add", 1, 0, 3.0), ("ddim", 1, 0, 4.0)
    cells = tiny(*rows, extractor="digits_cnn").rename(columns={"fd": "fd_digits_cnn"})
    metric, better = "fd_digits_cnn", {"fd_digits_cnn": "lower", "fd_pixel": "lower"}
    cells = cells.assign(trained_in=["lpips", "digits_cnn, teacher", "encoder", ""], fd_pixel=cells["fd_digits_cnn"])
    page = leaderboard([(cells, metric, better, {})])
    assert "| trained in | blocks |" in page
    table = rankings(page)[1]
    assert [row[:2] for row in table] == [["1", "ecm"], ["2", "add"], ["3", "ddim"], ["–", "dmd2"]]
    assert [row[7] for row in table] == ["lpips", "encoder", "", "digits_cnn, teacher"]
    assert [row[5] for row in table] == ["", "1.00", "2.00", ""], "against the best that has a rank"
    assert "- dmd2: no rank, as trained in the feature space that fd_digits_cnn is measured in" in page
    page = leaderboard([(cells, "fd_pixel", better, {})])
    assert rankings(page)[1][0][:2] == ["1", "dmd2"] and "no rank" not in page, "another space"
    page = leaderboard([(cells[cells["student"] == "dmd2"], metric, better, {})])
    assert [row[:2] for row in rankings(page)[1]] == [["–", "dmd2"]]


def test_inception_is_known_by_its_columns():
    cells = tiny(("a", 1, 0, 2.0), ("b", 1, 0, 3.0), extractor="inception768").rename(columns={"fd": "fid768"})
    page = leaderboard([(cells.assign(trained_in=["inception768", ""]), "fid768", {"fid768": "lower"}, {})])
    assert [row[0] for row in rankings(page)[1]] == ["1", "–"]


def test_without_a_student_trained_in_features_there_is_no_column():
    cells = tiny(("a", 1, 0, 2.0), trained_in="", extractor=None)
    assert "trained in" not in leaderboard([(cells, "fd", LOWER, {})])
