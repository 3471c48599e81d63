"""Training costs: what is compared with what, and after how many images training is paid back."""

import math

import pandas as pd
import pytest

from bench.report.costs import break_even, rival, training_table, training_text
from bench.report.leaderboard import leaderboard
from bench.report.tables import aggregate
from tests.bench.report.test_tables import tiny

LOWER = {"fd": "lower"}
SOLVERS = [("ddim", 2, 0, 9.0), ("ddim", 8, 0, 3.0), ("heun", 8, 0, 2.5), ("unipc", 16, 0, 1.0)]


def distilled(*rows, **common) -> pd.DataFrame:
    """Cells of students whose training took 3000 evaluations, one and a half times the teacher's."""
    cost = {"training_evaluations": 3000.0, "training_cost": 1.5, "training_seconds": 61.4}
    return tiny(*rows, family="distilled", own_model=False, **cost | common)


def cells(*rows, **common) -> pd.DataFrame:
    return pd.concat([tiny(*SOLVERS, own_model=False), distilled(*rows, **common)], ignore_index=True)


def test_the_rival_is_as_good_with_the_fewest_evaluations():
    table = aggregate(tiny(*SOLVERS))
    assert rival(table, 3.0, "fd", LOWER)["student"] == "heun", "of two with as many evaluations, the better one"
    assert rival(table, 2.4, "fd", LOWER)["student"] == "unipc"
    assert rival(table, 1.0, "fd", LOWER)["student"] == "unipc", "equal is as good"
    assert rival(table, 0.9, "fd", LOWER) is None
    assert rival(table, 4.0, "fd", {"fd": "higher"})["steps"] == 2


@pytest.mark.parametrize(
    ("nfe", "solver_nfe", "images"), [(1, 4, 1000), (2, 4.5, 1200), (1, 8, 429), (4, 4, math.inf), (8, 4, math.inf)]
)
def test_break_even(nfe, solver_nfe, images):
    assert break_even(3000, nfe, solver_nfe) == images


def test_a_row_for_each_step_count():
    table = training_table(
        cells(("cd", 1, 0, 4.0), ("cd", 1, 1, 5.0), ("cd", 2, 0, 0.5), ("cd", 8, 0, 8.0)), "fd", LOWER
    )
    one, two, eight = table.to_dict("records")
    assert (one["student"], one["steps"], one["NFE"], one["fd"]) == ("cd", "1", "1", "4.50 ± 0.50")
    assert (one["x teacher"], one["evaluations"], one["seconds"]) == ("1.5", "3,000", "61")
    assert (one["break-even"], one["against"]) == ("429", "heun, steps 8, NFE 8")
    assert (two["break-even"], two["against"]) == ("no solver as good", "")
    assert (eight["break-even"], eight["against"]) == ("never", "heun, steps 8, NFE 8")
    assert not {"straightness", "teacher_pixel"} & set(table)


def test_what_is_not_known_is_left_out():
    table = training_table(cells(("cd", 1, 0, 4.0), training_cost=math.nan), "fd", LOWER)
    assert "x teacher" not in table and len(table) == 1
    failed = cells(("cd", 1, 0, math.nan), status="failed")
    assert training_table(failed, "fd", LOWER) is None
    assert training_table(cells(("cd", 1, 0, 4.0)), "kid", {"kid": "lower"}) is None
    assert training_table(tiny(*SOLVERS), "fd", LOWER) is None and training_text(tiny(*SOLVERS), "fd", LOWER) == ""


def test_faithfulness_and_straightness_where_they_were_measured():
    measured = cells(("cd", 1, 0, 4.0), ("cd", 1, 1, 4.0), straightness=0.0625)
    measured["teacher_pixel"] = [0.5] * len(SOLVERS) + [0.25, 0.75]
    better = LOWER | {"teacher_pixel": "lower", "teacher_cnn": "lower"}
    row = training_table(measured, "fd", better).iloc[0]
    assert row["teacher_pixel"] == "0.500 ± 0.250" and row["straightness"] == "0.0625" and "teacher_cnn" not in row


def test_solvers_of_another_model_are_no_rivals():
    other = tiny(("edm:uncond-vp:heun", 4, 0, 0.1), own_model=True)
    table = training_table(pd.concat([cells(("cd", 1, 0, 0.5)), other]), "fd", LOWER)
    assert table["break-even"].tolist() == ["no solver as good"]
    alone = training_table(pd.concat([distilled(("cd", 1, 0, 0.5)), other]), "fd", LOWER)
    assert alone["break-even"].tolist() == ["no solver measured"]


def test_a_grid_that_was_found_costs_as_training_does():
    cost = {"training_evaluations": 600.0, "training_cost": 0.5, "training_seconds": 2.0}
    found = tiny(("unipc:grid=gits", 4, 0, 0.5), ("unipc:grid=gits", 8, 0, 0.4), own_model=False, **cost)
    both = pd.concat([cells(("cd", 1, 0, 0.5), ("cd", 2, 0, 2.0)), found], ignore_index=True)
    table = training_table(both, "fd", LOWER).set_index(["student", "steps"])
    assert table.loc[("cd", "1"), "against"] == "unipc:grid=gits, steps 4, NFE 4"
    assert table.loc[("cd", "1"), "break-even"] == "800", "(3000 - 600) / (4 - 1)"
    assert table.loc[("cd", "2"), "break-even"] == "1,200", "(3000 - 600) / (4 - 2)"
    assert (table.loc["unipc:grid=gits", "break-even"] == "no solver as good").all(), "it is no rival of its own"
    found = found.assign(fd=1.5)
    both = pd.concat([tiny(*SOLVERS, own_model=False), found], ignore_index=True)
    table = training_table(both, "fd", LOWER).set_index(["student", "steps"])
    row = table.loc[("unipc:grid=gits", "4")]
    assert (row["break-even"], row["against"], row["seconds"]) == ("50", "unipc, steps 16, NFE 16", "2")
    assert break_even(-600, 1, 4) == 0, "cheaper from the first image on"
    assert training_table(both, "fd", LOWER, ["ddim"]) is None


def test_protocols_are_compared_within_themselves():
    fewer = cells(("cd", 1, 0, 4.0)).assign(samples=50)
    text = training_text(pd.concat([fewer, distilled(("cd", 1, 0, 4.0))]), "fd", LOWER)
    assert text.count("what training or a grid cost") == 2 and "50 samples" in text and "100 samples" in text
    assert text.count("no solver measured") == 1 and text.count("429") == 1


def test_the_leaderboard_has_the_table():
    page = leaderboard([(cells(("cd", 1, 0, 4.0)), "fd", LOWER, {})])
    assert "### What training or a grid cost" in page and "whose `fd` is equal or better" in page
    assert "| cd | 1 | 1 | 4.00 | 1.5 | 3,000 | 61 | 429 | heun, steps 8, NFE 8 |" in page
    assert "What training or a grid cost" not in leaderboard([(tiny(*SOLVERS), "fd", LOWER, {})])
