"""The networks of the EDM family: DDPM++ and NCSN++ (Song et al. [2011.13456]), ADM (Dhariwal & Nichol [2105.05233]).

As EDM [2206.00364] uses them (App. F.1, Table 7). Classes, arguments and parameters are called as in its public
checkpoints, so that their state dicts, and those of what was distilled from them, load by name. Dropout of activations
and labels acts in training only and is left out. Augmentation labels are zero in sampling: only their parameters exist.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu

BOX = (1, 1)  # the resampling filter of DDPM++ and ADM; NCSN++ has (1, 3, 3, 1)


class Resampling(nn.Module):
    """Twice or half the resolution by a separable filter, whose outer product is the buffer `resample_filter`."""

    def __init__(self, up: bool, taps: Sequence[float]):
        super().__init__()
        self.up = up
        taps = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("resample_filter", torch.outer(taps, taps)[None, None])

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

    def forward(self, x: Tensor) -> Tensor:
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
        self.skip_scale, self.scale_shift = style.skip_scale, style.scale_shift
        self.heads = cout // (style.head_channels or cout) if attention else 0
        self.norm0 = group_norm(cin, style.eps)
        self.conv0 = convolution(cin, cout, 3, resample, style.taps)
        self.affine = nn.Linear(emb_channels, cout * (2 if style.scale_shift else 1))
        self.norm1 = group_norm(cout, style.eps)
        self.conv1 = convolution(cout, cout, 3)
        self.skip = nn.Identity()
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


class FourierEmbedding(nn.Module):
    """Cosines and sines of random frequencies, which belong to the weights. (N,) -> two of (N, channels / 2).

    The angles reach hundreds, so the frequencies keep their precision in a network of half precision.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def _apply(self, fn, recurse=True):
        freqs = self.freqs
        super()._apply(fn, recurse)
        if self.freqs.dtype != freqs.dtype:
            self.freqs = freqs.to(self.freqs.device)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.outer(x, 2 * math.pi * self.freqs)
        return angles.cos(), angles.sin()


class UNet(nn.Module):
    """`network(x, condition, labels)`: what the two families share, an encoder and a decoder of named blocks.

    x: (N, C, H, W). condition: (N,) = log(sigma) / 4. labels: (N,) int64, `label_dim` for no class; None for none at
    all. A block at resolution r is called `rxr_...`. every_attention: all blocks of the decoder at a resolution with
    attention have it, rather than the last.
    """

    def build(
        self,
        img_resolution: int,
        in_channels: int,
        first: int,
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        emb_channels: int,
        style: Style,
        every_attention: bool,
    ) -> None:
        block = partial(Block, emb_channels=emb_channels, style=style)
        resolutions = [img_resolution >> level for level in range(len(widths))]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc[f"{img_resolution}x{img_resolution}_conv"] = convolution(in_channels, first, 3)
        width, skips = first, [first]
        for r, wider in zip(resolutions, widths, strict=True):
            if r != img_resolution:
                self.enc[f"{r}x{r}_down"] = block(width, width, resample="down")
                self.add_to_encoder(r, width)
                skips.append(width)
            for i in range(num_blocks):
                self.enc[f"{r}x{r}_block{i}"] = block(width, wider, attention=r in attn_resolutions)
                width = wider
                skips.append(width)
        for r, wider in zip(resolutions[::-1], widths[::-1], strict=True):
            if r == resolutions[-1]:
                self.dec[f"{r}x{r}_in0"] = block(width, width, attention=True)
                self.dec[f"{r}x{r}_in1"] = block(width, width)
            else:
                self.dec[f"{r}x{r}_up"] = block(width, width, resample="up")
            for i in range(num_blocks + 1):
                attention = r in attn_resolutions and (every_attention or i == num_blocks)
                self.dec[f"{r}x{r}_block{i}"] = block(width + skips.pop(), wider, attention=attention)
                width = wider
            self.add_to_decoder(r, width)

    def add_to_encoder(self, r: int, width: int) -> None:
        """Further modules after the block that goes down to resolution r."""

    def add_to_decoder(self, r: int, width: int) -> None:
        """Further modules after the last block at resolution r."""

    def classes(self, labels: Tensor | None, like: Tensor) -> Tensor:
        """One-hot labels (N, label_dim), zero for no class."""
        known = torch.arange(self.map_label.in_features, device=like.device)
        if labels is None:
            return like.new_zeros(len(like), len(known))
        return (labels[:, None] == known).to(like.dtype)


