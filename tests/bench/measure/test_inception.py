"""The networks of FID against computations of our own: by tensor names for fid768, by torch-fidelity for fid."""

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bench.measure import FID, METRICS, metric_columns
from bench.measure.extractors import EXTRACTORS, extractor_identity, extractor_problem
from bench.measure.features import Extractor, load_extractor
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
    data, n = load_data("cifar10"), 16
    test, train = data.heldout.samples[:n], data.train.samples[:n]
    noise = 10 * torch.randn(train.shape, generator=torch.Generator().manual_seed(0))
    noisy = (train + noise).round().clamp(0, 255).to(torch.uint8)
    weights = {key: t.float() for key, t in load_file(EXTRACTORS["inception768"].weights.path).items()}
    with torch.inference_mode():
        rows = {key: plain_768(weights, x).double().numpy() for key, x in zip("abc", (test, noisy, train), strict=True)}
    extractor = load_extractor("inception768")
    assert fid(extractor, test, train) == pytest.approx(plain_distance(rows["a"], rows["c"]), rel=1e-3)
    assert fid(extractor, noisy, train) == pytest.approx(plain_distance(rows["b"], rows["c"]), rel=1e-3)


class Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


@pytest.fixture(scope="module")
def full_weights(tmp_path_factory):
    """Random weights in torch-fidelity's file format, scaled so that signals neither vanish nor explode."""
    torch.manual_seed(0)
    module = pytest.MonkeyPatch()
    module.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    path = tmp_path_factory.mktemp("weights") / EXTRACTORS["inception"].weights.name
    torch.save({}, path)
    network = FeatureExtractorInceptionV3("random", ["2048"], str(path))
    module.undo()
    for name, tensor in network.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_var"):
            tensor.uniform_(0.7, 1.3)
    torch.save(network.state_dict(), path)
    return path


def test_fid_is_what_torch_fidelity_computes(full_weights, monkeypatch):
    entry = EXTRACTORS["inception"]
    monkeypatch.setenv("FEWSTEP_DATA", str(full_weights.parent))
    random_file = DataFile(full_weights.name, "random weights", sha256=file_hash(full_weights))
    monkeypatch.setitem(EXTRACTORS, "inception", type(entry)(entry.target, random_file, 5))
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8, generator=generator)
    b = torch.randint(64, 192, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    extractor = load_extractor("inception")
    features, logits = extractor.features(a[:2])
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(a), input2=Images(b), cuda=False, cache=False, verbose=False, save_cpu_ram=True, fid=True,
        feature_extractor_weights_path=str(full_weights),
    )  # fmt: skip
    assert fid(extractor, a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert extractor.hash == file_hash(full_weights) == extractor_identity("inception")["weights"]
    assert metric_columns("fd", "inception") == ("fid",)


def test_columns():
    assert FID.keys() <= EXTRACTORS.keys()
    assert [metric_columns(name, "inception768") for name in ("fd", "kid", "prc", "fd_pixel")] == [
        ("fid768",), ("kid768",), ("precision768", "recall768"), ("fd_pixel",),
    ]  # fmt: skip
    assert metric_columns("prc", "inception") == ("precision", "recall") and metric_columns("is", "inception") == (
        "is",
    )
    assert metric_columns("fd", "cifar_resnet56") == ("fd_cifar_resnet56",)
    assert metric_columns("swd", None) == ("swd",)


def random_trunk(path):
    torch.manual_seed(0)
    state = {key: tensor.half() for key, tensor in InceptionTrunk().state_dict().items()}
    save_file(state, path)
    return state


def test_weights_of_another_network(tmp_path):
    state = random_trunk(tmp_path / "trunk.safetensors")
    del state["Mixed_6c.branch7x7dbl_4.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match=r"they lack 'Mixed_6c.branch7x7dbl_4.bias'"):
        Inception768("cut", ["features"], tmp_path / "cut.safetensors")


def test_large_batches_are_split(tmp_path):
    random_trunk(tmp_path / "trunk.safetensors")
    module = Inception768("random", ["features"], tmp_path / "trunk.safetensors")
    sizes = []
    module.register_forward_hook(lambda _, inputs, output: sizes.append(len(inputs[0])))
    images = torch.randint(256, (5, 1, 28, 20), dtype=torch.uint8)
    features, logits = Extractor("random", module, "cpu", "", 2).features(images)
    assert sizes == [2, 2, 1] and features.shape == (5, 768) and logits is None
    torch.testing.assert_close(features[3:4], Extractor("random", module, "cpu", "", None).features(images[3:4])[0])


@pytest.mark.parametrize("name", ["inception", "inception768", "dinov2"])
def test_missing_and_altered_files(tmp_path, monkeypatch, name):
    weights = EXTRACTORS[name].weights
    for variable in ("FEWSTEP_DATA", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(DataFile, "_download", lambda self: None)
    for find in (load_extractor, extractor_identity):
        with pytest.raises(MissingFile, match=f"is missing: .* put it at {tmp_path}/{weights.name}"):
            find(name)
    assert "is missing" in extractor_problem(name) and "is missing" in EXTRACTORS[name].problem()
    weights.path.write_bytes(b"something else")
    kind, text = (MissingFile, "is not ") if weights.sha256 else (WeightsError, "is no state dict")
    with pytest.raises(kind, match=text):
        load_extractor(name)


def test_files_that_torch_hub_has_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    weights = EXTRACTORS["inception"].weights
    assert weights.path == tmp_path / "data" / weights.name
    cached = tmp_path / "torch" / "hub" / "checkpoints" / weights.name
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert weights.path == cached
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / weights.name).touch()
    assert weights.path == tmp_path / "data" / weights.name
    assert str(cached.parent) == torch.hub.get_dir() + "/checkpoints"
