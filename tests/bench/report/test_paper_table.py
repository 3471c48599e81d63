"""A paper's table: published and measured apart, only cells that meet the protocol, reasons elsewhere, four formats."""

import csv
import io
import json
import math
import re
import time

import pytest
from matplotlib.figure import Figure

from bench.cli import main
from bench.cli_table import FORMATS
from bench.papers import load_preset, preset_names
from bench.published import read
from bench.report import paper_cells, papers
from bench.report.paper_figure import curve
from bench.report.paper_table import figure, interval, lines, table
from bench.report.uncertainty import estimate
from bench.store import SCHEMA
from bench.tasks import load_task
from students.errors import FewstepError

DIGITS = load_task("digits")
LEFT_OUT = [1.0, 1.1, 0.9, 1.05]


def store(root, task, student, steps, value, **changes):
    """Write a cell that meets the task's protocol, but for the changes."""
    cell = {
        "schema": SCHEMA, "task": task.name, "version": task.version, "student": student, "steps": steps,
        "guidance": 1.0, "dtype": "float32", "seed_block": 0, "samples": task.samples, "rounding": task.rounding,
        "extractor": task.extractor, "status": "ok", "reason": "", "failures": {}, "nfe": float(steps),
        "family": "distilled", "identity": {"reference": {"data": task.data}},
        "provenance": {"finished": "2026-01-01", "device": "cpu"},
    }  # fmt: skip
    column = "fid" if changes.get("extractor", task.extractor) == "inception" else "fd_digits_cnn"
    cell |= {"metrics": {column: value}, "jackknife": {column: LEFT_OUT}} | changes
    cell["id"] = f"{len(list((root / 'run').rglob('cell.json'))):016x}"
    folder = root / "run" / task.name / cell["id"]
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps(cell))


def by_method(found, nfe=None, benchmark=None):
    return {
        line.row.method: line
        for line in found
        if nfe in (None, line.row.nfe) and benchmark in (None, line.row.benchmark)
    }


def columns(shown):
    return {
        name: [cell.text for cell in column]
        for name, column in zip(shown.columns, zip(*shown.rows, strict=True), strict=True)
    }


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_shown_offline_in_five_seconds(name, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a table needs no network"))
    preset, begin = load_preset(name), time.process_time()
    text = papers.shown(preset, None, tmp_path, "text")
    assert time.process_time() - begin < 5
    assert preset.title in text and text.count("\n") > len(preset.figures())
    for line in lines(preset, None, tmp_path):
        assert all(measured.reason and not measured.by for measured in line.measured.values())
    assert set(FORMATS) == {*papers.FORMATS, papers.CSV}
    for form in FORMATS:
        assert papers.shown(preset, None, tmp_path, form)


def test_on_its_own_benchmark_a_figure_stands_beside_the_measured_one_and_their_difference(tmp_path):
    store(tmp_path, load_task("cifar10"), "sid:uncond", 1, 2.0)
    preset = load_preset("sid")
    line = by_method(lines(preset, None, tmp_path), benchmark="cifar10-uncond")["SiD"]
    known = estimate([2.0], [LEFT_OUT])
    assert (line.measured["fid"].value, line.measured["fid"].margin) == (2.0, known.margin)
    shown = columns(table(preset, None, tmp_path))
    at = shown["benchmark"].index("cifar10-uncond")
    assert shown["FID published"][at] == "1.923"
    assert shown["FID measured"][at] == interval(2.0, known.margin)
    assert shown["FID difference"][at].startswith("+0.08 [")
    assert shown["measured: student"][at] == "sid:uncond, 1 step"
    assert all(text == "" for i, text in enumerate(shown["FID difference"]) if i != at)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 5000}, "samples 5000, the protocol has 50000"),
        ({"rounding": "truncate"}, "rounding truncate, the protocol has round"),
        ({"extractor": "inception768"}, "extractor inception768, the protocol has inception"),
        (
            {"identity": {"reference": {"data": "folder:mine"}}},
            "reference training images of folder:mine, the protocol has training images of cifar10 or edm/",
        ),
        ({"reference": "edm/ffhq-64x64"}, "reference edm/ffhq-64x64, the protocol has training images of cifar10 or"),
        ({"version": 99}, "task version 99, the protocol has"),
        ({"guidance": 2.0}, "guidance 2, the protocol has 1"),
    ],
)
def test_cells_that_do_not_meet_the_protocol_are_not_shown_and_the_field_is_named(changes, reason, tmp_path):
    store(tmp_path, load_task("cifar10"), "sid:uncond", 1, 2.0, **changes)
    line = by_method(lines(load_preset("sid"), None, tmp_path), benchmark="cifar10-uncond")["SiD"]
    assert not line.measured["fid"].by and math.isnan(line.measured["fid"].value)
    assert line.measured["fid"].reason.startswith(f"other protocol: {reason}")


