"""Image files to uint8 (C, H, W), by a rule that is stated: what it does not name is refused with the file's name."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from students.errors import FewstepError, one_line

FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode(content: bytes, name: str, channels: int, size: int | None = None, by: str = "none") -> np.ndarray:
    """One image file as (channels, H, W), resized to `size` where that is given.

    RGB and grey with 8 bits are taken as they are, black and white as 0 and 255, a palette by its colours, and alpha
    is dropped where every pixel is opaque. Grey is repeated where three channels are asked for. Raises FewstepError for
    a damaged file, 16 bits, transparency, several frames, other modes (CMYK ...), and colour where one channel is.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise FewstepError(f"{name} has {frames} frames: bring one image a file")
            if image.mode.startswith("I") or any("16" in str(tile[3]) for tile in image.tile):
                raise FewstepError(f"{name} has 16 bits a channel: convert it to 8")
            image.load()
            plain = _plain(image, name)
    except FewstepError:
        raise
    except UnidentifiedImageError as error:  # its text names an address in memory
        what = "no image, or is damaged" if content else "empty"
        raise FewstepError(f"{name} is {what}: get the file again") from error
    except Exception as error:  # Pillow raises many kinds, all about the same file
        raise FewstepError(f"{name} is no image, or is damaged ({one_line(error)})") from error
    if plain.mode == "RGB" and channels == 1:
        raise FewstepError(f"{name} is in colour, the task's images are grey")
    if plain.mode == "L" and channels == 3:
        plain = plain.convert("RGB")
    if size:
        plain = _resized(plain, name, size, by)
    pixels = np.asarray(plain)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _plain(image: Image.Image, name: str) -> Image.Image:
    """The image as "L" or "RGB"."""
    if "transparency" in image.info or image.mode in ("LA", "RGBA", "PA"):
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise FewstepError(f"{name} has transparent pixels: put it on a background")
        return image.convert(image.mode.removesuffix("A"))
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "P":
        return image.convert("RGB")
    if image.mode not in ("L", "RGB"):
        raise FewstepError(f"{name} is of mode {image.mode}: bring grey or RGB with 8 bits")
    return image


def _resized(image: Image.Image, name, size: int, by: str) -> Image.Image:
    if image.width != image.height:
        raise FewstepError(f"{name} is {image.width} x {image.height}: only square images are resized; crop it")
    return image if image.width == size else image.resize((size, size), FILTERS[by])


def resized(batch: Tensor, path: Path, size: int, by: str) -> Tensor:
    """The same of uint8 images (n, C, H, W) of an array."""
    if batch.shape[2:] == (size, size):
        return batch
    rows = []
    for image in batch.permute(0, 2, 3, 1).numpy():
        whole = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        pixels = torch.from_numpy(np.array(_resized(whole, path, size, by)))
        rows.append(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))
    return torch.stack(rows)
