"""Presets of papers' tables: each is sound, the issue's are all there, and what is wrong with one is named."""

import pytest

from bench import papers
from bench.cli import main
from bench.listing import lines
from bench.papers import load_preset, load_protocol, preset_names, task_protocol, titles
from bench.published import read
from bench.tasks import load_task
from bench.yaml_files import read_mapping
from students.errors import FewstepError
from students.spec import parse

GIVEN = """\
pd-table1 pd-table2 pd-figure4 dmd-table1 dmd-table2 dmd-table3 dmd-table4 dmd-table6 disback-imagenet64
disback-convergence cm-table1 cm-table2 edm-table2 ddim-table1 dpm-solver-pp unipc deis pndm genie diff-sampler
rf-table1 ddgan-table1 ddgan-table2 tract ctm sid dmd2-table1 dmd2-table2 dmd2-table3 add scm ecm meanflow
imagenet256-few-steps"""


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_shows_figures_once_and_names_students_that_can_be_read(name):
    preset = load_preset(name)
    figures = preset.figures()
    assert figures and len({row.line for row in figures}) == len(figures)
    assert all(row.fid is not None for row in figures) and preset.columns[0] == "fid"
    for column in preset.columns:
        assert any(getattr(row, column) is not None for row in figures), f"no figure in {column}"
    methods = {row.method for row in figures}
    for method in (*preset.ours, *preset.trained_in):
        assert any(papers._key(each, {method: None}) for each in methods), f"{method} is of no row"
    for method in methods:
        ours = preset.measured_by(method)
        for spec in filter(None, [ours.student, *ours.public.values()]):
            parse(spec)


def test_the_papers_of_the_plan_have_presets():
    assert {*GIVEN.split()} <= {*preset_names()}
    assert titles().keys() == {*preset_names()}
    assert any("pd-table2" in line and "Progressive Distillation" in line for line in lines("tables"))


def test_every_method_that_is_mapped_is_published():
    published = {row.method for row in read()}
    for method in read_mapping(papers.FOLDER / "_methods.yaml", "methods"):
        assert any(papers._key(each, {method: None}) for each in published), f"{method} is in no paper"


def test_a_name_counts_before_a_pattern_and_a_presets_own_methods_before_all():
    assert load_preset("cm-table1").measured_by("DPM-Solver-2").student == "dpm_solver_2"
    assert load_preset("diff-sampler").measured_by("DPM-Solver-2").student == "dpm2"
    assert load_preset("cm-table1").measured_by("DPM-Solver-fast").student == "dpm_solver"
    assert load_preset("cm-table1").measured_by("BigGAN").student is None


def test_an_unknown_table_is_answered_with_the_nearest(capsys):
    assert main(["table", "dmd-tabel2"]) == 2
    assert "unknown table 'dmd-tabel2': did you mean 'dmd-table2'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("columns: [fidd]", "unknown column 'fidd': did you mean 'fid'"),
        ("protocol: fid50k_edn", "unknown protocol 'fid50k_edn': did you mean 'fid50k_edm'"),
        ("figure: curves", "unknown figure 'curves': did you mean 'curve'"),
        ("rows: [{papre: DMD}]", "unknown column of rows 'papre': did you mean 'paper'"),
        ("rows: [{paper: DMD9}]", "no row of .*published.csv has paper DMD9"),
        ("rows: DMD", "key 'rows' must be a list, each a mapping, got 'DMD'"),
        ("best_of: few", "key 'best_of' must be a whole number, got 'few'"),
        ("colums: [fid]", "unknown key 'colums': did you mean 'columns'"),
        ("ours: {DMD: {study: dmd-tabel2, variant: full}}", "unknown study 'dmd-tabel2': did you mean 'dmd-table2'"),
        ("ours: {DMD: {study: dmd-table2, variant: no regresion}}", "did you mean 'no regression'"),
        ("ours: {DMD: {public: {cifar: x}}}", "unknown benchmark 'cifar'"),
        ("ours: {DMD: {studnet: dmd}}", "unknown key 'studnet': did you mean 'student'"),
    ],
)
def test_what_is_wrong_with_a_preset_is_named(change, message, monkeypatch, tmp_path):
    key = change.partition(":")[0]
    text = (papers.FOLDER / "dmd-table1.yaml").read_text()
    kept = [line for line in text.splitlines() if not line.startswith((f"{key}:", "  - " if key == "rows" else "\0"))]
    (tmp_path / "mine.yaml").write_text("\n".join([*kept, change]) + "\n")
    for shared in papers.FOLDER.glob("_*.yaml"):
        (tmp_path / shared.name).write_text(shared.read_text())
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    with pytest.raises(FewstepError, match=message):
        load_preset("mine")


def test_protocols_say_what_papers_state_and_tasks_have_their_own():
    assert load_protocol("fid50k_edm").rounding == "round"
    assert load_protocol("fid50k_adm").rounding == "truncate"
    assert load_protocol("fid50k").rounding is None
    with pytest.raises(FewstepError, match="unknown protocol 'fid50'"):
        load_protocol("fid50")
    task = load_task("digits")
    own = task_protocol(task)
    assert (own.samples, own.rounding, own.extractor) == (task.samples, task.rounding, task.extractor)