def test_all_fields_that_are_not_met_are_named_and_a_cell_that_meets_them_is_found(tmp_path):
    task = load_task("cifar10")
    store(tmp_path, task, "sid:uncond", 1, 3.0, samples=1000, extractor="inception768", rounding="truncate")

    def measured():
        return by_method(lines(load_preset("sid"), None, tmp_path), benchmark="cifar10-uncond")["SiD"].measured["fid"]

    assert [part.split()[0] for part in measured().reason.removeprefix("other protocol: ").split("; ")] == [
        "samples", "rounding", "extractor",
    ]  # fmt: skip
    store(tmp_path, task, "sid:uncond", 1, 2.0)
    assert measured().value == 2.0


def test_a_minimum_of_runs_is_compared_with_a_minimum_of_as_many(tmp_path):
    task, spec = load_task("cifar10"), "edm:uncond-vp:heun:convention=edm"
    name = "EDM (Heun) config F (final), VP"

    def measured():
        found = by_method(lines(load_preset("edm-table2"), None, tmp_path), benchmark="cifar10-uncond")
        return found[name].measured["fid"]

    for block, value in enumerate([2.2, 2.0]):
        store(tmp_path, task, spec, 18, value, nfe=35.0, seed_block=block)
    assert measured().reason == "other protocol: seed blocks 2, the protocol has the best of 3"
    for block, value in ((2, 2.1), (3, 1.5)):
        store(tmp_path, task, spec, 18, value, nfe=35.0, seed_block=block)
    assert measured().value == 2.0, "of the first three blocks"
    assert measured().by == f"{spec}, 18 steps, NFE 35, best of 3"


def test_a_solver_on_another_network_than_the_papers_is_no_measurement_of_its_row(tmp_path):
    store(tmp_path, load_task("cifar10"), "pndm", 50, 3.0, family="solver")
    line = by_method(lines(load_preset("pndm"), None, tmp_path))["PNDM (T=50)"]
    assert line.measured["fid"].reason == "needs the network that the paper samples, of which there is no card"


def test_on_another_task_nothing_is_subtracted_and_it_is_said_what_was_measured(tmp_path):
    store(tmp_path, DIGITS, "progressive", 2, 0.25)
    shown = table(load_preset("pd-table2"), DIGITS, tmp_path)
    found = columns(shown)
    at = found["method"].index("Progressive Distillation")
    rows = [i for i, name in enumerate(found["method"]) if name == "Progressive Distillation"]
    two = next(i for i in rows if found["NFE"][i] == "2")
    assert at == rows[0] and found["measured on digits: fd_digits_cnn"][two].startswith("0.250 [")
    assert not any("difference" in name for name in shown.columns)
    assert any("measured on digits, other data than the published figures" in text for text in shown.about)
    assert not {*found["measured on digits: fd_digits_cnn"]} & {*found["FID published"]}
    assert "not run: python -m bench run digits --students progressive --nfe 1 4 8" not in shown.notes
    assert "not run: python -m bench run digits --students progressive --steps 1 4 8" in shown.notes


def test_stated_samples_are_never_in_a_measured_column(tmp_path):
    store(tmp_path, DIGITS, "progressive", 1, 0.25, family="stated")
    line = by_method(lines(load_preset("pd-table2"), DIGITS, tmp_path), nfe=1)["Progressive Distillation"]
    assert line.measured["fid"].reason.startswith("not run")


def test_cells_that_are_no_numbers_say_why(tmp_path):
    store(tmp_path, DIGITS, "progressive", 1, 0.0, status="unsupported", reason="only 2 steps", metrics={}, nfe=0.0)
    store(tmp_path, DIGITS, "progressive", 2, 0.0, metrics={})
    store(tmp_path, DIGITS, "progressive", 4, 0.0, metrics={}, failures={"fd": "too few samples"})
    found = lines(load_preset("pd-table2"), DIGITS, tmp_path)
    reasons = [by_method(found, nfe=n)["Progressive Distillation"].measured["fid"].reason for n in (1, 2, 4)]
    assert reasons[0] == "unsupported: only 2 steps"
    assert reasons[1] == "fd_digits_cnn not measured: run again with --metrics fd"
    assert reasons[2] == "too few samples"


def test_a_study_comes_before_a_student_and_its_seeds_give_the_interval(tmp_path):
    store(tmp_path, DIGITS, "dmd", 1, 0.17)
    path = tmp_path / "reports" / "digits" / "dmd-table2.csv"

    def measured(method):
        return by_method(lines(load_preset("dmd-table2"), DIGITS, tmp_path))[method].measured["fid"]

    assert measured("DMD (full, ablation row)").by == "dmd, 1 step"
    assert measured("DMD w/o regression loss").reason == "not trained: python -m bench study dmd-table2 digits"
    path.parent.mkdir(parents=True)
    path.write_text(
        'variant,seed,fd_digits_cnn\n"full, weight of Eq. 8",0,0.2\nno regression,0,0.5\nno regression,1,0.7\n'
    )
    assert (measured("DMD (full, ablation row)").value, measured("DMD (full, ablation row)").by) == (
        0.2, "study dmd-table2, one training",
    )  # fmt: skip
    assert math.isnan(measured("DMD (full, ablation row)").margin)
    found, known = measured("DMD w/o regression loss"), estimate([0.5, 0.7], [None, None])
    assert (found.value, found.margin) == (pytest.approx(0.6), known.margin)
    path.write_text("no table")
    with pytest.raises(FewstepError, match="is no table of a study: move it away"):
        measured("DMD w/o regression loss")


