"""The networks of the EDM family: DDPM++ and NCSN++ (Song et al. [2011.13456]), ADM (Dhariwal & Nichol [2105.05233]).

As EDM [2206.00364] uses them (App. F.1, Table 7). Classes, arguments and parameters are called as in its public
checkpoints, so that their state dicts, and those of what was distilled from them, load by name. Dropout of activations
and labels acts in training only and is left out. Augmentation labels are zero in sampling: only their parameters exist.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from students.networks.edm_layers import (
    BOX,
    Block,
    Convolution,
    FourierEmbedding,
    PositionalEmbedding,
    Resampling,
    Style,
    convolution,
    group_norm,
)
from students.networks.network import Network


class EDMUNet(Network):
    """What the two families share: an encoder and a decoder of named blocks. x: (N, C, H, W). t: log(sigma) / 4.

    A block at resolution r is called `rxr_...`. Features are taken in the middle and after the last block of each
    resolution of the decoder.
    """

    map_label: nn.Linear | None

    def add_blocks(
        self,
        img_resolution: int,
        in_channels: int,
        first: int,
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        style: Style,
        every_attention: bool,
    ) -> None:
        """Make `enc` and `dec`, for an embedding of `emb_channels`.

        every_attention: all blocks of the decoder at a resolution with attention have it, rather than the last.
        """
        block = partial(Block, emb_channels=self.emb_channels, style=style)  # type: ignore[arg-type]
        resolutions = [img_resolution >> level for level in range(len(widths))]
        self.ends = "_in1", f"_block{num_blocks}"
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

    def residual_blocks(self) -> Iterator[tuple[nn.ModuleDict, str, int]]:
        for blocks in (self.enc, self.dec):
            for name, block in blocks.items():
                if "_aux" not in name and not name.endswith("_conv"):
                    yield blocks, name, block.conv1.out_channels  # type: ignore[misc, union-attr]

    def decode(self, name: str, x: Tensor, skips: list[Tensor], emb: Tensor, features: list[Tensor]) -> Tensor:
        """One block of the decoder; takes a skip if it needs one, and keeps what comes out if it is a feature."""
        x = self.dec[name](torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        if name.endswith(self.ends):
            features.append(x)
        return x

    def one_hot(self, condition: Tensor | None, like: Tensor) -> Tensor:
        """(N, label_dim) of the classes, zero for no class."""
        known = torch.arange(self.map_label.in_features, device=like.device)  # type: ignore[union-attr]
        if condition is None:
            return like.new_zeros(len(like), len(known))
        return (condition[:, None] == known).to(like.dtype)


class SongUNet(EDMUNet):
    """DDPM++ by default; NCSN++ with "fourier", channel_mult_noise 2, "residual" and filter (1, 3, 3, 1).

    encoder_type: "residual" adds the image, resampled, to the encoder, "skip" likewise by 1x1 convolutions.
    decoder_type: "skip" sums an image over the resolutions of the decoder.
    """

    kind = "song_unet"

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
        super().__init__(locals())
        self.classes = label_dim or None
        self.aux_channels, self.out_channels, self.img_resolution = in_channels, out_channels, img_resolution
        self.lowest = img_resolution >> (len(channel_mult) - 1)
        self.encoder_type, self.decoder_type, self.taps = encoder_type, decoder_type, resample_filter
        noise_channels, self.emb_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.add_blocks(
            img_resolution,
            in_channels,
            model_channels,
            [model_channels * mult for mult in channel_mult],
            num_blocks,
            attn_resolutions,
            Style(1e-6, math.sqrt(0.5), None, False, True, resample_filter),
            every_attention=False,
        )
        fourier = embedding_type == "fourier"
        self.map_noise = FourierEmbedding(noise_channels) if fourier else PositionalEmbedding(noise_channels, True)
        self.map_label = nn.Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise_channels, self.emb_channels)
        self.map_layer1 = nn.Linear(self.emb_channels, self.emb_channels)

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.dec[f"{self.img_resolution}x{self.img_resolution}_aux_conv"]  # type: ignore[return-value]

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

    def embed(self, t: Tensor, condition: Tensor | None, extra: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(t)
        emb = torch.cat([sin, cos], dim=1).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            emb = emb + self.map_label(self.one_hot(condition, emb) * math.sqrt(self.map_label.in_features))
        return silu(self.add_to_embedding(self.map_layer1(silu(self.map_layer0(emb))), extra))

    def forward(self, x, t, condition=None, extra=None, return_features=False):
        emb = self.embed(t, condition, extra)
        skips: list[Tensor] = []
        image = x
        for name, module in self.enc.items():
            if name.endswith("aux_down"):
                image = module(image)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + module(image)
            elif name.endswith("aux_residual"):
                x = skips[-1] = image = (x + module(image)) * math.sqrt(0.5)
            else:
                x = module(x) if name.endswith("_conv") else module(x, emb)
                skips.append(x)
        features: list[Tensor] = []
        image = None
        for name, module in self.dec.items():
            if name.endswith("aux_up"):
                image = module(image)
            elif name.endswith("aux_norm"):
                normed = silu(module(x))
            elif name.endswith("aux_conv"):
                image = module(normed) if image is None else module(normed) + image
            else:
                x = self.decode(name, x, skips, emb, features)
        return (image, [*features[:-1], normed]) if return_features else image


class DhariwalUNet(EDMUNet):
    """ADM."""

    kind = "dhariwal_unet"

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
        super().__init__(locals())
        self.classes = label_dim or None
        widths = [model_channels * mult for mult in channel_mult]
        self.emb_channels = model_channels * channel_mult_emb
        self.add_blocks(
            img_resolution,
            in_channels,
            widths[0],
            widths,
            num_blocks,
            attn_resolutions,
            Style(1e-5, 1.0, 64, True, False),
            every_attention=True,
        )
        self.map_noise = PositionalEmbedding(model_channels, False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, self.emb_channels)
        self.map_layer1 = nn.Linear(self.emb_channels, self.emb_channels)
        self.map_label = nn.Linear(label_dim, self.emb_channels, bias=False) if label_dim else None
        self.out_norm = group_norm(widths[0], 1e-5)
        self.out_conv = convolution(widths[0], out_channels, 3)

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.out_conv  # type: ignore[return-value]

    def embed(self, t: Tensor, condition: Tensor | None, extra: Tensor | None) -> Tensor:
        emb = torch.cat(self.map_noise(t), dim=1).to(self.map_layer0.weight.dtype)
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(self.one_hot(condition, emb))
        return silu(self.add_to_embedding(emb, extra))

    def forward(self, x, t, condition=None, extra=None, return_features=False):
        emb = self.embed(t, condition, extra)
        skips: list[Tensor] = []
        features: list[Tensor] = []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("_conv") else module(x, emb)
            skips.append(x)
        for name in self.dec:
            x = self.decode(name, x, skips, emb, features)
        last = silu(self.out_norm(x))
        out = self.out_conv(last)
        return (out, [*features[:-1], last]) if return_features else out


NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}  # by the names of EDM's checkpoints
