"""State dicts under OpenAI's names against plain formulas of guided-diffusion's U-Net."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from students.diffusion.denoiser import Denoiser
from students.errors import FewstepError, WeightsError
from students.models.checkpoints import openai
from students.models.checkpoints.convert import convert, load_converted
from students.models.checkpoints.diffusers_folder import ConsistencyFunction, UNetDenoiser
from students.models.checkpoints.openai import load_openai
from tests.students.models.checkpoints.edm_pickles import Weights, conv, linear

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TINY = {"num_channels": 32, "num_head_channels": 16, "num_res_blocks": 1, "image_size": 64}
NETWORKS = {
    "imagenet64": openai.NETWORKS["imagenet64"] | TINY,
    "lsun256": openai.NETWORKS["lsun256"] | TINY | {"num_res_blocks": 2, "attention_resolutions": "16,8"},
    "plain": openai.NETWORKS["imagenet64"] | TINY | {"resblock_updown": False, "attention_resolutions": "32,8"},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of a few channels, and three classes."""
    monkeypatch.setattr(openai, "NETWORKS", NETWORKS)
    monkeypatch.setattr(openai, "CLASSES", 3)


# The network by its definition


def resblock(w, name, x, emb, out, network, resample=None):
    change = {"up": lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3), "down": lambda x: F.avg_pool2d(x, 2)}
    change = change.get(resample, lambda x: x)
    h = conv(w, f"{name}.in_layers.2", change(F.silu(norm32(w, f"{name}.in_layers.0", x))), out, 3)
    scale_shift = network["use_scale_shift_norm"]
    added = linear(w, f"{name}.emb_layers.1", F.silu(emb), out * (1 + scale_shift))[:, :, None, None]
    if scale_shift:
        h = norm32(w, f"{name}.out_layers.0", h) * (1 + added[:, :out]) + added[:, out:]
    else:
        h = norm32(w, f"{name}.out_layers.0", h + added)
    h = conv(w, f"{name}.out_layers.3", F.silu(h), out, 3)
    x = change(x)
    return h + (x if x.shape[1] == out else conv(w, f"{name}.skip_connection", x, out, 1))