class SongUNet(UNet):
    """DDPM++ by default; NCSN++ with "fourier", channel_mult_noise 2, "residual" and filter (1, 3, 3, 1).

    encoder_type: "residual" adds the image, resampled, to the encoder, "skip" likewise by 1x1 convolutions.
    decoder_type: "skip" sums an image over the resolutions of the decoder.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = BOX,
    ):
        super().__init__()
        self.aux_channels, self.out_channels, self.img_resolution = in_channels, out_channels, img_resolution
        self.lowest = img_resolution >> (len(channel_mult) - 1)
        self.encoder_type, self.decoder_type, self.taps = encoder_type, decoder_type, resample_filter
        noise_channels, emb_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.build(
            img_resolution,
            in_channels,
            model_channels,
            [model_channels * mult for mult in channel_mult],
            num_blocks,
            attn_resolutions,
            emb_channels,
            Style(1e-6, math.sqrt(0.5), None, False, True, resample_filter),
            every_attention=False,
        )
        fourier = embedding_type == "fourier"
        self.map_noise = FourierEmbedding(noise_channels) if fourier else PositionalEmbedding(noise_channels, True)
        self.map_label = nn.Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)

    def add_to_encoder(self, r, width):
        if self.encoder_type == "skip":
            self.enc[f"{r}x{r}_aux_down"] = Resampling(False, self.taps)
            self.enc[f"{r}x{r}_aux_skip"] = convolution(self.aux_channels, width, 1)
        elif self.encoder_type == "residual":
            self.enc[f"{r}x{r}_aux_residual"] = Convolution(self.aux_channels, width, 3, taps=self.taps, fused=True)
            self.aux_channels = width

    def add_to_decoder(self, r, width):
        skip = self.decoder_type == "skip"
        if skip and r != self.lowest:
            self.dec[f"{r}x{r}_aux_up"] = Resampling(True, self.taps)
        if skip or r == self.img_resolution:
            self.dec[f"{r}x{r}_aux_norm"] = group_norm(width, 1e-6)
            self.dec[f"{r}x{r}_aux_conv"] = convolution(width, self.out_channels, 3)

    def embed(self, condition: Tensor, labels: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(condition)
        emb = torch.cat([sin, cos], dim=1).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            emb = emb + self.map_label(self.classes(labels, emb) * math.sqrt(self.map_label.in_features))
        return silu(self.map_layer1(silu(self.map_layer0(emb))))

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.embed(condition, labels)
        skips, image = [], x
        for name, module in self.enc.items():
            if name.endswith("aux_down"):
                image = module(image)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + module(image)
            elif name.endswith("aux_residual"):
                x = skips[-1] = image = (x + module(image)) * math.sqrt(0.5)
            else:
                x = module(x, emb) if isinstance(module, Block) else module(x)
                skips.append(x)
        image = None
        for name, module in self.dec.items():
            if name.endswith("aux_up"):
                image = module(image)
            elif name.endswith("aux_norm"):
                normed = silu(module(x))
            elif name.endswith("aux_conv"):
                image = module(normed) if image is None else module(normed) + image
            else:
                x = module(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        return image


class DhariwalUNet(UNet):
    """ADM."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
    ):
        super().__init__()
        widths = [model_channels * mult for mult in channel_mult]
        emb_channels = model_channels * channel_mult_emb
        self.build(
            img_resolution,
            in_channels,
            widths[0],
            widths,
            num_blocks,
            attn_resolutions,
            emb_channels,
            Style(1e-5, 1.0, 64, True, False),
            every_attention=True,
        )
        self.map_noise = PositionalEmbedding(model_channels, False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label = nn.Linear(label_dim, emb_channels, bias=False) if label_dim else None
        self.out_norm = group_norm(widths[0], 1e-5)
        self.out_conv = convolution(widths[0], out_channels, 3)

    def embed(self, condition: Tensor, labels: Tensor | None) -> Tensor:
        emb = torch.cat(self.map_noise(condition), dim=1).to(self.map_layer0.weight.dtype)
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(self.classes(labels, emb))
        return silu(emb)

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.embed(condition, labels)
        skips = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, Block) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            x = module(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        return self.out_conv(silu(self.out_norm(x)))


NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
