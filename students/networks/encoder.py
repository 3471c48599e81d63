"""A small image encoder, in whose feature space students may be trained; never the one in which they are measured."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, silu

from students.errors import FewstepError
from students.networks.network import plain


class Encoder(nn.Module):
    """Images (N, *shape) in [-1, 1] -> hidden maps (N, C, H, W), the deepest first, one of each of `channels`.

    Residual blocks with group normalisation; each but the first sees half of the resolution of the one before.
    classes: of the linear classifier that it is trained with.
    """

    def __init__(self, shape: Sequence[int], classes: int, channels: Sequence[int] = (8, 16, 24)):
        super().__init__()
        self.config = plain({"shape": shape, "classes": classes, "channels": channels})
        self.shape = tuple(shape)
        widths = [shape[0], *channels]
        self.inner = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, c), nn.SiLU(), nn.Conv2d(c, c, 3, padding=1)) for c in channels
        )
        self.classes = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raises FewstepError for images of another shape."""
        if images.shape[1:] != self.shape:
            raise FewstepError(
                f"this encoder reads images {self.shape}, not {tuple(images.shape[1:])}: train one for them"
            )
        h = images
        hidden: list[Tensor] = []
        for inner, block in zip(self.inner, self.blocks, strict=True):
            h = inner(h if not hidden else avg_pool2d(h, 2))
            h = h + block(h)
            hidden.insert(0, h)
        return hidden

    def logits(self, images: Tensor) -> Tensor:
        return self.classes(silu(self(images)[0]).mean((2, 3)))
