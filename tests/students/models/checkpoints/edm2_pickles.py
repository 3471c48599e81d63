"""What EDM2's network computes (Karras et al. 2024 [2312.02696], App. B), by plain formulas, and its checkpoints."""

import math

import torch
from torch.nn import functional as F

from tests.students.models.checkpoints.edm_pickles import (
    PERSISTENT,
    Weights,
    dump,
    module_state,
    modules_with,
    persistent,
    tree,
)

EDM2 = {
    "img_resolution": 16,
    "img_channels": 3,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}


def normal(x, dims):
    """x / (eps + |x| / sqrt(n)), n numbers along the dims."""
    n = math.prod(x.shape[d] for d in dims)
    return x / (1e-4 + x.pow(2).sum(dims, keepdim=True).sqrt() / math.sqrt(n))


def act(x):
    return x * torch.sigmoid(x) / 0.596


def mix(a, b, t):
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def layer(w, name, x, out, kernel=None, gain=1.0):
    shape = (out, x.shape[1]) + ((kernel, kernel) if kernel else ())
    weight = w(f"{name}.weight", *shape)
    weight = normal(weight, tuple(range(1, len(shape)))) * gain / math.sqrt(weight[0].numel())
    return F.conv2d(x, weight, padding=kernel // 2) if kernel else x @ weight.T


def fourier(w, name, c, channels):
    w(f"{name}.freqs", channels), w(f"{name}.phases", channels)
    return math.sqrt(2) * torch.cos(c[:, None] * w[f"{name}.freqs"] + w[f"{name}.phases"])


def block(w, name, x, emb, out, decoder, resample=None, attend=False):
    if resample == "down":
        x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    elif resample == "up":
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    skip = x if x.shape[1] == out else layer(w, f"{name}.conv_skip", x, out, 1)
    if not decoder:
        x = skip = normal(skip, (1,))
    w.setdefault(f"{name}.emb_gain", torch.tensor(0.7))
    scale = 1 + layer(w, f"{name}.emb_linear", emb, out, gain=w[f"{name}.emb_gain"])
    h = layer(w, f"{name}.conv_res0", act(x), out, 3)
    h = layer(w, f"{name}.conv_res1", act(h * scale[:, :, None, None]), out, 3)
    x = mix(skip, h, 0.3)
    if attend:
        x = mix(x, attention(w, name, x, out // 64), 0.3)
    return x.clamp(-256, 256)


def attention(w, name, x, heads):
    n, c, height, width = x.shape
    qkv = layer(w, f"{name}.attn_qkv", x, 3 * c, 1).reshape(n, heads, c // heads, 3, height * width)
    q, k, v = normal(qkv, (2,)).unbind(3)
    weights = torch.softmax(q.mT @ k / math.sqrt(c // heads), dim=-1)
    return layer(w, f"{name}.attn_proj", (v @ weights.mT).reshape(x.shape), c, 1)


def unet(w, x, c_noise, onehot, a):
    widths, size = [a["model_channels"] * mult for mult in a["channel_mult"]], a["img_resolution"]
    emb = layer(w, "emb_noise", fourier(w, "emb_fourier", c_noise, widths[0]), max(widths))
    if onehot is not None:
        emb = mix(emb, layer(w, "emb_label", onehot * math.sqrt(onehot.shape[1]), max(widths)), 0.5)
    emb, skips = act(emb), []
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    for level, width in enumerate(widths):
        at, attend = f"{size >> level}x{size >> level}", size >> level in a["attn_resolutions"]
        if level == 0:
            x = layer(w, f"enc.{at}_conv", x, width, 3)
        else:
            x = block(w, f"enc.{at}_down", x, emb, x.shape[1], False, "down")
        skips.append(x)
        for i in range(a["num_blocks"]):
            x = block(w, f"enc.{at}_block{i}", x, emb, width, False, attend=attend)
            skips.append(x)
    for level, width in reversed(list(enumerate(widths))):
        at, attend = f"{size >> level}x{size >> level}", size >> level in a["attn_resolutions"]
        if level == len(widths) - 1:
            x = block(w, f"dec.{at}_in0", x, emb, x.shape[1], True, attend=True)
            x = block(w, f"dec.{at}_in1", x, emb, x.shape[1], True)
        else:
            x = block(w, f"dec.{at}_up", x, emb, x.shape[1], True, "up")
        for i in range(a["num_blocks"] + 1):
            skip = skips.pop()
            total = x.shape[1] + skip.shape[1]
            parts = [part * math.sqrt(total / part.shape[1]) / 2 / math.sqrt(0.5) for part in (x, skip)]
            x = block(w, f"dec.{at}_block{i}", torch.cat(parts, dim=1), emb, width, True, attend=attend)
    w.setdefault("out_gain", torch.tensor(0.8))
    return layer(w, "out_conv", x, a["img_channels"], 3, gain=w["out_gain"])


def make_weights(arguments: dict, classes: int, seed: int = 0) -> Weights:
    weights, size = Weights(seed), arguments["img_resolution"]
    onehot = torch.zeros(1, classes) if classes else None
    unet(weights, torch.zeros(1, arguments["img_channels"], size, size), torch.zeros(1), onehot, arguments)
    return weights


def denoise(arguments, weights, x, sigma, onehot=None):
    """Its preconditioning is EDM's, with sigma_data 0.5. sigma: (N,)."""
    s = sigma[:, None, None, None]
    f = unet(weights, x / (s**2 + 0.25).sqrt(), sigma.log() / 4, onehot, arguments)
    return 0.25 / (s**2 + 0.25) * x + s * 0.5 / (s**2 + 0.25).sqrt() * f


def edm2_pickle(arguments: dict, weights: Weights, classes: int = 0, **further) -> bytes:
    """A checkpoint as EDM2's training writes it."""
    model = tree(weights, "", "", _init_args=(), _init_kwargs=arguments | {"label_dim": classes, "dropout": 0.1})
    model.arguments[0]["class_name"] = "UNet"
    with modules_with([PERSISTENT]):
        logvar = persistent("MPConv", module_state({"weight": torch.ones(1, 128)}), "")
        net = persistent(
            "Precond",
            module_state(modules={"unet": model, "logvar_linear": logvar}, sigma_data=0.5, use_fp16=True),
            "",
        )
        return dump({"ema": net, "encoder": persistent("StandardRGBEncoder", None, ""), "dataset_kwargs": {}} | further)
