import pytest
import torch
from torch.nn import functional as F

from bench.measure.cifar_resnet import CifarResNet, CifarResNetExtractor
from bench.measure.extractors import EXTRACTORS
from bench.measure.features import load_extractor
from students.data import load_data
from students.datafiles import MissingFile, data_root
from students.errors import WeightsError

DEPTHS = {"cifar_resnet20": 20, "cifar_resnet56": 56}


def plain_forward(state: dict, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network by functions of tensors, in float64: features and logits."""
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)
    x = (images.double() / 255).sub(mean.view(3, 1, 1)).div(deviation.view(3, 1, 1))

    def norm(name, h):
        weight, bias, mean, var = (
            state[f"{name}.{key}"].double() for key in ("weight", "bias", "running_mean", "running_var")
        )
        return F.batch_norm(h, mean, var, weight, bias)

    h = norm("bn1", F.conv2d(x, state["conv1.weight"].double(), padding=1)).relu()
    for block in [key.removesuffix(".conv1.weight") for key in state if key.startswith("layer") and "conv1" in key]:
        stride = 2 if block in ("layer2.0", "layer3.0") else 1
        z = F.conv2d(h, state[f"{block}.conv1.weight"].double(), stride=stride, padding=1)
        z = norm(
            f"{block}.bn2", F.conv2d(norm(f"{block}.bn1", z).relu(), state[f"{block}.conv2.weight"].double(), padding=1)
        )
        if stride == 2:
            zeros = torch.zeros(len(h), h.shape[1] // 2, *z.shape[2:], dtype=h.dtype)
            h = torch.cat([zeros, h[:, :, ::2, ::2], zeros], 1)
        h = (h + z).relu()
    features = h.flatten(2).mean(2)
    return features, features @ state["linear.weight"].double().T + state["linear.bias"].double()


def random_file(path, blocks: int):
    """A file as published: every name begins with "module.", and no counters of steps."""
    torch.manual_seed(blocks)
    network = CifarResNet(blocks)
    for name, tensor in network.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
    state = {f"module.{key}": value for key, value in network.state_dict().items() if "tracked" not in key}
    torch.save({"state_dict": state, "best_prec1": 10.0}, path)
    return path


@pytest.mark.parametrize("blocks, size", [(1, 32), (3, 32), (2, 20)])
def test_the_network_is_the_one_of_the_paper(tmp_path, blocks, size):
    path = random_file(tmp_path / "net.th", blocks)
    extractor = CifarResNetExtractor("net", ["logits", "features"], path)
    images = torch.randint(256, (4, 3, size, size), dtype=torch.uint8)
    state = {key.removeprefix("module."): t for key, t in torch.load(path, weights_only=True)["state_dict"].items()}
    features, logits = plain_forward(state, images)
    got_logits, got_features = extractor(images)
    torch.testing.assert_close(got_features.double(), features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_logits.double(), logits, rtol=1e-4, atol=1e-5)


def test_weights_of_something_else(tmp_path):
    torch.save({"conv1.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "bare.th")
    with pytest.raises(WeightsError, match="holds no 'state_dict'"):
        CifarResNetExtractor("net", ["features"], tmp_path / "bare.th")
    content = torch.load(random_file(tmp_path / "net.th", 2), weights_only=True)
    del content["state_dict"]["module.layer3.1.bn2.bias"]
    torch.save(content, tmp_path / "cut.th")
    with pytest.raises(WeightsError, match=r"do not fit CifarResNet: they lack 'layer3.1.bn2.bias'"):
        CifarResNetExtractor("net", ["features"], tmp_path / "cut.th")


@pytest.mark.parametrize("name", DEPTHS)
def test_files_that_are_missing_or_altered(tmp_path, monkeypatch, name):
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    monkeypatch.setattr("students.datafiles.DataFile._download", lambda self: None)
    with pytest.raises(MissingFile, match=rf"is missing: download https://\S+/{EXTRACTORS[name].weights.name}"):
        load_extractor(name)
    random_file(tmp_path / EXTRACTORS[name].weights.name, 1)
    with pytest.raises(MissingFile, match="is not akamaster's ResNet"):
        load_extractor(name)


@pytest.mark.parametrize("name, accuracy", [("cifar_resnet20", 0.9173), ("cifar_resnet56", 0.9339)])
def test_published_weights_know_the_classes(name, accuracy):
    for problem in (
        EXTRACTORS[name].problem(),
        "" if (data_root() / "cifar-10-batches-py").is_dir() else "no CIFAR-10",
    ):
        if problem:
            pytest.skip(problem)
    split = load_data("cifar10").heldout
    features, logits = load_extractor(name).features(split.samples[:600])
    assert features.shape == (600, 64) and logits.shape == (600, 10)
    found = (logits.argmax(1) == split.labels[:600]).double().mean().item()
    assert found == pytest.approx(accuracy, abs=0.04)  # four standard errors of 600 images
