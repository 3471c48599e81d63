"""The U-Net that ships: `diffusers.UNet2DModel` on pixel-unshuffled images, conditioned on noise level and class."""

from contextlib import contextmanager

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from students.networks.embedding import NumberEmbedding


class UNet(nn.Module):
    """`network(x, condition, labels, numbers)` in EDM's form: x (N, C, H, W), condition (N,) = log(sigma) / 4.

    patch: each patch x patch square of pixels becomes channels, so that a small image costs few operations
    for its parameters. channels: width at each resolution, halved from one to the next. classes: None or
    their number; label `classes`, or no labels at all, means "no class" (for classifier-free guidance).
    numbers: (N, n) further inputs that join the noise level, once `take_numbers` has made room for them.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: tuple[int, ...],
        layers: int = 1,
        patch: int = 1,
        classes: int | None = None,
        dropout: float = 0.0,
        attention: bool = False,
    ):
        super().__init__()
        self.patch = patch
        self.classes = classes
        self.network = UNet2DModel(
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
        self.numbers = None

    @property
    def last_layer(self) -> nn.Module:
        return self.network.conv_out

    def take_numbers(self, n: int) -> None:
        """Make room for n further inputs, such as a guidance scale or a second time; the output stays what it was."""
        self.numbers = NumberEmbedding(n, self.network.time_embedding.linear_2.out_features)

    def forward(
        self, x: Tensor, condition: Tensor, labels: Tensor | None = None, numbers: Tensor | None = None
    ) -> Tensor:
        # the sinusoidal embedding is made for timesteps up to 1000; log(sigma) / 4 spans about -2 to 2
        timestep = (condition + 2) * 250
        if labels is None and self.classes is not None:
            labels = torch.full((len(x),), self.classes, device=x.device)
        with self._added(numbers):
            out = self.network(pixel_unshuffle(x, self.patch), timestep, labels).sample
        return pixel_shuffle(out, self.patch)

    @contextmanager
    def _added(self, numbers: Tensor | None):
        """Add the embedded numbers to the embedding of time, which UNet2DModel computes itself."""
        if self.numbers is None:
            yield
            return
        embedded = self.numbers(numbers.to(self.network.dtype))
        hook = self.network.time_embedding.register_forward_hook(lambda module, args, output: output + embedded)
        try:
            yield
        finally:
            hook.remove()
