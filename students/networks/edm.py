"""The networks of the EDM family: DDPM++ and NCSN++ (Song et al. [2011.13456]), ADM (Dhariwal & Nichol [2105.05233]).

As EDM [2206.00364] uses them (App. F.1, Table 7). Classes, arguments and parameters are called as in its public
checkpoints, so that their state dicts, and those of what was distilled from them, load by name. Dropout of activations
and labels acts in training only and is left out. Augmentation labels are zero in sampling: only their parameters exist.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from students.networks.edm_layers import (
    BOX,
    Convolution,
    FourierEmbedding,
    PositionalEmbedding,
    Resampling,
    Style,
    convolution,
    group_norm,
)
from students.networks.edm_unet import EDMUNet, residual_block


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
            convolution(in_channels, model_channels, 3),
            residual_block(self.emb_channels, Style(1e-6, math.sqrt(0.5), None, False, True, resample_filter)),
            [model_channels * mult for mult in channel_mult],
            num_blocks,
            attn_resolutions,
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
            classes = self.map_label.in_features
            emb = emb + self.map_label(self.one_hot(condition, emb, classes) * math.sqrt(classes))
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
            convolution(in_channels, widths[0], 3),
            residual_block(self.emb_channels, Style(1e-5, 1.0, 64, True, False)),
            widths,
            num_blocks,
            attn_resolutions,
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
            emb = emb + self.map_label(self.one_hot(condition, emb, self.map_label.in_features))
        return silu(self.add_to_embedding(emb, extra))

    def forward(self, x, t, condition=None, extra=None, return_features=False):
        x, features = self.through(x, self.embed(t, condition, extra))
        last = silu(self.out_norm(x))
        out = self.out_conv(last)
        return (out, [*features[:-1], last]) if return_features else out


NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}  # by the names of EDM's checkpoints
