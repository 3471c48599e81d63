"""Checkpoints in the format of EDM's pickles, and what their networks compute, written from the formats' definitions.

Nothing here uses the project's own networks or readers. `Weights` gives a parameter when it is first asked for, so that
`song` and `adm`, which define the networks by plain formulas, also define what a checkpoint of them holds.
"""

import io
import math
import pickle
import sys
import types
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

DDPMPP = {"img_resolution": 16, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
NCSNPP = DDPMPP | {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
SKIPS = NCSNPP | {"encoder_type": "skip", "decoder_type": "skip", "embedding_type": "positional"}
ADM = DDPMPP | {"model_channels": 64, "num_blocks": 2}


class Weights(dict):
    """Parameters and buffers by name, drawn when a network first asks for them."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, name, *shape):
        if name not in self:
            fan_in = math.prod(shape[1:]) or 1
            values = torch.randn(shape, generator=self.generator)
            self[name] = values / math.sqrt(fan_in) if len(shape) > 1 else 0.3 * values + name.endswith("weight")
        assert self[name].shape == shape, name
        return self[name]


# Parts


def norm(w, name, x, eps):
    n, c = x.shape[:2]
    groups = x.reshape(n, min(32, c // 4), -1)
    variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
    x = ((groups - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    return x * w(f"{name}.weight", c)[:, None, None] + w(f"{name}.bias", c)[:, None, None]


def linear(w, name, x, out, bias=True):
    y = x @ w(f"{name}.weight", out, x.shape[1]).T
    return y + w(f"{name}.bias", out) if bias else y


def kernel_of(w, name, taps):
    """The outer product of the taps with sum 1, a buffer of every resampling layer."""
    taps = torch.tensor(taps, dtype=torch.float32)
    w[f"{name}.resample_filter"] = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    return w[f"{name}.resample_filter"]


def down(x, f, pad):
    """Correlate every channel with f, keep every second pixel."""
    channels = x.reshape(-1, 1, *x.shape[2:])
    return F.conv2d(F.pad(channels, [pad] * 4), f)[:, :, ::2, ::2].unflatten(0, x.shape[:2])[:, :, 0]


def up(x, f):
    """Zeros between the pixels, then correlation with 4 f, which is symmetric."""
    n, c, h, width = x.shape
    wide = x.new_zeros(n * c, 1, 2 * h, 2 * width)
    wide[:, 0, ::2, ::2] = x.reshape(n * c, h, width)
    size = f.shape[-1]
    before = size - 1 - (size - 1) // 2
    wide = F.pad(wide, [before, size - 1 - before] * 2)
    return F.conv2d(wide, 4 * f).reshape(n, c, 2 * h, 2 * width)


def conv(w, name, x, out, kernel, resample=None, taps=(1, 1)):
    if resample:
        f = kernel_of(w, name, taps)
        x = up(x, f) if resample == "up" else down(x, f, (len(taps) - 1) // 2)
    if kernel == 0:
        return x
    weight = w(f"{name}.weight", out, x.shape[1], kernel, kernel)
    return F.conv2d(x, weight, w(f"{name}.bias", out), padding=kernel // 2)


def attention(w, name, x, heads, eps):
    n, c, h, width = x.shape
    qkv = conv(w, f"{name}.qkv", norm(w, f"{name}.norm2", x, eps), 3 * c, 1)
    out = torch.empty(n, c, h * width)
    for image in range(n):
        for head in range(heads):
            first, size = head * (c // heads), c // heads
            rows = qkv[image].flatten(1)[3 * first : 3 * (first + size)]
            q, k, v = rows[0::3], rows[1::3], rows[2::3]
            out[image, first : first + size] = v @ torch.softmax(q.T @ k / math.sqrt(size), dim=1).T
    return conv(w, f"{name}.proj", out.reshape(x.shape), c, 1)


def block(w, name, x, emb, out, family, resample=None, attend=False, taps=(1, 1)):
    song = family == "song"
    eps, scale = (1e-6, math.sqrt(0.5)) if song else (1e-5, 1.0)
    h = conv(w, f"{name}.conv0", F.silu(norm(w, f"{name}.norm0", x, eps)), out, 3, resample, taps)
    if song:
        h = norm(w, f"{name}.norm1", h + linear(w, f"{name}.affine", emb, out)[:, :, None, None], eps)
    else:
        both = linear(w, f"{name}.affine", emb, 2 * out)[:, :, None, None]
        h = norm(w, f"{name}.norm1", h, eps) * (1 + both[:, :out]) + both[:, out:]
    h = conv(w, f"{name}.conv1", F.silu(h), out, 3)
    if resample or x.shape[1] != out:
        x = conv(w, f"{name}.skip", x, out, 1 if song or x.shape[1] != out else 0, resample, taps)
    x = (h + x) * scale
    if attend:
        x = (attention(w, name, x, 1 if song else out // 64, eps) + x) * scale
    return x


# Networks: F(x, c_noise, one-hot labels or None)


def song(w, x, c_noise, onehot, a):
    c, taps = a["model_channels"], a.get("resample_filter", [1, 1])
    encoder, decoder = a.get("encoder_type", "standard"), a.get("decoder_type", "standard")
    noise = c * a.get("channel_mult_noise", 1)
    if a.get("embedding_type") == "fourier":
        w.setdefault("map_noise.freqs", 16 * torch.randn(noise // 2, generator=w.generator))
        angles = c_noise[:, None] * 2 * math.pi * w["map_noise.freqs"]
    else:
        angles = c_noise[:, None] * 10000 ** (-torch.arange(noise // 2) / (noise // 2 - 1))
    emb = torch.cat([angles.sin(), angles.cos()], dim=1)
    if onehot is not None:
        emb = emb + linear(w, "map_label", onehot * math.sqrt(onehot.shape[1]), noise)
    if a.get("augment_dim"):
        w("map_augment.weight", noise, a["augment_dim"])
    emb = F.silu(linear(w, "map_layer1", F.silu(linear(w, "map_layer0", emb, 4 * c)), 4 * c))

    r, image, skips = a["img_resolution"], x, []
    top = len(a["channel_mult"]) - 1
    for level, mult in enumerate(a["channel_mult"]):
        at = f"{r >> level}x{r >> level}"
        if level == 0:
            x = conv(w, f"enc.{at}_conv", x, c, 3)
        else:
            x = block(w, f"enc.{at}_down", x, emb, x.shape[1], "song", "down", taps=taps)
            if encoder == "residual":  # convolution first, then the filter, without zeros between the two
                weight = w(f"enc.{at}_aux_residual.weight", x.shape[1], image.shape[1], 3, 3)
                f, pad = kernel_of(w, f"enc.{at}_aux_residual", taps), 1 + (len(taps) - 1) // 2
                bias = w(f"enc.{at}_aux_residual.bias", x.shape[1])
                image = down(F.conv2d(image, weight, padding=pad), f, 0) + bias[:, None, None]
                x = image = (x + image) / math.sqrt(2)
            if encoder == "skip":
                image = conv(w, f"enc.{at}_aux_down", image, None, 0, "down", taps)
                x = x + conv(w, f"enc.{at}_aux_skip", image, x.shape[1], 1)
        skips.append(x)
        for i in range(a["num_blocks"]):
            attend = r >> level in a["attn_resolutions"]
            x = block(w, f"enc.{at}_block{i}", x, emb, c * mult, "song", attend=attend)
            skips.append(x)
    result = None
    for level, mult in reversed(list(enumerate(a["channel_mult"]))):
        at = f"{r >> level}x{r >> level}"
        if level == top:
            x = block(w, f"dec.{at}_in0", x, emb, x.shape[1], "song", attend=True)
            x = block(w, f"dec.{at}_in1", x, emb, x.shape[1], "song")
        else:
            x = block(w, f"dec.{at}_up", x, emb, x.shape[1], "song", "up", taps=taps)
        for i in range(a["num_blocks"] + 1):
            attend = r >> level in a["attn_resolutions"] and i == a["num_blocks"]
            x = torch.cat([x, skips.pop()], dim=1)
            x = block(w, f"dec.{at}_block{i}", x, emb, c * mult, "song", attend=attend)
        if result is not None:
            result = conv(w, f"dec.{at}_aux_up", result, None, 0, "up", taps)
        if decoder == "skip" or level == 0:
            rgb = conv(w, f"dec.{at}_aux_conv", F.silu(norm(w, f"dec.{at}_aux_norm", x, 1e-6)), 3, 3)
            result = rgb if result is None else rgb + result
    return result


def adm(w, x, c_noise, onehot, a):
    c, r, skips = a["model_channels"], a["img_resolution"], []
    angles = c_noise[:, None] * 10000 ** (-torch.arange(c // 2) / (c // 2))
    emb = torch.cat([angles.cos(), angles.sin()], dim=1)
    emb = linear(w, "map_layer1", F.silu(linear(w, "map_layer0", emb, 4 * c)), 4 * c)
    if onehot is not None:
        emb = emb + linear(w, "map_label", onehot, 4 * c, bias=False)
    if a.get("augment_dim"):
        w("map_augment.weight", c, a["augment_dim"])
    emb = F.silu(emb)
    for level, mult in enumerate(a["channel_mult"]):
        at, attend = f"{r >> level}x{r >> level}", r >> level in a["attn_resolutions"]
        if level == 0:
            x = conv(w, f"enc.{at}_conv", x, c * mult, 3)
        else:
            x = block(w, f"enc.{at}_down", x, emb, x.shape[1], "adm", "down")
        skips.append(x)
        for i in range(a["num_blocks"]):
            x = block(w, f"enc.{at}_block{i}", x, emb, c * mult, "adm", attend=attend)
            skips.append(x)
    for level, mult in reversed(list(enumerate(a["channel_mult"]))):
        at, attend = f"{r >> level}x{r >> level}", r >> level in a["attn_resolutions"]
        if level == len(a["channel_mult"]) - 1:
            x = block(w, f"dec.{at}_in0", x, emb, x.shape[1], "adm", attend=True)
            x = block(w, f"dec.{at}_in1", x, emb, x.shape[1], "adm")
        else:
            x = block(w, f"dec.{at}_up", x, emb, x.shape[1], "adm", "up")
        for i in range(a["num_blocks"] + 1):
            x = block(w, f"dec.{at}_block{i}", torch.cat([x, skips.pop()], dim=1), emb, c * mult, "adm", attend=attend)
    return conv(w, "out_conv", F.silu(norm(w, "out_norm", x, 1e-5)), a.get("out_channels", 3), 3)


FAMILIES = {"SongUNet": song, "DhariwalUNet": adm}


def make_weights(architecture: str, arguments: dict, classes: int, seed: int = 0) -> Weights:
    weights = Weights(seed)
    size = arguments["img_resolution"]
    onehot = torch.zeros(1, classes) if classes else None
    FAMILIES[architecture](weights, torch.zeros(1, 3, size, size), torch.zeros(1), onehot, arguments)
    return weights


def denoise(architecture, arguments, weights, x, sigma, onehot=None, sigma_min=0.0):
    """EDM [2206.00364], Table 1, with sigma_data 0.5; sigma_min > 0 is ECT's boundary condition. sigma: (N,)."""
    s = sigma[:, None, None, None]
    f = FAMILIES[architecture](weights, x / (s**2 + 0.25).sqrt(), sigma.log() / 4, onehot, arguments)
    return 0.25 / ((s - sigma_min) ** 2 + 0.25) * x + (s - sigma_min) * 0.5 / (s**2 + 0.25).sqrt() * f


# EDM's baselines: c_skip, c_out, c_in, c_noise at sigma (N,), EDM [2206.00364], Table 1


def vp(sigma, beta_d=19.9, beta_min=0.1, m=1000):
    t = ((beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt() - beta_min) / beta_d
    return torch.ones(()), -sigma, 1 / (1 + sigma**2).sqrt(), (m - 1) * t


def ve(sigma):
    return torch.ones(()), sigma, torch.ones_like(sigma), (0.5 * sigma).log()


def iddpm(sigma, c1=0.001, c2=0.008, m=1000):
    def alpha_bar(j):
        return math.sin(math.pi / 2 * j / m / (c2 + 1)) ** 2

    u = [0.0] * (m + 1)
    for j in range(m, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), c1) - 1)
    nearest = (sigma[:, None].double() - torch.tensor(u, dtype=torch.float64)).abs().argmin(1)
    return torch.ones(()), -sigma, 1 / (1 + sigma**2).sqrt(), (m - 1 - nearest).float()


BASELINES = {"VPPrecond": vp, "VEPrecond": ve, "iDDPMPrecond": iddpm}


def denoise_baseline(precond, architecture, arguments, weights, x, sigma):
    skip, out, into, noise = BASELINES[precond](sigma)
    f = FAMILIES[architecture](weights, x * into[:, None, None, None], noise, None, arguments)[:, :3]
    return skip * x + out[:, None, None, None] * f


# Pickles


class Global:
    """Written as a call of a function that the reader must find by name: `Global("os.system", "ls")`."""

    def __init__(self, name, *arguments, state=None):
        self.name, self.arguments, self.state = name, arguments, state

    def __reduce__(self):
        module, _, attribute = self.name.rpartition(".")
        return getattr(sys.modules[module], attribute), self.arguments, self.state


@contextmanager
def modules_with(names):
    """Modules that have a function for each of the names, where they are not there."""
    made = {}
    for name in names:
        module, _, attribute = name.rpartition(".")
        target = made.get(module) or types.ModuleType(module)
        function = types.FunctionType((lambda *arguments: None).__code__, {}, attribute)
        function.__module__, function.__qualname__ = module, attribute
        setattr(target, attribute, function)
        made[module] = target
        package = module.partition(".")[0]
        made.setdefault(package, sys.modules.get(package) or types.ModuleType(package))
    kept = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in kept.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
NUMPY_SCALAR = "numpy.core.multiarray.scalar"  # as numpy 1 writes it


def persistent(class_name, state, source):
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Global(PERSISTENT, meta)


def module_state(parameters=(), buffers=(), modules=(), **attributes):
    """The attributes of an `nn.Module`."""
    return {
        "training": False,
        "_parameters": dict(parameters),
        "_buffers": dict(buffers),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": torch.nn.Module()._backward_hooks,
        "_modules": dict(modules),
    } | attributes


def tree(weights, prefix, source, **attributes):
    """The module that holds the parameters below a prefix, as a persistent object; `enc` and `dec` as torch's own."""
    names = [name.removeprefix(prefix) for name in weights if name.startswith(prefix)]
    children = list(dict.fromkeys(name.split(".")[0] for name in names if "." in name))
    own = {name: weights[prefix + name] for name in names if "." not in name}
    buffers = {name: own.pop(name) for name in ("resample_filter", "freqs") if name in own}
    parameters = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in own.items()}
    modules = {child: tree(weights, f"{prefix}{child}.", source) for child in children}
    if set(children) & {"enc", "dec"} or own or buffers or not children:
        attributes |= {"skip_scale": numpy_scalar(np.sqrt(0.5))}
    state = module_state(parameters, buffers or {"resample_filter": None}, modules, **attributes)
    if prefix in ("enc.", "dec."):
        container = nn.ModuleDict()
        container.__dict__.update(state)
        return container
    return persistent("DhariwalUNet" if not prefix else "UNetBlock" if children else "Conv2d", state, source)


