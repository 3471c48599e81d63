"""The contract of students/networks/network.py, for every network that keeps it, in tiny sizes."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pixel_shuffle

from students.errors import FewstepError
from students.models.teachers import weights_folder
from students.models.weights import load_weights
from students.networks import NETWORKS, build_network
from students.networks.genie_head import GenieHead
from students.networks.mlp import MLP
from students.networks.network import Network, as_network
from students.networks.temporal import TemporalConvolution
from students.networks.unet import UNet

EDM = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "num_blocks": 1, "attn_resolutions": [4]}
SONG = {"kind": "song_unet", "model_channels": 8, "channel_mult": [1, 2]} | EDM
CONFIGS = {
    "mlp": {"kind": "mlp", "shape": [2], "width": 16},
    "unet": {"kind": "unet", "shape": [1, 8, 8], "channels": [8, 16], "patch": 2, "attention": True, "dropout": 0.1},
    "unet2d": {
        "kind": "unet2d",
        "sample_size": 8,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "scale": 1000.0,
        "shift": 0.0,
    },
    "ddpmpp": SONG,
    "ncsnpp": SONG
    | {
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "skips": SONG | {"encoder_type": "skip", "decoder_type": "skip"},
    "adm": {"kind": "dhariwal_unet", "model_channels": 64, "channel_mult": [1, 1]} | EDM,
}
CASES = [(name, classes) for name in CONFIGS for classes in (None, 3)]
CLASSES = {"mlp": "classes", "unet": "classes", "unet2d": "classes"}  # how the argument is called
every_network = pytest.mark.parametrize("name, classes", CASES)


def make(name: str, classes: int | None = None, **changes) -> Network:
    config = CONFIGS[name] | changes
    config[CLASSES.get(name, "label_dim")] = classes if name in CLASSES else classes or 0
    if name == "unet2d":
        config["num_class_embeds"] = classes and classes + 1
    torch.manual_seed(0)
    return build_network(config).eval()


def inputs(network: Network, name: str, n: int = 4, dtype=torch.float32):
    """x, t, condition."""
    shape = {"mlp": (2,), "unet": (1, 8, 8)}.get(name, (3, 8, 8))
    x = torch.randn(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    condition = None if network.classes is None else torch.arange(n) % (network.classes + 1)
    return x, torch.linspace(-1, 1, n, dtype=dtype), condition


def shake(network: nn.Module) -> None:
    """Parameters that start at zero, as if they had been trained."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)


# Config


@every_network
def test_the_config_builds_the_network_again(name, classes):
    network = make(name, classes)
    network.add_extra(2)
    network.add_states(4)
    network.set_dropout(0.25)
    config = json.loads(json.dumps(network.config))
    assert config == network.config and config["kind"] in NETWORKS
    again = build_network(config).eval()
    assert again.config == config and (again.extra, again.states, again.classes) == (2, (4, 2), classes)
    state, other = network.state_dict(), again.state_dict()
    assert [(key, value.shape) for key, value in state.items()] == [(key, value.shape) for key, value in other.items()]
    shake(network)
    again.load_state_dict(network.state_dict())
    x, t, condition = inputs(network, name)
    extra = torch.rand(4, 2)
    assert torch.equal(again(x, t, condition, extra), network(x, t, condition, extra))
    assert copy.deepcopy(network).config == config


def test_fresh_parameters_come_from_the_global_generator():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_network(CONFIGS["unet"]).state_dict())
    same, other = ([torch.equal(states[0][key], state[key]) for key in states[0]] for state in states[1:])
    assert all(same) and not all(other)


def test_kinds_that_are_unknown_and_arguments_that_do_not_fit():
    with pytest.raises(FewstepError, match="unknown network 'unett': did you mean 'unet'"):
        build_network({"kind": "unett"})
    with pytest.raises(FewstepError, match="unknown network"):
        build_network({"shape": [2]})
    with pytest.raises(FewstepError, match=r"cannot build a network 'mlp'.*unexpected keyword argument 'depth'"):
        build_network({"kind": "mlp", "shape": [2], "depth": 3})


def test_the_table_costs_no_torch():
    code = "import students.networks, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Extra inputs


