"""Teachers, extractors and data that may be anybody's: what identifies them, and what is said when they fail."""

import sys
from dataclasses import replace

import pytest
import torch

from bench import third_party as parts
from bench.cli import main
from bench.plan import plan
from bench.store import Store
from bench.tasks import load_task

MODULE = """
import torch
from torch_fidelity import FeatureExtractorBase

from students.data import load_data
from students.models.load import load_teacher

def content():
    return torch.load("content.pt")

def teacher():
    denoiser = load_teacher("digits").denoiser
    with torch.no_grad():
        next(denoiser.parameters()).mul_(content())
    return denoiser

def data():
    digits = load_data("digits")
    digits.train.samples[0] = int(content())
    return digits

class Features(FeatureExtractorBase):
    def __init__(self, name, features_list):
        super().__init__(name, features_list)
        self.register_buffer("matrix", content() * torch.randn(3 * 64, 6, generator=torch.Generator().manual_seed(0)))

    @staticmethod
    def get_provided_features_list():
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "features"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        return (images.flatten(1).float() @ self.matrix,)

class Raising(Features):
    def forward(self, images):
        raise RuntimeError("a fault of its own")

class Unfit(Features):
    def __init__(self, name):
        pass
"""
QUICK = ["run", "digits", "--students", "ddim", "--steps", "1", "--samples", "32", "--seed-blocks", "1"]


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    (tmp_path / "third_party_parts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "third_party_parts", raising=False)
    write_content(1)
    return "third_party_parts"


def write_content(value):
    torch.save(torch.tensor(float(value)), "content.pt")
    for known in (parts.teacher_hash, parts.extractor_hash, parts.data_hash):
        known.cache_clear()  # another process would know nothing


@pytest.mark.parametrize("part", ["teacher", "data", "extractor"])
def test_what_its_files_hold_is_part_of_a_cell(third_party, part):
    task = replace(load_task("digits"), **{part: f"{third_party}:{'Features' if part == 'extractor' else part}"})

    def ids():
        return {cell.id for cell in plan(task, [("ddim", 1, 1.0)]) if part != "teacher" or cell.steps}

    first = ids()
    write_content(2)
    assert not ids() & first
    write_content(1)
    assert ids() == first


def test_an_extractor_without_classes(third_party, tmp_path, capsys):
    arguments = [*QUICK, "--extractor", f"{third_party}:Features"]
    assert main([*arguments, "--metrics", "fd"]) == 0
    assert {cell["status"] for cell in Store(tmp_path, "digits").cells()} == {"ok"}
    assert main([*arguments, "--metrics", "fd", "is"]) == 2
    assert "has no classes: leave is out" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(("name", "message"), [("Raising", "a fault of its own"), ("Unfit", "cannot load extractor")])
def test_an_extractor_at_fault(third_party, name, message, capsys):
    assert main([*QUICK, "--extractor", f"{third_party}:{name}", "--metrics", "fd"]) == 2
    error = capsys.readouterr().err
    assert message in error.strip().splitlines()[-1] and "Traceback" not in error


def test_options_of_a_student_that_are_no_plain_values(tmp_path, monkeypatch, capsys):
    (tmp_path / "odd_student.py").write_text(
        "from students.student import Student\n"
        "class Odd(Student):\n    shape = (1, 8, 8)\n    options = {'levels': {1, 2}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["run", "digits", "--students", "odd_student:Odd", "--steps", "1"]) == 2
    assert "'odd_student:Odd': its options must be finite numbers" in capsys.readouterr().err


def test_where_to_write_is_tried_before_long_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("bench.evaluate.prepare", lambda *_: pytest.fail("work has begun"))
    assert main([*QUICK, "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err
