"""The command line as a user meets it: both tasks end to end, and every bad input."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bench.cli import main
from bench.store import Store
from students.models.teachers import teacher_weights

ROOT = Path(__file__).parents[2]
QUICK = ["--samples", "64", "--seed-blocks", "2", "--batch-size", "48"]


def command(*arguments, cwd=ROOT, **kwargs):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *map(str, arguments)], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs,
    )  # fmt: skip


def measured(root, task="digits"):
    """Everything in a store that must not depend on how the run went."""
    return {
        cell["id"]: (cell["status"], cell["nfe"], cell.get("metrics"), cell["samples"])
        for cell in Store(root, task).cells()
    }


@pytest.mark.parametrize(("task", "column"), [("digits", "fd_digits_cnn"), ("gaussians", "swd")])
def test_run_measures_and_reports(task, column, tmp_path, capsys):
    students = ["ddim", "heun", "pndm"]
    arguments = ["run", task, "--steps", "1", "4", "--students", *students, *QUICK, "--out", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for name in (*students, "real"):
        assert name in printed
    assert "64" in printed, "a quick look is labelled with its sample count"
    report = tmp_path / "reports" / task / "64-samples"
    for name in ("quality_nfe.png", "quality_nfe.svg", "latency/quality_latency.png", "latency/quality_latency.svg"):
        assert (report / name).stat().st_size > 0
    assert (report / "samples" / "heun.png").exists()
    table = pd.read_csv(report / "results.csv").set_index(["student", "steps"])
    assert table.loc[("heun", 4), "nfe"] == 7 and table.loc[("ddim", 4), "nfe"] == 4
    assert table.loc[("ddim", 4), column] < table.loc[("ddim", 1), column]
    assert table.loc[("pndm", 1), "status"] == "unsupported"

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("cell.json")}
    assert len(before) == 1 + 2 + 2 * 2 * len(students)
    assert main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("cell.json")}

    assert main(["leaderboard", task, "--out", str(tmp_path)]) == 0
    board = (tmp_path / "leaderboards" / f"{task}.md").read_text()
    assert "64 samples" in board and "not the task's protocol" in board


def test_plot_and_leaderboard_from_the_store(tmp_path, monkeypatch, capsys):
    path = tmp_path / "small.yaml"
    text = (ROOT / "bench/tasks/gaussians.yaml").read_text()
    path.write_text(re.sub("samples: .*", "samples: 64", text).replace("name: gaussians", "name: small"))
    out = ["--out", str(tmp_path)]
    assert main(["run", str(path), "--students", "ddim", "unipc", "--steps", "2", "4", *out]) == 0
    results = (tmp_path / "reports/small/results.csv").read_text()
    assert main(["plot", str(path), *out]) == 0
    assert (tmp_path / "reports/small/results.csv").read_text() == results
    assert main(["leaderboard", str(path), *out]) == 0
    board = (tmp_path / "leaderboards/small.md").read_text()
    assert "unipc" in board and "ddim" in board and "64 samples" in board


def students_cells(out, task) -> list[dict]:
    """Without the floor and the teacher's own images."""
    return [cell for cell in Store(out, task).cells() if cell["family"] not in ("real", "teacher")]


def test_nfe_budgets_pick_steps(tmp_path, capsys):
    arguments = ["run", "gaussians", "--nfe", "1", "8", "--students", "ddim", "heun", "dpm_solver_2", "rk45"]
    assert main([*arguments, *QUICK, "--out", str(tmp_path)]) == 0
    steps = {(c["student"], c["steps"]): c["nfe"] for c in students_cells(tmp_path, "gaussians")}
    assert steps[("ddim", 8)] == 8 and steps[("heun", 4)] == 7 and steps[("dpm_solver_2", 4)] == 8
    assert all(nfe <= 8.5 for nfe in steps.values())
    error = capsys.readouterr().err
    assert "dpm_solver_2 has no step count within 1 evaluations" in error
    assert "rk45 has no step count within 1 evaluations" in error


def test_guidance_costs_two_evaluations(tmp_path):
    arguments = ["run", "digits", "--steps", "3", "--students", "unipc", "--guidance", "1", "2"]
    assert main([*arguments, *QUICK, "--out", str(tmp_path)]) == 0
    assert {c["guidance"]: c["nfe"] for c in students_cells(tmp_path, "digits")} == {1.0: 3, 2.0: 6}


