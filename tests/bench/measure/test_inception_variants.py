"""clean-fid's resize, sFID's features and the inception score of guided-diffusion, from their definitions."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bench.measure import metric_columns
from bench.measure.fidelity import inception_score
from bench.measure.inception import Inception768, InceptionTrunk
from bench.measure.inception_variants import CleanInception, CleanInception768, SpatialInception, clean_resize
from bench.measure.statistics import FeatureStats, Reference
from tests.bench.measure.test_inception import full_weights, random_trunk  # noqa: F401  # a fixture


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    path = tmp_path_factory.mktemp("trunk") / "trunk.safetensors"
    random_trunk(path)
    return path


def images(side, n=2, seed=0):
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def bicubic_matrix(size: int, side: int) -> np.ndarray:
    """(size, side) of Keys' kernel with a = -1/2, centred on half pixels, weights normalised at the edges."""
    centres = (np.arange(size) + 0.5) * side / size - 0.5
    x = abs(centres[:, None] - np.arange(side))
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    return weights / weights.sum(1, keepdims=True)


def test_clean_resize_is_bicubic_and_not_rounded():
    given = images(32)
    found = clean_resize(given).numpy()
    matrix = bicubic_matrix(299, 32)
    expected = np.einsum("ih,nchw,jw->ncij", matrix, given.numpy().astype(float), matrix)
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-2
    assert found.min() < 0 and found.max() > 255, "nothing is clipped"
    assert not np.array_equal(found, found.round())


@pytest.mark.slow
def test_the_clean_network_is_torch_fidelitys_where_nothing_is_resized(full_weights):  # noqa: F811
    layers = ["2048", "logits_unbiased"]
    plain = FeatureExtractorInceptionV3("plain", layers, str(full_weights))
    clean = CleanInception("clean", layers, str(full_weights))
    for ours, theirs in zip(clean(images(299)), plain(images(299)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    small = images(32)
    resized = clean_resize(small).round().clamp(0, 255).to(torch.uint8)  # what rounding to 8 bits would change is small
    ours, rounded, legacy = clean(small)[0], plain(resized)[0], plain(small)[0]
    assert (ours - rounded).norm() < 0.2 * (ours - legacy).norm(), "the clean resize, not the network's own"


@pytest.mark.slow
def test_the_clean_trunk_is_the_trunk_where_nothing_is_resized(trunk):
    plain, clean = (cls("x", ["features"], trunk) for cls in (Inception768, CleanInception768))
    torch.testing.assert_close(clean(images(299))[0], plain(images(299))[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(clean(images(32))[0], plain(images(32))[0], rtol=1e-3)


def test_sfid_takes_seven_channels_of_mixed_6_in_the_order_of_tensorflow(trunk):
    found = SpatialInception("x", ["features"], trunk)(images(32))[0]
    network = Inception768("x", ["features"], trunk).network
    blocks = [name for name, _ in network.named_children() if name.startswith("Mixed")]  # mixed, mixed_1, mixed_2 ...
    first = [name for name, _ in network.named_children()].index(blocks[6])
    before, block = nn.Sequential(*list(network.children())[:first]), network.get_submodule(blocks[6])
    x = 2 * F.interpolate(images(32).float() / 255, (299, 299), mode="bilinear", align_corners=False) - 1
    state = block.state_dict()
    with torch.no_grad():
        channels = F.conv2d(before(x), state["branch1x1.weight"], state["branch1x1.bias"]).relu()
    assert channels.shape[2:] == (17, 17) and found.shape == (2, 17 * 17 * 7)
    for n, h, w, c in ((0, 0, 0, 0), (1, 3, 5, 6), (0, 16, 2, 1)):
        assert found[n, (h * 17 + w) * 7 + c] == pytest.approx(channels[n, c, h, w].item(), rel=1e-4, abs=1e-6)
    assert metric_columns("fd", "inception_spatial") == ("sfid",)
    assert metric_columns("fd", "inception_clean") == ("fid_clean",)
    assert metric_columns("kid", "inception768_clean") == ("kid768_clean",)
    assert InceptionTrunk().state_dict().keys() == network.state_dict().keys()


def test_the_inception_score_is_that_of_guided_diffusion():
    """Parts of 5,000 in the order of the samples there, ten parts in a random order here: so much is the same."""
    logits = 3 * torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    stats = FeatureStats(keep_rows=True)
    stats.update(logits)
    order = np.random.RandomState(2020).permutation(len(logits))
    scores = []
    for part in torch.softmax(logits.double(), 1).numpy()[order].reshape(10, 50, 12):
        kl = part * (np.log(part) - np.log(part.mean(0)))
        scores.append(np.exp(kl.sum(1).mean()))
    assert inception_score({"logits": stats}, Reference())[0] == pytest.approx(np.mean(scores), rel=1e-5)
