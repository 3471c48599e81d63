"""Fidelity against diversity: which points are drawn, how they look, and where nothing is drawn."""

import math

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bench.report.canvas import render
from bench.report.diversity import family, points
from bench.report.report import write_report
from bench.report.scatter import LOOKS, fidelity_diversity
from students.spec import METHODS, Entry
from tests.bench.report.test_tables import tiny

BETTER = {"fd": "lower", "density_cnn": "higher", "recall_cnn": "higher"}
VECTORS = {"swd": "lower", "mode_coverage": "higher", "outliers": "lower"}


def cells(*rows) -> pd.DataFrame:
    """From (student, steps, fd, recall, density)."""
    plain = tiny(*((student, steps, 0, fd) for student, steps, fd, *_ in rows))
    return plain.assign(recall_cnn=[row[3] for row in rows], density_cnn=[row[4] for row in rows])


@pytest.fixture
def sweep():
    found = cells(
        ("ddim", 1, 9.0, 0.3, 0.2), ("ddim", 4, 3.0, 0.7, 0.8), ("deis", 1, 9.0, 0.3, 0.2), ("deis", 4, 2.0, 0.75, 0.9),
        ("diffusers:DDIMScheduler", 4, 4.0, 0.6, 0.7), ("knowledge", 1, 1.0, 0.8, 0.9), ("ecm", 1, 1.5, 0.8, 0.9),
        ("ecm", 4, 1.2, 0.9, 1.0), ("pd", 8, 1.0, 0.9, 1.0), ("edm:uncond-vp", 4, 0.5, 0.95, 1.0),
        ("teacher", 32, 0.6, 0.97, 1.0), ("real", 0, 0.5, 0.98, 1.0),
    )  # fmt: skip
    return found.assign(samples=found["samples"].where(found["student"] != "real", 50))


def test_families_are_those_of_the_methods_folders(monkeypatch):
    target = "students.distillation.{}.some:Method"
    for name in ("matching", "adversarial"):
        monkeypatch.setitem(METHODS, f"some_{name}", Entry(target.format(name), ""))
    monkeypatch.setitem(METHODS, "contributed", Entry("endpoint:Endpoint", ""))
    assert {name: family(name) for name in METHODS}.items() >= {
        ("ecm", "trajectory"), ("genie", "trajectory"), ("some_matching", "matching"),
        ("some_adversarial", "adversarial"), ("contributed", "other"),
    }  # fmt: skip
    assert family("some_matching:weights=folder") == "matching"
    for name in ("ddim", "heun:grid=best", "diffusers:DDIMScheduler"):
        assert family(name) == "solver"
    for name in ("edm:uncond-vp", "edm:uncond-vp:ddim", "sid:uncond", "package.module:attribute", "of another version"):
        assert family(name) == "other"


def test_a_point_a_student_in_the_most_steps_within_the_budget(sweep):
    drawn = points(sweep, "fd", BETTER)
    one, four = (drawn[drawn["budget"] == budget].set_index("student") for budget in (1, 4))
    assert set(one.index) == {"ddim", "deis", "knowledge", "ecm", "teacher", "real"}
    assert set(four.index) == {*one.index, "diffusers:DDIMScheduler", "edm:uncond-vp"}, "pd takes 8"
    assert one.loc["ecm", ["x", "y"]].tolist() == [0.8, 0.9] and four.loc["ecm", ["x", "y"]].tolist() == [0.9, 1.0]
    assert one["label"].to_dict() == {
        "ddim": "ddim", "deis": "", "knowledge": "knowledge", "ecm": "ecm", "teacher": "teacher",
        "real": "real (50 samples)",
    }  # fmt: skip
    assert four["label"][["deis", "ddim", "knowledge"]].tolist() == ["deis", "", "knowledge (1 NFE)"]


def test_nothing_is_drawn_without_both_numbers(sweep):
    assert points(sweep.drop(columns="density_cnn"), "fd", BETTER) is None
    assert points(sweep, "fd", {"fd": "lower"}) is None
    assert points(sweep.assign(recall_cnn=math.nan), "fd", BETTER) is None
    assert points(sweep[sweep["steps"] > 4], "fd", BETTER) is None, "all beyond the budgets"
    known = sweep.assign(recall_cnn=sweep["recall_cnn"].where(sweep["student"] != "ecm"))
    assert "ecm" not in set(points(known, "fd", BETTER)["student"]), "a cell of before the metric"
    assert set(points(sweep, "recall_cnn", BETTER)["budget"]) == {1, 4}, "ranked by an axis"


def test_two_panels_whose_labels_do_not_overlap(sweep):
    figure = fidelity_diversity(sweep, "fd", BETTER, "title")
    renderer = FigureCanvasAgg(figure).get_renderer()
    one, four = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["at most 1 NFE", "at most 4 NFE"]
    assert one.get_xlabel() == "diversity: recall_cnn (higher is better)" and not one.yaxis_inverted()
    for axes, names in ((one, {"ddim", "knowledge", "ecm"}), (four, {"deis", "knowledge (1 NFE)", "ecm"})):
        labels = [text for text in axes.texts if text.get_text() in {*names, "teacher", "real (50 samples)"}]
        assert len(labels) == len(names) + 2
        boxes = [text.get_window_extent(renderer) for text in labels]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert max(box.x1 for box in boxes) < figure.bbox.width
    assert "pale: 2 other solvers,\nno better in fd" in {text.get_text() for text in four.texts}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["solver", "trajectory", "other"]
    assert len({style.marker for style in LOOKS.values()}) == len({style.colour for style in LOOKS.values()}) + 1


def test_outliers_are_upside_down():
    rows = tiny(("ddim", 1, 0, 0.7)).rename(columns={"fd": "swd"}).assign(mode_coverage=0.5, outliers=0.25)
    (axes,) = fidelity_diversity(rows, "swd", VECTORS, "title").axes[:1]
    assert axes.yaxis_inverted() and "upside down" in axes.get_ylabel()


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_cells_give_the_same_file(sweep, suffix):
    first, second = (render(fidelity_diversity(sweep, "fd", BETTER, "t"), suffix, "digest") for _ in range(2))
    assert first == second


def test_a_report_has_the_picture_and_keeps_it_until_a_number_changes(sweep, tmp_path):
    def written(rows):
        paths = write_report(rows, "t", "fd", BETTER, tmp_path)
        return {path.name: path.stat().st_mtime_ns for path in paths if path.stem.startswith("diversity")}

    before = written(sweep)
    assert set(before) == {"diversity.png", "diversity.svg"} and written(sweep) == before
    assert written(sweep.replace({"density_cnn": {0.8: 0.85}})) != before
    guided = written(pd.concat([sweep, sweep.query("student == 'ecm'").assign(guidance=2.0)]))
    assert {"diversity-guidance_2.png", "diversity.png"} < set(guided)
