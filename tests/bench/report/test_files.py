"""Sample grids and the folder of a report."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.report.files import png, safe_name
from bench.report.grids import LABEL, TITLE, sample_grid
from bench.report.report import write_report
from students.errors import FewstepError
from tests.bench.report.test_tables import tiny

LOWER = {"fd": "lower"}


def with_samples(folder, rows, samples):
    """Cells whose folders hold the given arrays."""
    cells = tiny(*rows)
    cells["path"] = [str(folder / f"{student}-{steps}-{block}") for student, steps, block, _ in rows]
    cells["cell"] = cells["path"].str.rpartition("/")[2]
    for path, array in zip(cells["path"], samples, strict=True):
        (folder / path).mkdir(parents=True)
        np.savez(folder / path / "samples.npz", samples=array)
    return cells


def images(seed, shape=(16, 1, 8, 8)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_the_same_seed_is_at_the_same_place_for_every_student(tmp_path):
    a, b, c = images(0), images(1), images(2)
    first = with_samples(tmp_path, [("ddim", 8, 0, 1.0), ("ddim", 2, 0, 1.0), ("ddim", 2, 1, 1.0)], [b, a, c])
    second = with_samples(tmp_path, [("diffusers:Long", 2, 0, 1.0), ("diffusers:Long", 8, 0, 1.0)], [a, c])
    grids = [np.asarray(sample_grid(cells)) for cells in (first, second)]
    for grid, rows in zip(grids, ((a, b), (a, c)), strict=True):
        for row, samples in enumerate(rows):
            for seed in range(16):
                y, x = TITLE + row * 34, LABEL + seed * 34
                np.testing.assert_array_equal(grid[y : y + 32 : 4, x : x + 32 : 4], samples[seed, 0])
                assert (grid[y : y + 32, x + 32 : x + 34] == 255).all()  # the gap
    assert grids[0].shape == grids[1].shape


def test_colour_images_and_size(tmp_path):
    rgb = images(0, (4, 3, 32, 32))
    grid = np.asarray(sample_grid(with_samples(tmp_path, [("a", 1, 0, 1.0)], [rgb])))
    np.testing.assert_array_equal(grid[TITLE : TITLE + 32, LABEL : LABEL + 32], rgb[0].transpose(1, 2, 0))
    digits = with_samples(tmp_path, [("b", steps, 0, 1.0) for steps in (1, 2, 4, 8, 16)], [images(i) for i in range(5)])
    assert len(png(sample_grid(digits), "x")) < 40_000


def test_vectors_are_drawn_where_they_are_on_axes_of_the_reference(tmp_path):
    reference = np.array([[-1.0, -1.0], [1.0, 1.0]])  # the panel shows -1.3 ... 1.3
    points = np.array([[0.65, 0.65], [5.0, 0.0]])
    cells = with_samples(tmp_path, [("a", 1, 0, 1.0), ("a", 2, 0, 1.0)], [points, np.zeros((2, 2))])
    grid = np.asarray(sample_grid(cells, reference).convert("L"))
    left, top, panel = 24, TITLE + 20, 240
    assert grid[top + panel // 4, left + 3 * panel // 4] < 60  # (0.65, 0.65): right, up
    assert grid[top + 3 * panel // 4, left + 3 * panel // 4] > 200
    assert grid[top + panel // 2, left + 264 + panel // 2] < 60  # the second panel's origin, on the same axes


def test_no_samples_no_grid():
    assert sample_grid(tiny(("a", 1, 0, 1.0))) is None


@pytest.fixture
def small(tmp_path):
    rows = [("ddim", 1, 0, 9.0), ("ddim", 4, 0, 3.0), ("diffusers:X", 1, 0, 8.0), ("real", 0, 0, 2.0)]
    return with_samples(tmp_path / "run", rows, [images(i) for i in range(4)])


def test_report_writes_its_files_and_keeps_unchanged_pictures(small, tmp_path):
    paths = write_report(small, "t", "fd", LOWER, tmp_path)
    folder = tmp_path / "reports" / "t"
    names = {"results.csv", "table.md", "quality_nfe.png", "quality_nfe.svg"}
    names |= {"latency/quality_latency.png", "latency/quality_latency.svg"}
    names |= {f"samples/{name}.png" for name in ("ddim", "diffusers-X", "real")}
    assert {str(path.relative_to(folder)) for path in paths} == names
    assert {path for path in folder.rglob("*") if path.is_file()} == set(paths)
    pictures = [path for path in paths if path.suffix in (".png", ".svg")]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in pictures}
    assert write_report(small, "t", "fd", LOWER, tmp_path) == paths
    assert all(path.stat().st_mtime_ns == before[path][0] for path in pictures)
    small.loc[small["student"] == "diffusers:X", ["fd", "cell"]] = 7.0, "other"
    np.savez(Path(small.loc[small["student"] == "diffusers:X", "path"].iloc[0]) / "samples.npz", samples=images(9))
    small.loc[small["student"] == "ddim", "cell"] = "the same samples"
    write_report(small, "t", "fd", LOWER, tmp_path)
    changed = {path.name for path in pictures if path.read_bytes() != before[path][1]}
    assert changed == {
        "quality_nfe.png",
        "quality_nfe.svg",
        "quality_latency.png",
        "quality_latency.svg",
        "diffusers-X.png",
    }


def test_training_curves_are_drawn_where_there_are_some(small, tmp_path):
    curve = [[100, 0.5], [200, 0.2]]
    trained = small.query("student == 'ddim'").assign(student="cd", training_curve=[curve, curve])
    untrained = small.query("student == 'ddim'").assign(student="none", training_curve=[[], []])
    paths = write_report(pd.concat([small, trained, untrained]), "t", "fd", LOWER, tmp_path)
    pictures = [path for path in paths if path.stem == "training"]
    assert [path.name for path in pictures] == ["training.png", "training.svg"]
    before = [path.stat().st_mtime_ns for path in pictures]
    write_report(pd.concat([small, trained]), "t", "fd", LOWER, tmp_path)
    assert [path.stat().st_mtime_ns for path in pictures] == before
    only = write_report(pd.concat([small, untrained]), "t", "fd", LOWER, tmp_path / "other")
    assert not any(path.stem == "training" for path in only)


def test_other_protocols_and_devices_have_pictures_of_their_own(small, tmp_path):
    gpu = small.query("student == 'ddim'").assign(device="H 200")
    guided = small.query("student == 'ddim'").assign(guidance=2.0)
    paths = write_report(pd.concat([small, gpu.assign(student="ddim_gpu"), guided]), "t", "fd", LOWER, tmp_path)
    assert {path.name for path in paths if path.suffix == ".svg"} == {
        "quality_nfe.svg", "quality_latency.svg", "quality_latency-H-200.svg",
        "quality_nfe-guidance_2.svg", "quality_latency-guidance_2.svg",
    }  # fmt: skip


def test_a_report_without_any_number(tmp_path):
    cells = tiny(("a", 1, 0, float("nan"))).assign(status="failed", reason="boom", nfe=0.0)
    paths = write_report(cells, "t", "fd", LOWER, tmp_path)
    assert [path.name for path in paths] == ["results.csv", "table.md"]
    assert "a 1: boom" in paths[1].read_text()


def test_an_unwritable_folder_is_named(small, tmp_path):
    (tmp_path / "reports").write_text("a file in the way")
    with pytest.raises(FewstepError, match="give another folder with --out"):
        write_report(small, "t", "fd", LOWER, tmp_path)


def test_file_names_are_safe():
    assert safe_name("diffusers:DDIMScheduler") == "diffusers-DDIMScheduler"
    assert safe_name("ddim:eta=1,grid=log_snr") == "ddim-eta=1,grid=log_snr"
    assert "/" not in safe_name("../../x:y") and not safe_name("../x").startswith(".")


def test_no_torch_is_imported():
    modules = "bench.report.report, bench.report.plots, bench.report.leaderboard"
    subprocess.run([sys.executable, "-c", f"import sys, {modules}; assert 'torch' not in sys.modules"], check=True)


def test_metadata_is_readable():
    assert Image.open(io.BytesIO(png(Image.new("L", (2, 2)), "abc"))).text == {"Inputs": "abc"}
