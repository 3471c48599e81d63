"""`diffusers.UNet2DModel` as a network, and on pixel-unshuffled images the U-Net that ships."""

from collections.abc import Iterator

from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from students.networks.network import Network, plain


class UNet2D(Network):
    """A `UNet2DModel` of diffusers, run part by part. x: (N, C, H, W). Its timestep is scale * t + shift.

    unet: with positional embedding of the timestep and without skips of images. classes: as many as it has, or one
    less where the last stands for "no class".
    """

    kind = "unet2d"

    def __init__(self, unet: UNet2DModel, classes: int | None, scale: float = 1.0, shift: float = 0.0):
        own = {name: value for name, value in unet.config.items() if not name.startswith("_")}
        super().__init__(own | {"classes": classes, "scale": scale, "shift": shift})
        self.network, self.classes, self.scale, self.shift = unet, classes, scale, shift
        self.emb_channels = unet.time_embedding.linear_2.out_features

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.network.conv_out

    def residual_blocks(self) -> Iterator[tuple[nn.ModuleList, int, int]]:
        unet = self.network
        for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            for i, block in enumerate(part.resnets):
                yield part.resnets, i, block.out_channels

    def timestep(self, t: Tensor) -> Tensor:
        return self.scale * t + self.shift

    def set_dropout(self, p: float) -> None:
        """That of the residual blocks, as UNet2DModel's own argument; attention has none."""
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                module.dropout.p = p
        self.arguments["dropout"] = p

    def slow_time(self, scale: float) -> None:
        if scale < self.scale:
            self.scale, self.shift = scale, self.shift * scale / self.scale
            self.arguments |= {name: getattr(self, name) for name in ("scale", "shift") if name in self.arguments}

    def embed_time(self, t: Tensor) -> Tensor:
        unet = self.network
        return unet.time_embedding(unet.time_proj(self.timestep(t)).to(unet.dtype))

    def forward(self, x, t, condition=None, extra=None, return_features=False):
        unet = self.network
        emb = self.add_to_embedding(self.embed_time(t), extra)
        if self.classes is not None:
            emb = emb + unet.class_embedding(self.classes_of(condition, x))
        h = unet.conv_in(2 * x - 1 if unet.config.center_input_sample else x)
        skips = (h,)
        for block in unet.down_blocks:
            h, more = block(h, emb)
            skips += more
        h = unet.mid_block(h, emb)
        features = [h]
        for block in unet.up_blocks:
            depth = len(block.resnets)
            h, skips = block(h, skips[-depth:], emb), skips[:-depth]
            features.append(h)
        features[-1] = unet.conv_act(unet.conv_norm_out(h))
        out = unet.conv_out(features[-1])
        return (out, features) if return_features else out


def build_unet2d(classes: int | None, scale: float, shift: float, **config) -> UNet2D:
    """The network of a configuration of diffusers, untrained."""
    return UNet2D(UNet2DModel(**config), classes, scale, shift)


class UNet(UNet2D):
    """A `UNet2DModel` on x (N, C, H, W), whose squares of patch x patch pixels become channels; t = log(sigma) / 4.

    Patches make a network for small images take few operations for its parameters. channels: width at each resolution,
    halved from one to the next. layers: residual blocks at each. classes: None or their number; one more is known, for
    "no class". dropout: of the residual blocks. attention: in the middle. scale: the timestep is scale (t + 2), where t
    spans about -2 to 2 and the sinusoidal embedding is made for timesteps up to 1000.
    """

    kind = "unet"

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: tuple[int, ...],
        layers: int = 1,
        patch: int = 1,
        classes: int | None = None,
        dropout: float = 0.0,
        attention: bool = False,
        scale: float = 250,
    ):
        arguments = dict(locals())
        unet = UNet2DModel(
            sample_size=shape[1] // patch,
            in_channels=shape[0] * patch**2,
            out_channels=shape[0] * patch**2,
            layers_per_block=layers,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            norm_num_groups=8,
            dropout=dropout,
            add_attention=attention,
            attention_head_dim=16,
            num_class_embeds=None if classes is None else classes + 1,
        )
        super().__init__(unet, classes, scale)
        self.arguments, self.patch = plain(arguments), patch

    def timestep(self, t: Tensor) -> Tensor:
        return (t + 2) * self.scale

    def forward(self, x, t, condition=None, extra=None, return_features=False):
        out, features = super().forward(pixel_unshuffle(x, self.patch), t, condition, extra, True)
        out = pixel_shuffle(out, self.patch)
        return (out, features) if return_features else out
