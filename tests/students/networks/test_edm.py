"""The networks of the EDM family against plain formulas (checkpoints/edm_pickles.py) and published sizes."""

import pytest
import torch

from students.networks.edm import NETWORKS, DhariwalUNet, SongUNet
from tests.students.models.checkpoints.edm_pickles import ADM, DDPMPP, FAMILIES, NCSNPP, SKIPS, make_weights

CASES = [
    ("SongUNet", DDPMPP, 0),
    ("SongUNet", DDPMPP | {"augment_dim": 9}, 3),
    ("SongUNet", NCSNPP, 3),
    ("SongUNet", NCSNPP | {"channel_mult": [2, 2, 1], "attn_resolutions": [16, 4]}, 0),
    ("SongUNet", SKIPS | {"channel_mult": [1, 1, 2]}, 0),
    ("DhariwalUNet", ADM, 3),
    ("DhariwalUNet", ADM | {"channel_mult": [2, 1], "attn_resolutions": [16], "augment_dim": 9}, 0),
]


def make(architecture, arguments, classes):
    weights = make_weights(architecture, arguments, classes)
    network = NETWORKS[architecture](in_channels=3, out_channels=3, label_dim=classes, **arguments).eval()
    network.load_state_dict(weights)
    return network, weights


@pytest.mark.parametrize("architecture, arguments, classes", CASES)
@torch.inference_mode()
def test_networks_compute_their_formulas(architecture, arguments, classes):
    network, weights = make(architecture, arguments, classes)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([-1.55, 0.0, 1.0955])
    condition = torch.tensor([0, classes, 1]) if classes else None
    onehot = torch.eye(classes + 1)[condition][:, :classes] if classes else None
    expected = FAMILIES[architecture](weights, x, t, onehot, arguments)
    assert 0.1 < expected.std() < 10
    torch.testing.assert_close(network(x, t, condition), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture, arguments", [("SongUNet", DDPMPP), ("DhariwalUNet", ADM)])
@torch.inference_mode()
def test_no_condition_is_no_class(architecture, arguments):
    network, _ = make(architecture, arguments, 3)
    x, t = torch.randn(2, 3, 16, 16), torch.zeros(2)
    none = network(x, t, torch.tensor([3, 3]))
    assert torch.equal(network(x, t), none)
    assert not torch.allclose(network(x, t, torch.tensor([3, 0]))[1], none[1])


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float64, 1e-4)])
@torch.inference_mode()
def test_other_precisions(dtype, tolerance):
    for architecture, arguments in (("SongUNet", NCSNPP), ("DhariwalUNet", ADM)):
        network, _ = make(architecture, arguments, 3)
        x, t, condition = torch.randn(2, 3, 16, 16), torch.tensor([1.0955, -1.5537]), torch.tensor([0, 3])
        expected = network(x, t, condition)
        got = network.to(dtype)(x.to(dtype), t, condition)
        assert got.dtype == dtype
        assert (got - expected).abs().mean() < tolerance * expected.std()


def test_fourier_features_keep_their_precision():
    network, weights = make("SongUNet", NCSNPP, 0)
    t = torch.tensor([1.0955, -1.5537])
    expected = network.map_noise(t)
    network.to(torch.bfloat16)
    assert network.map_layer0.weight.dtype == torch.bfloat16
    assert torch.equal(network.map_noise.freqs, weights["map_noise.freqs"])
    for got, feature in zip(network.map_noise(t), expected, strict=True):
        assert torch.equal(got, feature)


NCSNPP_CIFAR = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}


@pytest.mark.parametrize(
    "build, millions",
    [
        (lambda: SongUNet(32, 3, 3, augment_dim=9, channel_mult=[2, 2, 2]), 55.7),
        (lambda: SongUNet(32, 3, 3, augment_dim=9, channel_mult=[2, 2, 2], **NCSNPP_CIFAR), 56.4),
        (lambda: SongUNet(64, 3, 3, augment_dim=9), 61.8),
        (lambda: DhariwalUNet(64, 3, 3, label_dim=1000), 295.9),
    ],
    ids=["DDPM++ CIFAR-10", "NCSN++ CIFAR-10", "DDPM++ FFHQ", "ADM ImageNet"],
)
def test_sizes_of_the_public_networks(build, millions):
    with torch.device("meta"):
        network = build()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
