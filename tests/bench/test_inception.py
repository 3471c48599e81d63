"""The networks of FID against computations of our own: by tensor names for fid768, by torch-fidelity for fid."""

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bench.measure import EXTRACTORS, FID, METRICS, extractor_identity, extractor_problem, metric_columns
from bench.measure.features import load_extractor
from bench.measure.inception import Inception768, InceptionTrunk
from bench.measure.statistics import FeatureStats, Reference
from students.data import load_data
from students.datafiles import DataFile, MissingFile, data_root, file_hash
from students.errors import WeightsError


def plain_768(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """pytorch-fid's 768 features: a list of convolutions, pools and joins by their names."""

    def conv(name, x, stride=1, padding=0):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding).clamp(min=0)

    def mean(x):
        ones = torch.ones_like(x[:1, :1])
        return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)

    def block_5(m, x):
        small = conv(f"{m}.branch5x5_2", conv(f"{m}.branch5x5_1", x), padding=2)
        double = conv(f"{m}.branch3x3dbl_2", conv(f"{m}.branch3x3dbl_1", x), padding=1)
        double = conv(f"{m}.branch3x3dbl_3", double, padding=1)
        return torch.cat([conv(f"{m}.branch1x1", x), small, double, conv(f"{m}.branch_pool", mean(x))], 1)

    def block_6(m, x):
        along = {(1, 7): (0, 3), (7, 1): (3, 0), (1, 1): (0, 0)}
        single, double = x, x
        for i in (1, 2, 3):
            name = f"{m}.branch7x7_{i}"
            single = conv(name, single, padding=along[tuple(weights[f"{name}.weight"].shape[2:])])
        for i in (1, 2, 3, 4, 5):
            name = f"{m}.branch7x7dbl_{i}"
            double = conv(name, double, padding=along[tuple(weights[f"{name}.weight"].shape[2:])])
        return torch.cat([conv(f"{m}.branch1x1", x), single, double, conv(f"{m}.branch_pool", mean(x))], 1)

    x = F.interpolate(images / 255.0, size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
    x = conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x, stride=2))
    x = F.max_pool2d(conv("Conv2d_2b_3x3", x, padding=1), kernel_size=3, stride=2)
    x = F.max_pool2d(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), kernel_size=3, stride=2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = block_5(name, x)
    double = conv("Mixed_6a.branch3x3dbl_2", conv("Mixed_6a.branch3x3dbl_1", x), padding=1)
    double = conv("Mixed_6a.branch3x3dbl_3", double, stride=2)
    x = torch.cat([conv("Mixed_6a.branch3x3", x, stride=2), double, F.max_pool2d(x, kernel_size=3, stride=2)], 1)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = block_6(name, x)
    return F.adaptive_avg_pool2d(x, (1, 1))[:, :, 0, 0]


def plain_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Heusel et al.'s formula with a general matrix square root."""
    shift, (c1, c2) = a.mean(0) - b.mean(0), (np.cov(rows, rowvar=False) for rows in (a, b))
    return float(shift @ shift + np.trace(c1 + c2) - 2 * np.trace(scipy.linalg.sqrtm(c1 @ c2).real))


def fid(extractor, images, references) -> float:
    sides = []
    for batch in (images, references):
        stats = FeatureStats()
        for part in batch.split(40):
            stats.update(extractor.features(part)[0])
        sides.append({"features": stats})
    return METRICS["fd"].compute(sides[0], Reference(train=sides[1]))[0]


def test_fid768_is_what_pytorch_fid_computes():
    missing = "" if (data_root() / "cifar-10-batches-py").is_dir() else "no CIFAR-10 below the data root"
    if problem := EXTRACTORS["inception768"].problem() or missing:
        pytest.skip(problem)
    data, n = load_data("cifar10"), 24
    test, train = data.heldout.samples[:n], data.train.samples[:n]
    noise = 10 * torch.randn(train.shape, generator=torch.Generator().manual_seed(0))
    noisy = (train + noise).round().clamp(0, 255).to(torch.uint8)
    weights = {key: t.float() for key, t in load_file(EXTRACTORS["inception768"].weights.path).items()}
    with torch.inference_mode():
        rows = {key: plain_768(weights, x).double().numpy() for key, x in zip("abc", (test, noisy, train), strict=True)}
    extractor = load_extractor("inception768")
    assert fid(extractor, test, train) == pytest.approx(plain_distance(rows["a"], rows["c"]), rel=1e-3)
    assert fid(extractor, noisy, train) == pytest.approx(plain_distance(rows["b"], rows["c"]), rel=1e-3)
