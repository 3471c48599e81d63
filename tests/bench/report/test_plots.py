"""Plots: the Pareto front, labels that do not overlap, and the same file for the same cells."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bench.report.canvas import render, spread_out
from bench.report.plots import NAMED, pareto_front, quality_against, training_curves
from tests.bench.report.test_tables import BETTER, make_cells, tiny

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return make_cells(tmp_path_factory.mktemp("run"))


@given(POINTS)
def test_pareto_front(points):
    def dominates(a, b):
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    front = pareto_front(*zip(*points, strict=True))
    for point, on_front in zip(points, front, strict=True):
        assert on_front != any(dominates(other, point) for other in points)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_labels_are_moved_apart_and_keep_their_order(wanted):
    places = spread_out(np.sort(wanted), 0.05)
    assert (np.diff(places) >= 0.05 - 1e-12).all()
    assert places[0] >= 0 and places[-1] <= 1 + 1e-12


def test_labels_with_room_stay():
    np.testing.assert_allclose(spread_out(np.array([0.1, 0.5, 0.51, 0.9]), 0.05), [0.1, 0.48, 0.53, 0.9])


def test_students_near_the_front_are_labelled_once_and_labels_do_not_overlap(sweep):
    figure = quality_against(sweep, "fd_digits_cnn", "latency_ms", BETTER, "title")
    renderer = FigureCanvasAgg(figure).get_renderer()
    names = set(sweep["student"]) - {"real"}
    texts = figure.axes[0].texts
    labels = [text for text in texts if text.get_text() in names]
    assert len({text.get_text() for text in labels}) == len(labels) == NAMED < len(names)
    boxes = [text.get_window_extent(renderer) for text in labels]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert max(box.x1 for box in boxes) < figure.bbox.width
    words = " ".join(text.get_text() for text in texts)
    assert "real against real: 5.21" in words and "Pareto front" in words
    assert f"pale: {len(names) - NAMED} others" in words
    assert "899 samples, 3 seed blocks" in words and "cpu x2" in words


def test_the_front_of_a_metric_where_higher_is_better():
    rows = ("a", 1, 0, 0.5), ("a", 2, 0, 0.6), ("b", 1, 0, 0.4), ("b", 2, 0, 0.9), ("c", 4, 0, 0.8)
    axes = quality_against(tiny(*rows), "fd", "nfe", {"fd": "higher"}, "").axes[0]
    bold = {text.get_text() for text in axes.texts if text.get_weight() == "bold" and text.get_text()}
    assert bold == {"a", "b"}
    band = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert list(band.get_xdata())[:2] == [1, 2] and list(band.get_ydata()) == [0.5, 0.9, 0.9]


def test_ticks_are_measured_evaluations(sweep):
    axes = quality_against(sweep, "fd_digits_cnn", "nfe", BETTER, "").axes[0]
    assert list(axes.get_xticks()) == [1, 2, 4, 8, 16, 31]


def test_training_curves_are_lines_of_evaluations_and_distances():
    curves = {"cd": [[100, 0.5], [300, 0.02]], "pd": [[50, 0.1], [90, 0.3], [200, -0.01]]}
    axes = training_curves(curves, "title").axes[0]
    lines = [line for line in axes.lines if line.get_transform() == axes.transData]
    assert [line.get_xdata().tolist() for line in lines] == [[100, 300], [50, 90, 200]]
    assert [line.get_ydata().tolist() for line in lines] == [[0.5, 0.02], [0.1, 0.3, 0.02]], "0.02: the least above 0"
    assert axes.get_yscale() == "log" and axes.get_xlim()[0] == 0
    assert {"cd", "pd"} <= {text.get_text() for text in axes.texts}
    first, second = (render(training_curves(curves, "title"), ".png", "digest") for _ in range(2))
    assert first == second


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_cells_give_the_same_file(suffix):
    rows = ("a", 1, 0, 5.0), ("a", 2, 0, 2.0), ("b", 1, 0, 4.0), ("b", 1, 1, 4.5), ("real", 0, 0, 1.0)
    first, second = (
        render(quality_against(tiny(*rows), "fd", "nfe", {"fd": "lower"}, "t"), suffix, "digest") for _ in range(2)
    )
    assert first == second and b"digest" in first
