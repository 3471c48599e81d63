"""The network of EDM2 (Karras et al. 2024 [2312.02696], App. B, config G), whose layers keep magnitudes.

Classes, arguments and parameters are called as in its public checkpoints. Dropout is left out.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, linear, silu

from students.networks.edm_layers import Frequencies
from students.networks.edm_unet import EDMUNet

EPSILON = 1e-4  # of normalisations
SILU_MAGNITUDE = 0.596  # of silu of a standard normal


def unit(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x over its root mean square along `dim`, which is computed in float32."""
    rms = x.float().square().mean(dim, keepdim=True).sqrt()
    return x / (rms + EPSILON).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596 (Eq. 81)."""
    return silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (Eq. 88)."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """sqrt((Na + Nb) / ((1 - t)^2 + t^2)) [(1 - t) / sqrt(Na) a, t / sqrt(Nb) b], N channels each (Eq. 103)."""
    scale = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - t, t)
    return torch.cat([a * (scale * (1 - t) / math.sqrt(a.shape[1])), b * (scale * t / math.sqrt(b.shape[1]))], dim=1)


class MPFourier(Frequencies):
    """sqrt(2) cos(2 pi (f c + phi)), f normal and phi uniform (Eq. 75). (N,) -> (N, channels), float32 or better."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, c: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(torch.outer(c, self.freqs.to(c)) + self.phases.to(c))


class MPConv(nn.Module):
    """A convolution, or with an empty kernel a linear map, of weights w / |w| (Eq. 47).

    In training the weights themselves are brought back to unit magnitude before each use (Eq. 66).
    """

    def __init__(self, cin: int, cout: int, kernel: Sequence[int] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, *kernel))

    @property
    def out_channels(self) -> int:
        return len(self.weight)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        within = tuple(range(1, self.weight.ndim))
        if self.training:
            with torch.no_grad():
                self.weight.copy_(unit(self.weight, within))
        w = (unit(self.weight.float(), within) * (gain / math.sqrt(self.weight[0].numel()))).to(x.dtype)
        return linear(x, w) if w.ndim == 2 else conv2d(x, w, padding=w.shape[-1] // 2)


class MPBlock(nn.Module):
    """Residual block of the encoder or the decoder, with self-attention if asked for (Fig. 21)."""

    def __init__(
        self,
        cin: int,
        cout: int,
        emb_channels: int,
        decoder: bool,
        resample: str | None = None,
        attention: bool = False,
        channels_per_head: int = 64,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ):
        super().__init__()
        self.decoder, self.resample, self.clip_act = decoder, resample, clip_act
        self.res_balance, self.attn_balance = res_balance, attn_balance
        self.heads = cout // channels_per_head if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(cin if decoder else cout, cout, (3, 3))
        self.emb_linear = MPConv(emb_channels, cout)
        self.conv_res1 = MPConv(cout, cout, (3, 3))
        self.conv_skip = MPConv(cin, cout, (1, 1)) if cin != cout else nn.Identity()
        if self.heads:
            self.attn_qkv = MPConv(cout, 3 * cout, (1, 1))
            self.attn_proj = MPConv(cout, cout, (1, 1))

    @property
    def out_channels(self) -> int:
        return self.conv_res1.out_channels

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample:  # by the filter (1, 1)
            x = interpolate(x, scale_factor=2.0) if self.resample == "up" else nn.functional.avg_pool2d(x, 2)
        if not self.decoder:
            x = unit(self.conv_skip(x), 1)
        scale = (self.emb_linear(emb, self.emb_gain) + 1)[:, :, None, None].to(x.dtype)
        y = self.conv_res1(mp_silu(self.conv_res0(mp_silu(x)) * scale))
        x = mp_sum(self.conv_skip(x) if self.decoder else x, y, self.res_balance)
        if self.heads:
            x = mp_sum(x, self.attend(x), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def attend(self, x: Tensor) -> Tensor:
        """The channels of `attn_qkv` are counted as (head, channel of the head, one of q, k, v), of unit magnitude."""
        qkv = self.attn_qkv(x).reshape(len(x), self.heads, -1, 3, x[0, 0].numel())
        q, k, v = unit(qkv, 2).transpose(2, 4).unbind(3)
        return self.attn_proj(nn.functional.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class EDM2UNet(EDMUNet):
    """label_balance: of the class in the embedding. concat_balance: of the skips in the decoder."""

    kind = "edm2_unet"

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        channel_mult_noise: float | None = None,
        channel_mult_emb: float | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        channels_per_head: int = 64,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ):
        super().__init__(locals())
        self.classes = label_dim or None
        self.label_balance, self.concat_balance = label_balance, concat_balance
        widths = [int(model_channels * mult) for mult in channel_mult]
        noise_channels = int(model_channels * channel_mult_noise) if channel_mult_noise else widths[0]
        self.emb_channels = int(model_channels * channel_mult_emb) if channel_mult_emb else max(widths)

        block = partial(
            MPBlock,
            emb_channels=self.emb_channels,
            channels_per_head=channels_per_head,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip_act=clip_act,
        )
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, self.emb_channels)
        self.emb_label = MPConv(label_dim, self.emb_channels) if label_dim else None
        stem = MPConv(img_channels + 1, widths[0], (3, 3))  # a channel of ones stands for the bias
        self.add_blocks(img_resolution, stem, block, widths, num_blocks, attn_resolutions, every_attention=True)
        self.out_conv = MPConv(widths[0], img_channels, (3, 3))

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.out_conv  # type: ignore[return-value]

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return mp_cat(x, skip, self.concat_balance)

    def embed(self, t: Tensor, condition: Tensor | None, extra: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(t))
        if self.emb_label is not None:
            classes = self.emb_label.weight.shape[1]
            label = self.emb_label(self.one_hot(condition, emb, classes) * math.sqrt(classes))
            emb = mp_sum(emb, label, self.label_balance)
        return mp_silu(self.add_to_embedding(emb, extra))

    def forward(self, x, t, condition=None, extra=None, return_features=False):
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        last, features = self.through(x, self.embed(t, condition, extra))
        out = self.out_conv(last, self.out_gain)
        return (out, [*features[:-1], last]) if return_features else out