def test_a_study_of_the_benchmark_itself_gives_a_difference(tmp_path):
    path = tmp_path / "reports" / "cifar10-cond" / "dmd-table2.csv"
    path.parent.mkdir(parents=True)
    path.write_text("variant,seed,fid\nno regression,0,6.0\n")
    shown = columns(table(load_preset("dmd-table2"), None, tmp_path))
    at = shown["method"].index("DMD w/o regression loss")
    assert (shown["benchmark"][at], shown["FID measured"][at], shown["FID difference"][at]) == (
        "cifar10-cond", "6.00", "+0.42",
    )  # fmt: skip


def test_disagreeing_sources_are_a_range_with_all_of_them_and_unconfirmed_figures_are_marked():
    row = next(r for r in read() if (r.paper, r.table, r.method) == ("Consistency Models", "Table 2", "DFNO"))
    assert (figure(row, "fid").low, figure(row, "fid").high) == (7.83, 8.35)
    assert {source.paper for source in figure(row, "fid").sources} == {"Consistency Models", "DMD", "DMD2"}
    sid = next(r for r in read() if (r.paper, r.benchmark) == ("SiD", "cifar10-uncond"))
    assert not figure(sid, "fid").is_range, "1.92 is 1.923 rounded"
    assert not figure(next(r for r in read() if not r.confirmed), "fid").confirmed


def test_formats_mark_what_is_unconfirmed_and_number_their_notes(tmp_path):
    preset = load_preset("genie")
    assert "13.9†" in papers.shown(preset, None, tmp_path, "text")
    assert "| *13.9*† |" in papers.shown(preset, None, tmp_path, "markdown")
    assert r"\textit{13.9}$^\dagger$" in papers.shown(preset, None, tmp_path, "latex")
    text = papers.shown(load_preset("dmd-table1"), None, tmp_path, "text")
    assert "7.83–8.35 (1)" in text and "(1) FID of DFNO at NFE 1: 7.83 in DMD Table 1 (quoted)" in text
    latex = papers.shown(load_preset("rf-table1"), None, tmp_path, "latex")
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
    header = next(line for line in latex.splitlines() if line.startswith("method"))
    assert {line.count("&") for line in body} == {header.count("&")}
    assert not re.search(r"(?<!\\)[#%_]", latex)


def test_csv_has_a_record_for_each_row_and_metric_with_numbers_as_they_are(tmp_path):
    store(tmp_path, DIGITS, "progressive", 2, 0.123456789)
    preset = load_preset("pd-table1")
    records = list(csv.DictReader(io.StringIO(papers.shown(preset, None, tmp_path, "csv"))))
    assert len(records) == len(preset.figures()) * 2
    records = list(csv.DictReader(io.StringIO(papers.shown(load_preset("pd-table2"), DIGITS, tmp_path, "csv"))))
    found = [record for record in records if record["measured"]]
    assert [(r["measured"], r["measured_on"], r["published_low"], r["reason"]) for r in found] == [
        ("0.123456789", "digits", "4.51", "")
    ]


def test_a_figure_keeps_what_is_measured_on_other_data_out_of_the_published_panel(tmp_path):
    store(tmp_path, DIGITS, "progressive", 2, 0.25)
    preset = load_preset("pd-figure4")

    def marks(drawn: Figure) -> list[list[float]]:
        return [[y for line in axes.get_lines() for y in line.get_ydata()] for axes in drawn.axes]

    bench = paper_cells.Bench(DIGITS, papers.task_protocol(DIGITS), tmp_path)
    there, here = marks(curve(preset, lines(preset, DIGITS, tmp_path), bench))
    assert 0.25 in here and 0.25 not in there and 2.57 in there and 2.57 not in here
    assert papers.write_figure(load_preset("pd-table2"), None, tmp_path) == []
    assert len(marks(curve(preset, lines(preset, None, tmp_path), None))) == 1


def test_the_command_prints_the_table_and_writes_its_figure(tmp_path, capsys):
    store(tmp_path, DIGITS, "progressive", 2, 0.25)
    assert main(["table", "pd-figure4", "--task", "digits", "--out", str(tmp_path), "--format", "markdown"]) == 0
    printed = capsys.readouterr()
    assert "| Progressive Distillation | 2 |" in printed.out and "pd-figure4-digits.png" in printed.err
    assert (tmp_path / "reports" / "papers" / "pd-figure4-digits.svg").stat().st_size > 0
    assert main(["table", "disback-convergence", "--task", "digits", "--out", str(tmp_path)]) == 0
    assert "no figure" in capsys.readouterr().err
    assert main(["table", "pd-table2", "--task", "digit", "--out", str(tmp_path)]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
