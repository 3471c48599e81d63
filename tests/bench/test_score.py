"""Samples that somebody brings: measured like any other, and shown apart, as what is said of them is only stated."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.cli import main
from bench.measure.features import load_extractor
from bench.report import stated
from bench.store import Store
from students.data import load_data

N = 300


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Noisy digits, uint8 (N, 1, 8, 8)."""
    clean = load_data("digits").heldout.samples[:N].float()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return (clean + 12 * noise).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def brought(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("brought")
    for i, image in enumerate(images):
        path = root / "pngs" / f"{i // 100}" / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    np.savez(root / "adm.npz", images.permute(0, 2, 3, 1).numpy())
    save_file({"x": images.float() / 127.5 - 1}, root / "floats.safetensors")
    return root


def pytorch_fid(a: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> float:
    """Its formula: numpy's moments, and the trace of a root of a product that is not symmetric."""
    mu_a, sigma_a = a.mean(0), np.cov(a, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(sigma_a @ sigma).real.clip(min=0)).sum()
    return float(((mu_a - mu) ** 2).sum() + np.trace(sigma_a) + np.trace(sigma) - 2 * root)


def rows(images) -> np.ndarray:
    return load_extractor("digits_cnn").features(images)[0].double().numpy()


def moments(images) -> dict[str, np.ndarray]:
    features = rows(images)
    return {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}


def score(*arguments, out) -> int:
    return main(["score", *map(str, arguments), "--task", "digits", "--out", str(out)])


def cells(out) -> list[dict]:
    return Store(out, "digits").cells()


def test_a_folder_an_archive_and_a_tensor_score_alike(brought, images, tmp_path, capsys):
    for path, more in (("pngs", ()), ("adm.npz", ()), ("floats.safetensors", ("--range", -1, 1))):
        assert score(brought / path, "--metrics", "fd", "kid", "prc", *more, out=tmp_path) == 0
    found = {cell["student"]: cell for cell in cells(tmp_path)}
    assert set(found) == {"pngs", "adm", "floats"}
    reference = found["pngs"]["metrics"]
    for cell in found.values():
        assert cell["metrics"].keys() == reference.keys()
        for name, value in cell["metrics"].items():
            assert value == pytest.approx(reference[name], rel=1e-6), name
    real = moments(load_data("digits").train.samples)
    assert reference["fd_digits_cnn"] == pytest.approx(pytorch_fid(rows(images), **real), rel=1e-4)
    capsys.readouterr()


@pytest.mark.slow
def test_what_is_stated_is_never_what_is_measured(brought, tmp_path, capsys):
    arguments = [brought / "adm.npz", "--name", "theirs", "--steps", 4, "--nfe", 7, "--metrics", "fd"]
    assert score(*arguments, out=tmp_path) == 0
    shown = capsys.readouterr()
    assert "name, steps and NFE are stated, not measured" in shown.out and "NFE (stated)" in shown.out
    assert f"{N} images, where protocol digits asks for 5000" in shown.out and f"{N} images, where" in shown.err
    [cell] = cells(tmp_path)
    assert not {"nfe", "setup_nfe", "latency", "peak_memory_mb"} & cell.keys()
    assert cell["stated"] == {"steps": 4, "nfe": 7} and cell["family"] == "stated"
    assert cell["brought"]["protocol"]["samples"] == 5000 and cell["samples"] == N

    finished = cell["provenance"]["finished"]
    assert score(*arguments[:-3], 8, "--metrics", "fd", out=tmp_path) == 0
    [cell] = cells(tmp_path)
    assert cell["stated"]["nfe"] == 8 and cell["provenance"]["finished"] == finished, "renewed, not measured again"

    quick = ["--steps", "2", "--samples", str(N), "--seed-blocks", "1", "--metrics", "fd", "--out", str(tmp_path)]
    assert main(["run", "digits", "--students", "ddim", *quick]) == 0
    assert main(["plot", "digits", "--out", str(tmp_path)]) == 0
    assert main(["leaderboard", "digits", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    for path in (tmp_path / "reports").rglob("results.csv"):
        assert "theirs" not in path.read_text()
    table = pd.read_csv(tmp_path / "reports" / "digits" / "stated.csv")
    assert table["fd_digits_cnn_se"].iloc[0] > 0, "as sure as a student's"
    assert list(table["name"]) == ["theirs"] and list(table["NFE (stated)"]) == [8]
    for name in ("stated.png", "stated.svg"):
        assert (tmp_path / "reports" / "digits" / name).stat().st_size > 1000
    board = (tmp_path / "leaderboards" / "digits.md").read_text()
    measured, stated = board.split("## Samples that were brought: name, steps and NFE are stated, not measured")
    assert "theirs" in stated and "theirs" not in measured and "ddim" in measured and "ddim" not in stated


def test_a_store_of_brought_samples_alone(brought, tmp_path, capsys):
    assert score(brought / "adm.npz", "--metrics", "fd", out=tmp_path) == 0
    for command in ("plot", "leaderboard"):
        assert main([command, "digits", "--out", str(tmp_path)]) == 0
    assert "not stated" in (tmp_path / "leaderboards" / "digits.md").read_text()
    assert not (tmp_path / "reports" / "digits" / "stated.png").exists(), "no NFE was stated"
    capsys.readouterr()


def test_two_references_are_two_columns(brought, images, tmp_path, capsys):
    halves = load_data("digits").train.samples.split(449)
    files = {}
    for name, half in zip(("one.npz", "two.npz"), halves, strict=False):
        files[name] = moments(half)
        np.savez(tmp_path / name, **files[name])
        assert score(brought / "adm.npz", "--reference", tmp_path / name, out=tmp_path) == 0
    shown = capsys.readouterr().out
    columns = {}
    for cell in cells(tmp_path):
        columns |= cell["metrics"]
    names = sorted(name for name in columns if name.startswith("fd_"))
    assert [re.sub("-.*", "", name) for name in names] == ["fd_digits_cnn_to_one", "fd_digits_cnn_to_two"]
    assert all(name in shown for name in names)
    table = pd.read_csv(tmp_path / "reports" / "digits" / "stated.csv")
    assert len(table) == 1, "one row of one content"
    for name, given in zip(names, files.values(), strict=True):
        assert columns[name] == pytest.approx(pytorch_fid(rows(images), **given), rel=1e-4)
        assert table[name].iloc[0] == columns[name]
    assert "is_digits_cnn" in columns, "what needs no reference keeps its name"


def test_the_images_of_a_reference_serve_precision_and_recall(brought, images, tmp_path, capsys, monkeypatch):
    """As in guided-diffusion's files: the moments are of more images than the file holds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = load_data("digits").train.samples
    some = real[:200]
    np.savez(tmp_path / "VIRTUAL.npz", some.permute(0, 2, 3, 1).numpy(), **moments(real))
    arguments = [brought / "adm.npz", "--reference", tmp_path / "VIRTUAL.npz", "--metrics", "fd", "prc"]
    assert score(*arguments, out=tmp_path) == 0
    [cell] = cells(tmp_path)
    values = {name.partition("_")[0]: value for name, value in cell["metrics"].items()}
    assert values["fd"] == pytest.approx(pytorch_fid(rows(images), **moments(real)), rel=1e-4)

    def radius(x):
        return np.sort(np.linalg.norm(x[:, None] - x, axis=2), axis=1)[:, 3]

    ours, theirs = rows(images), rows(some)
    apart = np.linalg.norm(ours[:, None] - theirs, axis=2)
    assert values["precision"] == pytest.approx((apart <= radius(theirs)).any(1).mean(), abs=1 / N)
    assert values["recall"] == pytest.approx((apart <= radius(ours)[:, None]).any(0).mean(), abs=1 / 200)
    capsys.readouterr()


def test_every_field_of_the_protocol_is_recorded(brought, tmp_path, capsys):
    np.savez(tmp_path / "ref.npz", **moments(load_data("digits").train.samples))
    arguments = ["--protocol", "fid50k_edm", "--extractor", "digits_cnn", "--reference", tmp_path / "ref.npz"]
    assert score(brought / "adm.npz", *arguments, out=tmp_path) == 0
    [cell] = cells(tmp_path)
    kept = cell["brought"]["protocol"]
    assert kept.keys() == {"name", "samples", "seeds", "labels", "rounding", "resize", "extractor", "metrics"}
    unmet = " | ".join(cell["brought"]["unmet"])
    assert "asks for 50000" in unmet and "extractor digits_cnn, where protocol fid50k_edm asks for inception" in unmet
    assert "which is none of protocol fid50k_edm's" in unmet
    assert cell["brought"]["reference"]["sha256"] == cell["identity"]["reference"]["file"]
    assert json.dumps(cell["identity"]["protocol"]).count("fid50k_edm") == 1
    capsys.readouterr()


def test_more_images_than_asked_for_are_all_measured(brought, tmp_path, capsys):
    task = tmp_path / "small.yaml"
    text = (pytest.importorskip("bench.tasks").FOLDER / "digits.yaml").read_text()
    task.write_text(re.sub("samples: .*", "samples: 100", text).replace("name: digits", "name: small"))
    assert (
        main(["score", str(brought / "adm.npz"), "--task", str(task), "--metrics", "fd", "--out", str(tmp_path)]) == 0
    )
    assert f"{N} images, where protocol small asks for 100: all of them are measured" in capsys.readouterr().err
    [cell] = Store(tmp_path, "small").cells()
    assert cell["samples"] == N


def test_bad_input_is_said_in_one_line(brought, images, tmp_path, capsys):
    given = moments(images)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    np.savez(tmp_path / "bad.npz", mu=given["mu"], sigma=-given["sigma"])
    np.savez(tmp_path / "plain.npz", **given)
    np.savez(tmp_path / "big.npz", images.repeat(1, 1, 2, 2).permute(0, 2, 3, 1).numpy())
    np.savez(tmp_path / "colour.npz", images.repeat(1, 3, 1, 1).permute(0, 2, 3, 1).numpy())
    adm = brought / "adm.npz"
    for arguments, message in [
        ([tmp_path / "absent"], "there is no"),
        ([adm, "--protocol", "fid50k"], "unknown protocol 'fid50k': did you mean"),
        ([adm, "--protocol", "fid50k_edm"], "has no reference of digits"),
        ([adm, "--reference", tmp_path / "wide.npz"], "is of 9 features, and digits_cnn gives"),
        ([adm, "--reference", tmp_path / "bad.npz"], "sigma has eigenvalues from"),
        ([adm, "--reference", tmp_path / "plain.npz", "--metrics", "kid"], "holds moments alone: leave them out"),
        ([adm, "--reference", "edm/cifar10"], "unknown reference"),
        ([adm, "--metrics", "faithfulness"], "neither noise nor classes"),
        ([adm, "--resize", "cubic"], "unknown filter 'cubic': did you mean 'bicubic'"),
        ([adm, "--metrics", "fdd"], "unknown metric 'fdd'"),
        ([adm, "--name", " "], "--name must not be empty"),
        ([adm, "--name", "two\nlines"], "--name must be one line of printable characters"),
        ([adm, "--nfe", "1.7e308"], "--nfe must be a number up to 1,000,000,000"),
        ([adm, "--nfe", "inf"], "--nfe must be a number up to 1,000,000,000"),
        ([adm, "--nfe", "nan"], "--nfe must be above 0, got nan"),
        ([adm, "--steps", "9" * 400], "--steps must be a number up to 1,000,000,000"),
        ([adm, "--nfe", -1], "--nfe must be above 0, got -1"),
        ([adm, "--steps", 0], "--steps must be above 0, got 0"),
        ([adm, "--range", 1, 0], "--range must be two finite numbers, the smaller first"),
        ([brought / "floats.safetensors"], "whose range nobody has stated"),
        ([tmp_path / "big.npz"], "are 16 x 16 of 1 channel, those of task digits 8 x 8 of 1 channel: resize"),
        ([tmp_path / "colour.npz"], "holds images in colour, the task's are grey"),
        ([adm, "--extractor", "digit_cnn"], "unknown extractor 'digit_cnn'"),
    ]:
        assert score(*arguments, out=tmp_path / "out") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error, error
    assert not (tmp_path / "out" / "run").exists() or not cells(tmp_path / "out")
    assert main(["score", str(adm), "--task", "gaussians", "--out", str(tmp_path)]) == 2
    assert "task 'gaussians' has no images" in capsys.readouterr().err


def test_each_content_under_one_name_keeps_its_number(brought, images, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", (255 - images).permute(0, 2, 3, 1).numpy())
    shown = []
    for path in (brought / "adm.npz", tmp_path / "other.npz", brought / "adm.npz"):
        assert score(path, "--name", "m", "--nfe", 4, "--metrics", "fd", out=tmp_path) == 0
        shown.append(capsys.readouterr().out)
    table = pd.read_csv(tmp_path / "reports" / "digits" / "stated.csv")
    assert len(table) == 2 == table["content"].nunique() == table["fd_digits_cnn"].nunique()
    assert shown[1].splitlines()[3:5] == shown[2].splitlines()[3:5]


def test_a_name_with_mathematics_breaks_no_picture(brought, tmp_path, capsys):
    for name in (r"$\foo$", "a $x^2$ b"):
        assert score(brought / "adm.npz", "--name", name, "--nfe", 2, "--metrics", "fd", out=tmp_path) == 0
    assert main(["plot", "digits", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "reports" / "digits" / "stated.png").stat().st_size > 1000


def test_a_folder_is_called_by_its_whole_name(images, tmp_path, capsys):
    for name in ("heun-1.5", "heun-1.7"):
        (tmp_path / name).mkdir()
        for i in (0, 1):
            Image.fromarray(images[i, 0].numpy()).save(tmp_path / name / f"{i}.png")
        assert score(tmp_path / name, "--metrics", "fd", out=tmp_path) == 0
    assert {cell["student"] for cell in cells(tmp_path)} == {"heun-1.5", "heun-1.7"}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert score(tmp_path / "loop", out=tmp_path) == 2
    assert "there is no" in capsys.readouterr().err


def test_resized_images_are_another_cell(images, tmp_path, capsys):
    np.savez(tmp_path / "big.npz", images.repeat_interleave(2, 2).repeat_interleave(2, 3).permute(0, 2, 3, 1).numpy())
    for name in ("box", "bicubic"):
        assert score(tmp_path / "big.npz", "--resize", name, "--name", name, "--metrics", "fd", out=tmp_path) == 0
    assert "resize bicubic, where protocol digits asks for none" in " ".join(capsys.readouterr().out.split())
    values = {cell["student"]: cell["metrics"]["fd_digits_cnn"] for cell in cells(tmp_path)}
    assert values["box"] != values["bicubic"]
    assert values["box"] == pytest.approx(
        pytorch_fid(rows(images), **moments(load_data("digits").train.samples)), rel=1e-4
    )


def test_compare_folders(brought, images, tmp_path, capsys):
    real = load_data("digits").train.samples
    np.savez(tmp_path / "real.npz", real.permute(0, 2, 3, 1).numpy())
    values = []
    for pair in ([brought / "pngs", tmp_path / "real.npz"], [tmp_path / "real.npz", brought / "adm.npz"]):
        assert main(["compare-folders", *map(str, pair), "--extractor", "digits_cnn"]) == 0
        shown = capsys.readouterr()
        values.append(float(re.search(r"fd_digits_cnn: (\S+)", shown.out)[1]))
        assert "the sets differ in count or size" in shown.err
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0] == pytest.approx(pytorch_fid(rows(images), **moments(real)), rel=1e-4)
    assert main(["compare-folders", str(brought / "pngs"), str(brought / "adm.npz"), "--extractor", "digits_cnn"]) == 0
    assert abs(float(re.search(r"fd_digits_cnn: (\S+)", capsys.readouterr().out)[1])) < 1e-6


def test_a_name_with_a_pipe_keeps_the_columns_of_the_leaderboard(monkeypatch):
    frame = pd.DataFrame({"name": ["a|b"], "samples": [3]})
    monkeypatch.setattr(stated, "shown", lambda frame: frame)
    monkeypatch.setattr(stated, "notes", lambda frame: [])
    assert "| a\\|b | 3 |" in stated.to_markdown(frame)