@every_network
def test_extra_inputs_change_nothing_before_training_and_matter_after(name, classes):
    network = make(name, classes)
    x, t, condition = inputs(network, name)
    before = network(x, t, condition)
    network.add_extra(2)
    network.add_extra(2)
    extra = torch.rand(4, 2)
    assert network.extra == 2 and torch.equal(network(x, t, condition, extra), before)

    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    network(x, t, condition, extra).sub(extra[:, 0].reshape(-1, *[1] * (x.ndim - 1))).square().mean().backward()
    optimiser.step()
    assert not torch.allclose(network(x, t, condition, extra), network(x, t, condition, 1 - extra), atol=1e-6)

    with pytest.raises(FewstepError, match="takes 2 extra inputs already, not 1"):
        network.add_extra(1)
    for wrong in (None, torch.rand(4, 1)):
        with pytest.raises(FewstepError, match="takes 2 extra inputs, not"):
            network(x, t, condition, wrong)


@every_network
def test_no_condition_is_no_class(name, classes):
    network = make(name, classes)
    x, t, _ = inputs(network, name)
    if classes is not None:
        nobody = torch.full((4,), classes)
        assert torch.equal(network(x, t), network(x, t, nobody))
        assert not torch.allclose(network(x, t), network(x, t, nobody - 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_new_parts_are_where_and_what_the_network_is(name):
    network = make(name).to(torch.bfloat16)
    network.add_extra(1)
    network.add_states(2)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    shake(network)
    x, t, condition = inputs(network, name)
    extra = torch.tensor([[0.5], [0.5], [0.5005], [0.5005]])  # one number in bfloat16
    out = network(x.bfloat16(), t, condition, extra)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    embedded = network.numbers(extra)
    assert embedded.dtype == torch.bfloat16 and not torch.equal(embedded[0], embedded[2])
    with torch.device("meta"):
        network = build_network(CONFIGS["mlp"])
    network.add_extra(1)
    network.add_states(2)
    assert all(parameter.is_meta for parameter in network.parameters())


# Features


@every_network
def test_the_last_features_are_what_the_last_layer_takes(name, classes):
    network = make(name, classes)
    calls, seen = [], []
    network.register_forward_hook(lambda *_: calls.append(1))
    network.last_layer.register_forward_pre_hook(lambda module, taken: seen.append(taken[0]))
    x, t, condition = inputs(network, name)
    features = network.features(x, t, condition)
    assert len(calls) == 1 and torch.equal(features[-1], seen[0])
    assert features[-1].shape[:2] == (4, network.feature_channels)
    assert all(side * network.patch == whole for side, whole in zip(features[-1].shape[2:], x.shape[2:], strict=True))
    sizes = [feature[0, 0].numel() for feature in features]
    assert len(features) > 1 and sizes == sorted(sizes)

    out, again = network(x, t, condition, return_features=True)
    assert torch.equal(out, network(x, t, condition))
    assert all(torch.equal(a, b) for a, b in zip(again, features, strict=True))
    rest = network.last_layer(features[-1])
    if name != "skips":  # there the images of lower resolutions are added
        assert torch.equal(out, pixel_shuffle(rest, network.patch) if x.ndim == 4 else rest)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_go_from_every_feature_to_the_image(name):
    network = make(name)
    x, t, condition = inputs(network, name)
    x.requires_grad_()
    for feature in network.features(x, t, condition):
        (gradient,) = torch.autograd.grad(feature.square().sum(), x, retain_graph=True)
        assert gradient.flatten(1).abs().amax(1).min() > 0


# States, dropout, derivatives


@every_network
def test_states_meet_after_training_and_only_those_of_one_trajectory(name, classes):
    network = make(name, classes)
    x, t, condition = inputs(network, name, n=6)
    before, blocks = network(x, t, condition), list(network.residual_blocks())
    network.add_states(3)
    network.add_states(3, modes=2)
    assert torch.equal(network(x, t, condition), before)
    added = [module for module in network.modules() if isinstance(module, TemporalConvolution)]
    assert len(added) == len(blocks) > 1
    shake(network)
    after = network(x, t, condition)
    x[0] += 1
    changed = (network(x, t, condition) - after).abs().flatten(1).amax(1) > 1e-5
    assert changed.tolist() == [True] * 3 + [False] * 3
    last = network.to(memory_format=torch.channels_last)(x, t, condition)
    torch.testing.assert_close(last, network.to(memory_format=torch.contiguous_format)(x, t, condition))
    with pytest.raises(FewstepError, match="has 3 states and 2 modes already, not 4 and 2"):
        network.add_states(4)


@pytest.mark.parametrize("name", CONFIGS)
def test_dropout_can_be_set(name):
    network = make(name).train()
    x, t, condition = inputs(network, name)
    has = name in ("unet", "unet2d")
    network.set_dropout(0.5)
    network.add_states(2)
    assert torch.equal(network(x, t, condition), network(x, t, condition)) != has
    assert not has or network.config["dropout"] == 0.5
    network.set_dropout(0.0)
    assert torch.equal(network(x, t, condition), network(x, t, condition))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_embedding_of_time_can_be_slowed(name):
    network = make(name)
    x, t, condition = inputs(network, name)
    before, fast = network(x, t, condition), network.scale
    network.slow_time(2 * fast)
    assert torch.equal(network(x, t, condition), before) and network.scale == fast
    network.slow_time(0.5)
    has = name in ("unet", "unet2d")
    assert torch.equal(network(x, t, condition), before) != has
    again = build_network(json.loads(json.dumps(network.config))).eval()
    again.load_state_dict(network.state_dict())
    assert again.scale == (0.5 if has else fast)
    assert torch.equal(again(x, t, condition), network(x, t, condition))


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_derivatives(name):
    network = make(name, 3).double()
    network.add_extra(1)
    shake(network)
    x, t, condition = inputs(network, name, dtype=torch.float64)
    if name in ("unet", "unet2d"):  # diffusers embeds the timestep in float32, which the quotient would see
        t, along_t = t.float().double(), torch.zeros_like(t)
    else:
        along_t = torch.rand_like(t)
    at = x, t, torch.rand(4, 1, dtype=torch.float64)
    along = torch.randn_like(x), along_t, torch.rand(4, 1, dtype=torch.float64)

    def f(x, t, extra):
        return network(x, t, condition, extra)

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        out, slope = torch.func.jvp(f, at, along)
        h = 1e-6
        ahead, behind = (f(*(a + sign * h * b for a, b in zip(at, along, strict=True))) for sign in (1, -1))
    assert slope.abs().max() > 1e-3
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out, f(*at))


# Networks that keep less of the contract, or none


def test_networks_of_others_are_refused_by_name():
    network = MLP((2,))
    assert as_network(network) is network
    with pytest.raises(FewstepError, match=r"Linear is no Network, .*derive it from") as error:
        as_network(nn.Linear(2, 2))
    assert "\n" not in str(error.value)

    class Plain(Network):
        def __init__(self):
            super().__init__({})
            self.layer = nn.Linear(2, 2)

        def forward(self, x, t, condition=None, extra=None, return_features=False):
            return self.layer(x)

    plain = Plain()
    for ask, what in [
        (lambda: plain.add_extra(1), "takes no extra inputs"),
        (lambda: plain.add_states(4), "has no place for temporal layers"),
        (lambda: plain.last_layer, "shows no last layer"),
        (lambda: plain.feature_channels, "shows no last layer"),
        (lambda: plain.config, "cannot be built from a config"),
        (lambda: plain.embed_time(torch.zeros(1)), "embeds no time by itself"),
    ]:
        with pytest.raises(FewstepError, match=f"^Plain {what}: start from"):
            ask()
    plain.set_dropout(0.0)
    plain.slow_time(0.0)


# The weights that ship


@pytest.mark.parametrize("name, extra, states", [("teacher", 0, 0), ("ctm", 1, 0), ("dsno", 0, 4)])
@pytest.mark.parametrize("task", ["digits", "gaussians"])
def test_the_weights_that_ship_have_the_names_of_the_parameters(task, name, extra, states):
    folder = "gaussians-mlp" if (task, name) == ("gaussians", "teacher") else task
    state, _ = load_weights(weights_folder(folder) / f"{name}.safetensors")
    if name != "teacher":  # that of a student holds a denoiser
        state = {key.removeprefix("network."): value for key, value in state.items()}
    network = MLP((2,)) if task == "gaussians" else UNet((1, 8, 8), (24, 32), patch=2, classes=10, attention=True)
    if extra:
        network.add_extra(extra)
    if states:
        network.add_states(states)
    network.load_state_dict(state)


def test_the_head_of_genie():
    head = build_network({"kind": "genie_head", "shape": [1, 8, 8], "features": 24, "patch": 2})
    again = build_network(json.loads(json.dumps(head.config)))
    assert isinstance(again, GenieHead) and again.config == head.config
    again.load_state_dict(head.state_dict())
    state, _ = load_weights(weights_folder("digits") / "genie.safetensors")
    head.load_state_dict(state)
    network = UNet((1, 8, 8), (24, 32), patch=2)
    assert (network.feature_channels, network.patch) == (24, 2)