def numpy_scalar(value):
    return Global(NUMPY_SCALAR, value.dtype, value.tobytes())


def edm_pickle(
    architecture,
    arguments,
    weights,
    classes=0,
    source="",
    precond="EDMPrecond",
    key="ema",
    constants=None,
    **extra,
) -> bytes:
    """A checkpoint of the network, as EDM's training writes it; constants: attributes of the class around it."""
    inner = {"out_channels": 3} | arguments | {"in_channels": 3, "label_dim": classes, "dropout": 0.13}
    model = tree(weights, "", source, _init_args=(), _init_kwargs=inner, map_augment=None)
    model.arguments[0]["class_name"] = architecture
    state = module_state(
        modules={"model": model},
        _init_args=(),
        _init_kwargs=arguments | {"img_channels": 3, "label_dim": classes, "model_type": architecture},
        label_dim=classes,
        use_fp16=False,
        **({"sigma_data": 0.5, "sigma_min": 0.0, "sigma_max": float("inf")} if constants is None else constants),
    )
    content = {
        key: persistent(precond, state, source),
        "loss_fn": persistent("EDMLoss", {"P_mean": -1.2, "P_std": numpy_scalar(np.float64(1.2))}, source),
        "augment_pipe": persistent("AugmentPipe", None, source),
        "dataset_kwargs": Global("dnnlib.util.EasyDict", {"path": "cifar10.zip", "use_labels": bool(classes)}),
    }
    return dump(content | extra)


def dump(content) -> bytes:
    with modules_with([PERSISTENT, NUMPY_SCALAR, "dnnlib.util.EasyDict"]):
        buffer = io.BytesIO()
        pickle.dump(content, buffer)
        return buffer.getvalue()