def test_metrics_added_later_are_computed_from_the_store(tmp_path):
    arguments = ["run", "digits", "--steps", "2", "--students", "ddim", *QUICK, "--out", str(tmp_path)]
    assert main([*arguments, "--metrics", "fd"]) == 0
    first = students_cells(tmp_path, "digits")
    assert set(first[0]["metrics"]) == {"fd_digits_cnn"}
    assert main([*arguments, "--metrics", "fd", "prc"]) == 0
    second = students_cells(tmp_path, "digits")
    assert set(second[0]["metrics"]) == {"fd_digits_cnn", "precision_digits_cnn", "recall_digits_cnn"}
    assert second[0]["latency"] == first[0]["latency"], "the samples were not drawn again"


BAD = {
    "unknown task": (["run", "digit"], "did you mean 'digits'"),
    "unknown student": (["run", "digits", "--students", "ddimm"], "did you mean 'ddim'"),
    "unknown scheduler": (["run", "digits", "--students", "diffusers:DDIMSchedulr"], "did you mean 'DDIMScheduler'"),
    "weights that are not there": (
        ["run", "gaussians", "--students", "consistency:weights=nowhere"],
        "no weights of consistency in nowhere: train it",
    ),
    "unknown option": (["run", "digits", "--students", "ddim:eat=1"], "takes no option 'eat'"),
    "unknown grid": (["run", "digits", "--students", "ddim:grid=lg_snr"], "did you mean 'log_snr'"),
    "unknown metric": (["run", "digits", "--metrics", "fid"], "did you mean 'fd'"),
    "metric of another kind": (["run", "digits", "--metrics", "swd"], "needs vector samples"),
    "zero steps": (["run", "digits", "--steps", "0"], "at least 1, got 0"),
    "negative steps": (["run", "digits", "--steps", "-4"], "at least 1, got -4"),
    "broken steps": (["run", "digits", "--steps", "2.5"], "'2.5' is no whole number"),
    "zero budget": (["run", "digits", "--nfe", "0"], "at least 1, got 0"),
    "guidance without classes": (["run", "gaussians", "--guidance", "2"], "unconditional"),
    "no samples": (["run", "digits", "--samples", "0"], "--samples must be at least 1"),
    "absent device": (["run", "digits", "--device", "cuda:7"], "device 'cuda:7' is not there"),
    "no device": (["run", "digits", "--device", "gpu"], "device 'gpu' is not there"),
    "a device without arithmetic": (["run", "digits", "--device", "meta"], "device 'meta' is not there"),
    "guidance that is no number": (["run", "digits", "--guidance", "nan"], "finite"),
    "an option that is no number": (["run", "digits", "--students", "ddim:eta=.nan"], "finite numbers"),
    "an option that is text": (["run", "digits", "--students", "ddim:eta=x"], "must be a number from 0 to 1, got 'x'"),
    "an option that cannot be read": (["run", "digits", "--students", "ddim:eta={a"], "cannot read the value"),
    "an extractor of vectors": (["run", "gaussians", "--extractor", "inception"], "leave --extractor out"),
    "images of vectors": (["run", "gaussians", "--save-images"], "has no images"),
    "agreement without classes": (["run", "cifar10", "--metrics", "agreement"], "compares with classes, and cifar10"),
    "a time limit that is no number": (["run", "digits", "--time-limit", "nan"], "--time-limit must be a number"),
    "no workers": (["run", "digits", "--workers", "0"], "--workers must be at least 1, got 0"),
    "workers that are no number": (["run", "digits", "--workers", "two"], "'two' is no whole number"),
    "an empty extractor": (["run", "digits", "--extractor", ""], "unknown extractor ''"),
    "more seeds than there are": (["run", "digits", "--seed-blocks", "9999999999999"], "take fewer"),
    "a budget that no student can keep": (["run", "digits", "--students", "pndm", "--nfe", "1"], "give --nfe more"),
    "an unknown extractor": (["run", "digits", "--extractor", "incepton"], "did you mean 'inception'"),
    "a folder that is not there": (["run", "digits", "--data-root", "nowhere"], "is no folder"),
    "nothing stored": (["leaderboard", "digits"], "has no cells of digits"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, tmp_path, capsys, monkeypatch):
    arguments, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and "Traceback" not in "".join(error)
    assert not list(tmp_path.rglob("cell.json")) and not (tmp_path / "reports").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", "digits", "--steps", "1", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no weights at"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "cut short"),
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "sha256 differs"),
        (lambda path: path.with_suffix(".json").unlink(), "lack their record"),
    ],
)
def test_spoiled_weights_are_noticed_before_any_work(spoil, message, tmp_path, monkeypatch, capsys):
    shipped = teacher_weights("digits")
    copy = tmp_path / "teacher.safetensors"
    for suffix in (".safetensors", ".json"):
        copy.with_suffix(suffix).write_bytes(shipped.with_suffix(suffix).read_bytes())
    spoil(copy)
    monkeypatch.setattr("students.models.teachers.teacher_weights", lambda name: copy)
    assert main(["run", "digits", "--steps", "1", "--students", "ddim", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("cell.json"))


THIRD_PARTY = """
import torch
from students.student import Student

class Bad(Student):
    shape, classes = (1, 8, 8), 10
    def __init__(self, fault):
        self.network, self.fault = torch.nn.Identity(), fault
    def sample(self, n_steps, seeds=range(16), conditions=None, guidance=1.0):
        x = self.network(torch.zeros(len(seeds), 1, 8, 8))
        return {
            "shape": x[:, 0], "nans": x / 0, "range": x + 2, "count": x[1:], "integers": x.long(), "list": x.tolist(),
        }[self.fault]
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", "must return a tensor"),
        ("count", "must return a tensor"),
        ("list", "must return a tensor"),
        ("nans", "NaN or infinity"),
        ("range", "values in [2, 2]: images must lie in [-1, 1]"),
        ("integers", "must return float32"),
    ],
)
def test_a_third_party_student_at_fault_is_a_failed_cell_and_the_others_go_on(
    fault, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "third_party_bad.py").write_text(THIRD_PARTY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "third_party_bad", raising=False)
    bad = f"third_party_bad:Bad:fault={fault}"
    arguments = ["run", "digits", "--steps", "1", "--students", bad, "ddim", "--samples", "32", "--seed-blocks", "1"]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    status = {cell["student"]: cell["status"] for cell in Store(tmp_path, "digits").cells()}
    assert status == {"real": "ok", "teacher": "ok", bad: "failed", "ddim": "ok"}


MUTATING = """
import torch
from students.student import Student

class Mutating(Student):
    supported_steps = (1, 2, 4)
    def __init__(self, denoiser, seedless=False):
        torch.nn.init.zeros_(next(denoiser.network.parameters()))
        self.denoiser, self.seedless = denoiser, seedless
        self.shape, self.classes = denoiser.shape, denoiser.classes
    def generate(self, n_steps, noise, conditions, guidance):
        eps = torch.randn(len(noise.seeds), *self.shape) if self.seedless else noise()
        return self.denoiser(80 * eps, self.denoiser.schedule.t_max, conditions)
"""


@pytest.fixture
def mutating(tmp_path, monkeypatch):
    (tmp_path / "third_party_mutating.py").write_text(MUTATING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "third_party_mutating", raising=False)
    return "third_party_mutating:Mutating"


def test_a_third_party_cannot_change_the_teacher_of_others(mutating, tmp_path):
    quick = ["--steps", "2", "--samples", "32", "--seed-blocks", "1", "--metrics", "fd"]
    assert main(["run", "digits", "--students", mutating, "ddim", *quick, "--out", "both"]) == 0
    assert main(["run", "digits", "--students", "ddim", *quick, "--out", "alone"]) == 0
    both = measured(tmp_path / "both")
    assert measured(tmp_path / "alone").items() <= both.items() and len(both) == 4


def test_a_student_that_ignores_its_seeds_is_refused(mutating, tmp_path, capsys):
    quick = ["--steps", "1", "--samples", "32", "--seed-blocks", "1", "--metrics", "fd"]
    assert main(["run", "digits", "--students", f"{mutating}:seedless=true", *quick]) == 2
    assert "another sample in a batch than alone" in capsys.readouterr().err


def test_a_budget_beyond_what_a_student_supports_takes_its_most(mutating, tmp_path, capsys):
    arguments = [
        "run",
        "digits",
        "--students",
        mutating,
        "ddim",
        "--nfe",
        "3",
        "9",
        "--samples",
        "32",
        "--metrics",
        "fd",
    ]
    assert main([*arguments, "--seed-blocks", "1"]) == 0
    cells = {(cell["student"], cell["steps"]) for cell in students_cells(tmp_path, "digits")}
    assert cells == {(mutating, 2), (mutating, 4), ("ddim", 3), ("ddim", 9)}


def test_a_failing_metric_leaves_the_others_their_numbers(tmp_path, capsys):
    arguments = ["run", "digits", "--students", "ddim", "--steps", "1", "--samples", "2", "--seed-blocks", "1"]
    arguments += ["--out", str(tmp_path), "--metrics"]
    assert main([*arguments, "fd", "prc"]) == 2
    printed, reason = capsys.readouterr(), "prc: precision and recall need more than 3 samples"
    assert f"error: ddim at 1 steps: {reason}" in printed.err
    assert f"ddim 1: {reason}" in " ".join(printed.out.split()) and "failed" not in printed.out.split("ddim 1:")[0]
    (cell,) = students_cells(tmp_path, "digits")
    assert cell["status"] == "ok" and cell["nfe"] == 1
    assert cell["metrics"].keys() == {"fd_digits_cnn"} and cell["failures"].keys() == {"prc"}
    table = pd.read_csv(tmp_path / "reports/digits/2-samples/results.csv").set_index("student").loc["ddim"]
    assert table["fd_digits_cnn"] > 0 and table["failed"] == "precision_digits_cnn recall_digits_cnn"
    assert main([*arguments, "fd"]) == 0, "nobody asks for what failed"
    assert main([*arguments, "prc"]) == 2, "what failed is tried again"


def test_time_is_up_between_cells(tmp_path, capsys):
    arguments = [
        "run",
        "gaussians",
        "--students",
        "ddim",
        "--steps",
        "1",
        "2",
        "--samples",
        "100",
        "--seed-blocks",
        "3",
        "--out",
        str(tmp_path),
    ]
    assert main([*arguments, "--steps", "1"]) == 0
    assert main([*arguments, "--time-limit", "0"]) == 0
    assert "time is up with 3 cells to go" in capsys.readouterr().err
    assert main(arguments) == 0 and len(Store(tmp_path, "gaussians").cells()) == 10


def test_a_killed_run_is_continued_to_the_same_numbers(tmp_path):
    arguments = ["run", "gaussians", "--steps", "1", "2", "4", "--students", "ddim", "ddpm", "--samples", "500"]
    arguments += ["--seed-blocks", "3"]
    process = command(*arguments, "--out", tmp_path / "killed", start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed/run/gaussians").glob("[!.]*/cell.json"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    partial = measured(tmp_path / "killed", "gaussians")
    assert main([*arguments, "--out", str(tmp_path / "killed")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    whole = measured(tmp_path / "whole", "gaussians")
    assert 3 <= len(partial) < len(whole) == 22
    assert measured(tmp_path / "killed", "gaussians") == whole
    assert not list((tmp_path / "killed").rglob(".part-*"))


def test_two_runs_on_one_store_share_the_work(tmp_path):
    arguments = ["run", "gaussians", "--steps", "1", "2", "4", "--students", "ddim", "ddpm", "--samples", "500"]
    arguments += ["--seed-blocks", "3"]
    both = [command(*arguments, "--out", tmp_path) for _ in range(2)]
    for process in both:
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
    cells = Store(tmp_path, "gaussians").cells()
    assert len(cells) == 22 and all(cell["status"] == "ok" for cell in cells)


def test_list_and_help_are_quick_to_import():
    code = "import sys; from bench.cli import main; main(['list']); assert not {'torch', 'pandas'} & set(sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, text=True, capture_output=True, cwd=ROOT).stdout
    for name in ("digits", "gaussians", "dpm_solver_pp", "progressive", "diffusers:<Class>", "memorisation"):
        assert name in printed


def test_doctor_finds_everything_that_ships(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert (
        "teacher of digits" in printed
        and "extractor digits_cnn" in printed
        and "everything that ships is there" in printed
    )
    assert "CIFAR-10" in printed and "extractor inception" in printed