def resample(w, name, x, emb, network, direction):
    c = x.shape[1]
    if network["resblock_updown"]:
        return resblock(w, name, x, emb, c, network, direction)
    if direction == "up":
        return conv(w, f"{name}.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), c, 3)
    return F.conv2d(x, w(f"{name}.op.weight", c, c, 3, 3), w(f"{name}.op.bias", c), stride=2, padding=1)


def norm32(w, name, x):
    n, c = x.shape[:2]
    groups = x.reshape(n, 32, -1)
    variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
    x = ((groups - mean) / torch.sqrt(variance + 1e-5)).reshape(x.shape)
    return x * w(f"{name}.weight", c)[:, None, None] + w(f"{name}.bias", c)[:, None, None]


def attend(w, name, x, network):
    """The channels of qkv are counted as (one of q, k, v; head; channel of the head)."""
    n, c = x.shape[:2]
    size = network["num_head_channels"]
    flat = norm32(w, f"{name}.norm", x).flatten(2)
    qkv = w(f"{name}.qkv.weight", 3 * c, c, 1)[:, :, 0] @ flat + w(f"{name}.qkv.bias", 3 * c)[:, None]
    q, k, v = qkv.reshape(n, 3, c // size, size, -1).unbind(1)
    out = torch.einsum("nhqk,nhdk->nhdq", torch.softmax(torch.einsum("nhdq,nhdk->nhqk", q, k) / size**0.5, -1), v)
    out = (
        w(f"{name}.proj_out.weight", c, c, 1)[:, :, 0] @ out.reshape(n, c, -1) + w(f"{name}.proj_out.bias", c)[:, None]
    )
    return x + out.reshape(x.shape)


def unet(w, x, timestep, condition, network):
    c, depth = network["num_channels"], network["num_res_blocks"]
    mults = {64: (1, 2, 3, 4)}[network["image_size"]]
    attends = [
        network["image_size"] >> level in map(int, network["attention_resolutions"].split(",")) for level in range(4)
    ]
    angles = timestep[:, None] * torch.exp(-math.log(10000) * torch.arange(c // 2) / (c // 2))
    emb = linear(w, "time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1), 4 * c)
    emb = linear(w, "time_embed.2", F.silu(emb), 4 * c)
    if network["class_cond"]:
        emb = emb + w("label_emb.weight", 3, 4 * c)[condition]
    x = conv(w, "input_blocks.0.0", x, c, 3)
    skips, i = [x], 1
    for level, mult in enumerate(mults):
        for _ in range(depth):
            x = resblock(w, f"input_blocks.{i}.0", x, emb, c * mult, network)
            x = attend(w, f"input_blocks.{i}.1", x, network) if attends[level] else x
            skips.append(x)
            i += 1
        if level < 3:
            x = resample(w, f"input_blocks.{i}.0", x, emb, network, "down")
            skips.append(x)
            i += 1
    x = resblock(w, "middle_block.0", x, emb, x.shape[1], network)
    x = resblock(w, "middle_block.2", attend(w, "middle_block.1", x, network), emb, x.shape[1], network)
    i = 0
    for level in (3, 2, 1, 0):
        for j in range(depth + 1):
            x = resblock(w, f"output_blocks.{i}.0", torch.cat([x, skips.pop()], 1), emb, c * mults[level], network)
            x = attend(w, f"output_blocks.{i}.1", x, network) if attends[level] else x
            if level and j == depth:
                x = resample(w, f"output_blocks.{i}.{1 + attends[level]}", x, emb, network, "up")
            i += 1
    return conv(w, "out.2", F.silu(norm32(w, "out.0", x)), 3, 3)


def inputs(network):
    generator = torch.Generator().manual_seed(2)
    sigma = torch.tensor([0.1, 50.0])
    x = torch.randn(2, 3, 64, 64, generator=generator) * (0.25 + sigma**2).sqrt()[:, None, None, None]
    return x, sigma, torch.tensor([2, 0]) if network["class_cond"] else None


def expected_output(w, x, sigma, condition, network, sigma_min):
    """c_skip, c_out as in Consistency Models [2303.01469], App. C; EDM's are those with sigma_min = 0."""
    s = sigma[:, None, None, None]
    f = unet(w, x / (s**2 + 0.25).sqrt(), 250 * sigma.log(), condition, network)
    return 0.25 / ((s - sigma_min) ** 2 + 0.25) * x + (s - sigma_min) * 0.5 / (s**2 + 0.25).sqrt() * f


@pytest.fixture(scope="module")
def weights():
    made = {}
    for name, network in NETWORKS.items():
        made[name] = Weights(1)
        expected_output(made[name], *inputs(network), network, 0.0)
    return made


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_teachers_and_consistency_models_compute_the_formulas(tmp_path, weights, name):
    network = NETWORKS[name]
    x, sigma, condition = inputs(network)
    path = tmp_path / "edm_ema.pt"
    torch.save(dict(weights[name]), path)
    teacher = load_openai(path, network, consistency=False)
    assert type(teacher) is UNetDenoiser and teacher.shape == (3, 64, 64)
    assert teacher.classes == (3 if network["class_cond"] else None)
    expected = expected_output(weights[name], x, sigma, condition, network, 0.0)
    torch.testing.assert_close(teacher(x, sigma, condition), expected, rtol=1e-5, atol=2e-5)
    student = load_openai(path, network, consistency=True)
    assert type(student) is ConsistencyFunction
    expected = expected_output(weights[name], x, sigma, condition, network, 0.002).clamp(-1, 1)
    torch.testing.assert_close(student(x, sigma, condition), expected, rtol=1e-5, atol=2e-5)
    x = x.clamp(-1, 1)
    torch.testing.assert_close(student(x, 0.002, condition), x)


@pytest.mark.parametrize(
    "file, name, kind",
    [
        ("edm_imagenet64_ema.pt", "imagenet64", UNetDenoiser),
        ("cd_cat256_l2.pt", "lsun256", ConsistencyFunction),
        ("edm_mine64.pt", "plain", UNetDenoiser),
    ],
)
@torch.inference_mode()
def test_conversion_keeps_the_output(tmp_path, weights, file, name, kind):
    path = tmp_path / file
    torch.save(dict(weights[name]), path)
    x, sigma, condition = inputs(NETWORKS[name])
    denoiser = load_converted(convert(path, tmp_path / "net.safetensors"))
    assert type(denoiser) is kind
    expected = load_openai(path, NETWORKS[name], kind is ConsistencyFunction)(x, sigma, condition)
    assert torch.equal(denoiser(x, sigma, condition), expected)


@torch.inference_mode()
def test_a_teacher_keeps_the_contract_and_its_record_builds_it_again(tmp_path, weights):
    path = tmp_path / "edm_imagenet64_ema.pt"
    torch.save(dict(weights["imagenet64"]), path)
    x, sigma, condition = inputs(NETWORKS["imagenet64"])
    teacher = load_openai(path, NETWORKS["imagenet64"], consistency=False)
    expected = teacher(x, sigma, condition)
    again = Denoiser.from_record(json.loads(json.dumps(teacher.record()))).eval()
    again.network.load_state_dict(teacher.network.state_dict())
    assert torch.equal(again(x, sigma, condition), expected)
    again.network.add_extra(1)
    assert torch.equal(again(x, sigma, condition, torch.rand(2, 1)), expected)
    x0, features = teacher.with_features(x, sigma, condition)
    assert torch.equal(x0, expected) and features[-1].shape == (2, teacher.network.feature_channels, 64, 64)


def test_what_cannot_be_told_is_refused(tmp_path, weights):
    state = dict(weights["imagenet64"])
    torch.save(state, tmp_path / "mine.pt")
    with pytest.raises(FewstepError, match=r"does not say what it is.*edm_\.\.\. \(a teacher\)"):
        convert(tmp_path / "mine.pt", tmp_path / "net.safetensors")
    with pytest.raises(FewstepError, match="at 64 and 256 pixels"):
        load_openai(tmp_path / "mine.pt", NETWORKS["imagenet64"] | {"image_size": 100}, True)
    lacking = {name: tensor for name, tensor in state.items() if name != "middle_block.1.qkv.bias"}
    torch.save(lacking, tmp_path / "mine.pt")
    with pytest.raises(WeightsError, match=r"lack 'mid_block\.attentions\.0\.to_q\.bias'"):
        load_openai(tmp_path / "mine.pt", NETWORKS["imagenet64"], True)
    torch.save(state | {"vae.bias": torch.zeros(1)}, tmp_path / "mine.pt")
    with pytest.raises(WeightsError, match=r"hold 'vae\.bias'"):
        load_openai(tmp_path / "mine.pt", NETWORKS["imagenet64"], True)
    with pytest.raises(WeightsError, match=r"have 'conv_in\.weight'"):
        load_openai(tmp_path / "mine.pt", NETWORKS["imagenet64"] | {"num_channels": 64}, True)


def test_truncated_files(tmp_path, weights):
    path = tmp_path / "cd_imagenet64_lpips.pt"
    torch.save(dict(weights["imagenet64"]), path)
    content = path.read_bytes()
    for length in (0, 3, 1000, len(content) - 100):
        path.write_bytes(content[:length])
        for read in (
            lambda: load_openai(path, NETWORKS["imagenet64"], True),
            lambda: convert(path, tmp_path / "net.safetensors"),
        ):
            with pytest.raises(WeightsError) as error:
                read()
            assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(WeightsError, match="cannot read"):
        load_openai(tmp_path / "nowhere.pt", NETWORKS["imagenet64"], True)


@pytest.mark.parametrize("name", ["imagenet64", "lsun256"])
def test_every_block_of_the_public_networks_has_a_name(monkeypatch, name):
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    monkeypatch.undo()
    network = openai.NETWORKS[name]
    with torch.device("meta"):
        unet = UNet2DModel(**openai._config(network))
    for kind, names in zip((ResnetBlock2D, Attention), openai._blocks(network), strict=True):
        there = {name for name, module in unet.named_modules() if isinstance(module, kind)}
        assert set(names.values()) == there and len(names) == len(there)
    if name == "imagenet64":  # EDM's ADM, whose size is published
        assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(295.9, abs=0.05)


@pytest.mark.parametrize(
    "file, size, changes",
    [
        ("edm_cat128.pt", 128, {"channel_mult": [1, 2, 1], "attention_resolutions": "64"}),
        ("edm_mine.pt", 16, {"channel_mult": [1, 3], "attention_resolutions": "", "num_res_blocks": 2}),
        ("edm_mine.pt", 32, {"channel_mult": [1, 1, 2], "attention_resolutions": "32,8", "class_cond": False}),
    ],
)
def test_another_size_is_read_from_the_shapes(tmp_path, capsys, file, size, changes):
    network = NETWORKS["imagenet64"] | {"image_size": size, "classes": 5, "channels": 2} | changes
    unet = openai.UNet2DModel(**openai._config(network))
    names = {new: old for old, new in openai.ENDS.items()}
    resnets, attentions = openai._blocks(network)
    names |= {f"{new}.{b}": f"{old}.{a}" for old, new in resnets.items() for a, b in openai.RESNET.items()}
    names |= {f"{new}.{b}": f"{old}.{a}" for old, new in attentions.items() for a, b in openai.ATTENTION.items()}
    state = {}
    for name, tensor in unet.state_dict().items():
        part, _, kind = name.rpartition(".")
        if part.endswith(("to_q", "to_k", "to_v")):
            block = next(old for old, new in attentions.items() if part.startswith(f"{new}."))
            state[f"{block}.qkv.{kind}"] = torch.cat([state.get(f"{block}.qkv.{kind}", tensor[:0]), tensor])
        else:
            state[f"{names[part]}.{kind}"] = tensor
    torch.save(state, tmp_path / file)
    denoiser = load_converted(convert(tmp_path / file, tmp_path / "net.safetensors"))
    assert denoiser.shape == (2, size, size)
    assert denoiser.classes == (5 if network["class_cond"] else None)
    assert f"for {size} pixels with heads of" in capsys.readouterr().err
    loaded = denoiser.network.network.state_dict()
    assert loaded.keys() == unet.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in unet.state_dict().items())
