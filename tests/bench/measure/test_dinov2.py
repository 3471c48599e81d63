import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from bench.measure import dinov2
from bench.measure.dinov2 import DinoV2, resized_positions
from students.errors import WeightsError

WIDTH, DEPTH, HEADS = 24, 2, 3


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A small network under the official file's names: positions of 37 x 37 patches, a mask token, layer scales."""
    monkeypatch.setattr(dinov2, "NETWORK", {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS})
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + 37**2, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 14, 14),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        block = {
            "norm1": (WIDTH,), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH),
            "norm2": (WIDTH,), "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH),
        }  # fmt: skip
        for name, shape in block.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.ls1.gamma": (WIDTH,), f"blocks.{i}.ls2.gamma": (WIDTH,)}
    state = {name: torch.randn(shape, generator=generator) / 3 for name, shape in shapes.items()}
    torch.save(state, tmp_path / "dinov2.pth")
    return tmp_path / "dinov2.pth"


def plain_forward(state: dict, images: torch.Tensor) -> torch.Tensor:
    """DINOv2 on images resized by Pillow, in float64."""
    w = {name: tensor.double() for name, tensor in state.items()}
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for image in images]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).double() / 255
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()[..., None, None]
    x = F.conv2d((x - mean) / deviation, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + resized_positions(w["pos_embed"], 16)

    def norm(name, h):
        return F.layer_norm(h, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(name, h):
        return h @ w[f"{name}.weight"].mT + w[f"{name}.bias"]

    for i in range(DEPTH):
        b = f"blocks.{i}"
        q, k, v = linear(f"{b}.attn.qkv", norm(f"{b}.norm1", x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = ((q @ k.mT / (WIDTH / HEADS) ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + w[f"{b}.ls1.gamma"] * linear(f"{b}.attn.proj", attended)
        x = x + w[f"{b}.ls2.gamma"] * linear(f"{b}.mlp.fc2", F.gelu(linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", x))))
    return norm("norm", x)[:, 0]


def test_the_features_are_the_class_token(weights):
    images = torch.randint(256, (3, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    (features,) = DinoV2("dinov2", ["features"], weights)(images)
    expected = plain_forward(torch.load(weights, weights_only=True), images)
    assert features.shape == (3, WIDTH)
    torch.testing.assert_close(features.double(), expected, rtol=1e-3, atol=1e-3)


def test_positions_are_resized_about_their_middle():
    """A linear ramp stays one: each new patch has the position of its place, which the offset of 0.1 scales."""
    ramp = torch.arange(37.0).repeat_interleave(37)[None, :, None]
    resized = resized_positions(torch.cat([torch.full((1, 1, 1), 7.0), ramp], 1), 16)
    assert resized.shape == (1, 257, 1) and resized[0, 0, 0] == 7
    places = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    # bicubic interpolation bends a ramp by up to 0.05; without the offset the last but one would be off by 0.2
    torch.testing.assert_close(resized[0, 1:, 0].view(16, 16)[1:-1, 5], places[1:-1], rtol=0, atol=0.06)


def test_weights_of_another_network(weights, monkeypatch):
    monkeypatch.setattr(dinov2, "NETWORK", {"embed_dim": WIDTH, "depth": 1, "num_heads": HEADS})
    with pytest.raises(WeightsError, match=r"do not fit VisionTransformer: they hold 'blocks\.1\."):
        DinoV2("dinov2", ["features"], weights)
    torch.save({"cls_token": torch.zeros(1, 1, WIDTH)}, weights)
    with pytest.raises(WeightsError, match="do not fit VisionTransformer: they lack 'pos_embed'"):
        DinoV2("dinov2", ["features"], weights)
