"""Layers of the networks of the EDM family (students/networks/edm.py): resampling, residual blocks, embeddings.

Parameters and buffers are called as in EDM's public checkpoints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu

BOX = (1, 1)  # the resampling filter of DDPM++ and ADM; NCSN++ has (1, 3, 3, 1)


class Resampling(nn.Module):
    """Twice or half the resolution by a separable filter, whose outer product is the buffer `resample_filter`."""

    resample_filter: Tensor

    def __init__(self, up: bool, taps: Sequence[float]):
        super().__init__()
        self.up = up
        weights = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("resample_filter", torch.outer(weights, weights)[None, None])

    @property
    def padding(self) -> int:
        return (self.resample_filter.shape[-1] - 1) // 2

    def forward(self, x: Tensor, padding: int | None = None) -> Tensor:
        padding = self.padding if padding is None else padding
        weight = self.resample_filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        if self.up:
            return conv_transpose2d(x, 4 * weight, stride=2, padding=padding, groups=x.shape[1])
        return conv2d(x, weight, stride=2, padding=padding, groups=x.shape[1])


class Convolution(Resampling):
    """A convolution after resampling; with `fused`, before it, without the zeros at the border between the two."""

    def __init__(self, cin: int, cout: int, kernel: int, up=False, taps: Sequence[float] = BOX, fused=False):
        super().__init__(up, taps)
        self.fused = fused
        convolution = nn.Conv2d(cin, cout, kernel)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        padding = self.weight.shape[-1] // 2
        if self.fused:
            return super().forward(conv2d(x, self.weight, self.bias, padding=padding + self.padding), padding=0)
        return conv2d(super().forward(x), self.weight, self.bias, padding=padding)


def convolution(cin: int, cout: int, kernel: int, resample: str | None = None, taps=BOX) -> nn.Module:
    """A convolution, after resampling "up" or "down" if asked for; kernel 0 is resampling alone."""
    if resample is None:
        return nn.Conv2d(cin, cout, kernel, padding=kernel // 2)
    return Convolution(cin, cout, kernel, resample == "up", taps) if kernel else Resampling(resample == "up", taps)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """At most 32 groups, of at least four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


@dataclass(frozen=True)
class Style:
    """What tells the blocks of Song's networks from those of ADM.

    head_channels: of an attention head, None for one head. scale_shift: the embedding scales and shifts after the norm
    rather than being added before it. resampled_skip: a 1x1 convolution in the skip of a resampling block.
    """

    eps: float
    skip_scale: float
    head_channels: int | None
    scale_shift: bool
    resampled_skip: bool
    taps: Sequence[float] = BOX


class Block(nn.Module):
    """Residual block with the embedding of noise level and class, then self-attention if asked for."""

    def __init__(self, cin: int, cout: int, emb_channels: int, style: Style, resample=None, attention=False):
        super().__init__()
        self.out_channels = cout
        self.skip_scale, self.scale_shift = style.skip_scale, style.scale_shift
        self.heads = cout // (style.head_channels or cout) if attention else 0
        self.norm0 = group_norm(cin, style.eps)
        self.conv0 = convolution(cin, cout, 3, resample, style.taps)
        self.affine = nn.Linear(emb_channels, cout * (2 if style.scale_shift else 1))
        self.norm1 = group_norm(cout, style.eps)
        self.conv1 = convolution(cout, cout, 3)
        self.skip: nn.Module = nn.Identity()
        if resample or cin != cout:
            kernel = 1 if style.resampled_skip or cin != cout else 0
            self.skip = convolution(cin, cout, kernel, resample, style.taps)
        if self.heads:
            self.norm2 = group_norm(cout, style.eps)
            self.qkv = convolution(cout, 3 * cout, 1)
            self.proj = convolution(cout, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(silu(self.norm0(x)))
        affine = self.affine(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = affine.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + affine)
        x = (self.conv1(silu(h)) + self.skip(x)) * self.skip_scale
        return (x + self.attend(x)) * self.skip_scale if self.heads else x

    def attend(self, x: Tensor) -> Tensor:
        """The channels of `qkv` are counted as (head, channel of the head, one of q, k, v)."""
        qkv = self.qkv(self.norm2(x)).reshape(len(x), self.heads, -1, 3, x[0, 0].numel())
        q, k, v = qkv.transpose(2, 4).unbind(3)
        return self.proj(scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class PositionalEmbedding(nn.Module):
    """Cosines and sines of frequencies 1 ... 1e-4; `endpoint` includes the last. (N,) -> two of (N, channels / 2)."""

    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.count, self.steps = channels // 2, channels // 2 - endpoint

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(self.count, dtype=torch.float32, device=x.device) / self.steps
        angles = torch.outer(x, 1e-4**exponents)
        return angles.cos(), angles.sin()


class Frequencies(nn.Module):
    """Buffers that keep their precision in a network of half precision: the angles they make reach hundreds."""

    def _apply(self, fn, recurse=True):
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, moved in self.named_buffers(recurse=False):
            if moved.dtype != kept[name].dtype:
                self._buffers[name] = kept[name].to(moved.device)
        return self


class FourierEmbedding(Frequencies):
    """Cosines and sines of random frequencies, which belong to the weights. (N,) -> two of (N, channels / 2)."""

    freqs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.outer(x, 2 * math.pi * self.freqs)
        return angles.cos(), angles.sin()
