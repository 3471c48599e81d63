"""LPIPS from a file of torchvision's format."""

import pytest
import torch

from students.datafiles import VARIABLE, MissingFile
from students.errors import WeightsError
from students.training.perceptual import SQUEEZENET_FEATURES, load_lpips, lpips_problem


@pytest.mark.skipif(bool(lpips_problem()), reason=f"no SqueezeNet weights below {VARIABLE}")
def test_the_documented_value():
    """torchmetrics documents 0.1008 for these two batches."""
    torch.manual_seed(123)
    first, second = torch.rand(10, 3, 100, 100) * 2 - 1, torch.rand(10, 3, 100, 100) * 2 - 1
    with torch.inference_mode():
        assert load_lpips()(first, second).mean().item() == pytest.approx(0.1008, abs=5e-5)


def test_a_missing_file_is_named_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(MissingFile, match=f"download https://.* and put it at {tmp_path}"):
        load_lpips()


def test_a_file_of_another_network_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / SQUEEZENET_FEATURES.name)
    monkeypatch.setattr("students.datafiles.file_hash", lambda path: SQUEEZENET_FEATURES.sha256)
    with pytest.raises(WeightsError, match=r"does not fit 'slice1\.0\.weight'"):
        load_lpips()
