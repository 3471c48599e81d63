"""Studies of a paper's variants: every variant and seed is trained once, and measured alike; figures; bad input."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

from bench import study as running
from bench import trials
from bench.cli import main
from bench.studies import STUDIES, Study, Variant
from bench.study import study
from bench.tasks import load_task
from students.errors import FewstepError
from students.options import check, describe
from students.training import quality
from students.training.distill import method_class
from students.training.settings import merged_settings

TASK = replace(load_task("gaussians"), samples=60)
SMALL = {"steps": 20, "batch_size": 8}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quality, "SAMPLES", 20)
    monkeypatch.setattr(running, "SHOWN", 50)


def shortened(name: str, monkeypatch) -> Study:
    pairs = {"dmd": {"pairs": 40}}
    short = replace(
        STUDIES[name],
        variants=tuple(
            replace(
                v, settings=v.settings | SMALL | (pairs.get(v.method, {}) if v.options.get("regression", True) else {})
            )
            for v in STUDIES[name].variants
        ),
        seeds=min(STUDIES[name].seeds, 2),
    )
    monkeypatch.setitem(STUDIES, name, short)
    return short


@pytest.mark.parametrize("name", STUDIES)
def test_variants_are_options_and_settings_that_their_methods_have(name):
    for variant in STUDIES[name].variants:
        kind = method_class(variant.method)
        check(variant.method, variant.options, describe(kind.Options))
        merged_settings(kind, variant.settings, vectors=False)
    labels = [variant.label for variant in STUDIES[name].variants]
    assert len({*labels}) == len(labels)


def test_a_table_has_each_variant_once_and_panels_beside_it(monkeypatch, tmp_path):
    plan = shortened("dmd-figure3", monkeypatch)
    paths = study("dmd-figure3", TASK)
    table = pd.read_csv(paths[0])
    assert list(table) == ["variant", "seed", "relative", "seconds", "swd", "mode_coverage", "outliers"]
    assert list(table["variant"]) == [variant.label for variant in plan.variants]
    assert Image.open(paths[1]).size[0] > 1000
    before = paths[0].read_bytes()
    monkeypatch.setattr(running, "trained", None)  # nothing is trained again
    assert study("dmd-figure3", TASK) == paths and paths[0].read_bytes() == before


def test_a_convergence_has_curves_of_every_seed(monkeypatch):
    shortened("disback-convergence", monkeypatch)
    table, figure = study("disback-convergence", TASK)
    curves = pd.read_csv(table.with_name("disback-convergence-curves.csv"))
    assert curves.groupby(["variant", "seed"]).size().eq(10).all() and len(curves) == 60
    assert curves["updates"].max() == 20 and figure.is_file()
    assert curves[curves["variant"] == "disback"]["updates"].max() == 18  # a tenth of them recorded the degradation


def test_an_interrupted_study_goes_on(monkeypatch):
    shortened("dmd-figure3", monkeypatch)
    train, left = running.trained, [1]

    def once(*arguments, **how):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return train(*arguments, **how)

    monkeypatch.setattr(running, "trained", once)
    with pytest.raises(KeyboardInterrupt):
        study("dmd-figure3", TASK)
    monkeypatch.setattr(running, "trained", train)
    assert len(pd.read_csv(study("dmd-figure3", TASK)[0])) == 3


def test_bad_input_is_one_line(capsys):
    assert main(["study", "dmd-table3", "gaussians"]) == 2
    assert "dmd-table2" in (error := capsys.readouterr().err) and error.count("\n") == 1
    with pytest.raises(FewstepError, match="draws samples in the plane: take gaussians"):
        study("dmd-figure3", load_task("digits"))


def test_what_cannot_be_read_or_written_is_known_before_any_training(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "trained", None)
    (folder := tmp_path / "reports" / "gaussians").mkdir(parents=True)
    for text in ("x,y\n1,2\n", ""):
        (folder / "dmd-figure3.csv").write_text(text)
        with pytest.raises(FewstepError, match=r"dmd-figure3\.csv is no table with variant, seed: move it away"):
            study("dmd-figure3", TASK)
    (folder / "dmd-figure3.csv").unlink()
    folder.rmdir()
    folder.write_text("")
    with pytest.raises(FewstepError, match="cannot write in reports/gaussians"):
        study("dmd-figure3", TASK)


def test_a_variant_that_samples_no_numbers_keeps_its_row(monkeypatch):
    monkeypatch.setitem(STUDIES, "short", Study("", (Variant("a", "vsd", {}, SMALL), Variant("b", "vsd", {}, SMALL))))
    found = iter([{}, {"swd": 1.0}])
    monkeypatch.setattr(running, "measured", lambda *_: (next(found), 0))
    table = pd.read_csv(study("short", TASK)[0])
    assert list(table["variant"]) == ["a", "b"] and list(table["swd"].isna()) == [True, False]


def test_a_training_whose_row_is_missing_is_not_made_again(monkeypatch):
    monkeypatch.setitem(STUDIES, "short", Study("", (Variant("a", "vsd", {}, SMALL),)))
    measured, made, train = running.measured, [], trials.train_method
    monkeypatch.setattr(trials, "train_method", lambda *a, **how: made.append(how) or train(*a, **how))
    monkeypatch.setattr(running, "measured", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        study("short", TASK)
    monkeypatch.setattr(running, "measured", measured)
    assert len(pd.read_csv(study("short", TASK)[0])) == 1 and len(made) == 1
    monkeypatch.setitem(STUDIES, "short", Study("", (Variant("a", "vsd", {}, SMALL | {"lr": 1e-4}),)))
    _path = running._path(TASK, "short")
    _path.unlink()
    study("short", TASK)
    assert len(made) == 2, "another setting is another training"


def test_a_table_without_its_weights_or_curves_says_what_to_do(monkeypatch):
    shortened("disback-convergence", monkeypatch)
    task = replace(TASK, name="mine")  # on the teacher of another task
    table, _ = study("disback-convergence", task)
    table.with_name("disback-convergence-curves.csv").unlink()
    with pytest.raises(FewstepError, match=r"curves\.csv is missing: remove .*disback-convergence\.csv"):
        study("disback-convergence", task)
    shortened("dmd-figure3", monkeypatch)
    table, _ = study("dmd-figure3", TASK)
    shutil.rmtree("run")
    with pytest.raises(FewstepError, match=r"is missing: remove .*dmd-figure3\.csv"):
        study("dmd-figure3", TASK)
