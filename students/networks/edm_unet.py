"""What the U-Nets of EDM and EDM2 share: an encoder and a decoder of blocks by name."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from students.networks.edm_layers import Block, Style
from students.networks.network import Network


class EDMUNet(Network):
    """x: (N, C, H, W). t: log(sigma) / 4.

    A block at resolution r is called `rxr_...`. Features are taken in the middle and after the last block of each
    resolution of the decoder.
    """

    def add_blocks(
        self,
        img_resolution: int,
        stem: nn.Module,
        block: Callable[..., nn.Module],
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        every_attention: bool,
    ) -> None:
        """Make `enc`, which begins with `stem`, and `dec`.

        block: (cin, cout, decoder=..., resample=..., attention=...) -> a block, called with a state and an embedding.
        every_attention: all blocks of the decoder at a resolution with attention have it, rather than the last.
        """
        encoder, decoder = partial(block, decoder=False), partial(block, decoder=True)
        resolutions = [img_resolution >> level for level in range(len(widths))]
        self.ends = "_in1", f"_block{num_blocks}"
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc[f"{img_resolution}x{img_resolution}_conv"] = stem
        width: int = stem.out_channels  # type: ignore[assignment]
        skips = [width]
        for r, wider in zip(resolutions, widths, strict=True):
            if r != img_resolution:
                self.enc[f"{r}x{r}_down"] = encoder(width, width, resample="down")
                self.add_to_encoder(r, width)
                skips.append(width)
            for i in range(num_blocks):
                self.enc[f"{r}x{r}_block{i}"] = encoder(width, wider, attention=r in attn_resolutions)
                width = wider
                skips.append(width)
        for r, wider in zip(resolutions[::-1], widths[::-1], strict=True):
            if r == resolutions[-1]:
                self.dec[f"{r}x{r}_in0"] = decoder(width, width, attention=True)
                self.dec[f"{r}x{r}_in1"] = decoder(width, width)
            else:
                self.dec[f"{r}x{r}_up"] = decoder(width, width, resample="up")
            for i in range(num_blocks + 1):
                attention = r in attn_resolutions and (every_attention or i == num_blocks)
                self.dec[f"{r}x{r}_block{i}"] = decoder(width + skips.pop(), wider, attention=attention)
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
                    yield blocks, name, block.out_channels  # type: ignore[misc]

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """What a block of the decoder takes, of the last block and of the encoder."""
        return torch.cat([x, skip], dim=1)

    def through(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What comes out of encoder and decoder, and the features."""
        skips: list[Tensor] = []
        features: list[Tensor] = []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("_conv") else module(x, emb)
            skips.append(x)
        for name in self.dec:
            x = self.decode(name, x, skips, emb, features)
        return x, features

    def decode(self, name: str, x: Tensor, skips: list[Tensor], emb: Tensor, features: list[Tensor]) -> Tensor:
        """One block of the decoder; takes a skip if it needs one, and keeps what comes out if it is a feature."""
        x = self.dec[name](self.join(x, skips.pop()) if "_block" in name else x, emb)
        if name.endswith(self.ends):
            features.append(x)
        return x

    def one_hot(self, condition: Tensor | None, like: Tensor, classes: int) -> Tensor:
        """(N, classes), zero for no class."""
        if condition is None:
            return like.new_zeros(len(like), classes)
        return (condition[:, None] == torch.arange(classes, device=like.device)).to(like.dtype)


def residual_block(emb_channels: int, style: Style) -> Callable[..., nn.Module]:
    """For `add_blocks`: the same in the encoder and the decoder."""

    def block(cin: int, cout: int, decoder: bool, **options) -> Block:
        return Block(cin, cout, emb_channels, style, **options)

    return block
