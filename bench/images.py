"""Images that somebody brings: a folder, a zip, an array or a tensor. They are read in batches, never all at once.

Everything is read once before it is measured, so that what is wrong is known by name before long work: `Images.content`
goes through all of it and gives count, shape and hash. The hash is of the pixels: the same images in another container
are the same content.
"""

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.images_decoding import decode, resized
from bench.measure.representations import to_uint8
from students.errors import FewstepError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CHANNELS = (1, 3)
FLOATS = ("float16", "bfloat16", "float32", "float64")
CHUNK = 256  # images read at a time where nothing else asks
NAMED = 3  # files at most that an error names
SLACK = 1e-3  # of a stated range, relative to its width


@dataclass(frozen=True)
class Rule:
    """How what is found becomes uint8 (channels, H, W).

    channels: 3 repeats grey images; 1 refuses those in colour. size: side that square images of another size are
    resized to, by `filter` of Pillow (antialiased, in 8 bits); None takes them as they are. limits: the values of
    floats that mean black and white; None refuses floats. rounding: of floats, see `to_uint8`.
    """

    channels: int = 3
    size: int | None = None
    filter: str = "none"
    limits: tuple[float, float] | None = None
    rounding: str = "round"


@dataclass(frozen=True)
class Content:
    """count: images. shape: (C, H, W) of each. hash: sha256 of shape and pixels."""

    count: int
    shape: tuple[int, int, int]
    hash: str


class Images:
    """A set of images of one size: uint8 batches (n, C, H, W), in a fixed order, as often as they are asked for.

    floats: whether they were floats, which the rule has rounded.
    """

    floats = False

    def __init__(self, path: Path, rule: Rule):
        self.path, self.rule = path, rule

    def batches(self, size: int) -> Iterator[Tensor]:
        """Raises FewstepError that names what is damaged, of another size, or out of range."""
        raise NotImplementedError

    @cached_property
    def content(self) -> Content:
        """Read all of it once; raises as `batches` does, and for uint8 images that look like floats of [0, 1]."""
        return _content(self, self.batches(CHUNK))


class FileImages(Images):
    """Image files by name, of a folder or of a zip."""

    def __init__(self, path: Path, rule: Rule, names: list[str], read: Callable[[str], bytes], left_out: int):
        super().__init__(path, rule)
        self.names, self.read, self.left_out = names, read, left_out

    def _image(self, name: str) -> np.ndarray:
        try:
            content = self.read(name)
        except Exception as error:  # zipfile raises many kinds, for checksums, passwords and methods
            raise FewstepError(f"{name} cannot be read ({one_line(error)})") from error
        return decode(content, name, self.rule.channels, self.rule.size, self.rule.filter)

    def batches(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self.names), size):
            yield torch.from_numpy(np.stack([self._image(name) for name in self.names[start : start + size]]))

    @cached_property
    def content(self) -> Content:
        """As of other images; one error names all that is wrong, up to NAMED files."""
        sizes, problems = {}, []
        for name in self.names:
            try:
                sizes[name] = self._image(name).shape[1:]
            except FewstepError as error:
                problems.append(str(error))
        if sizes:
            usual = Counter(sizes.values()).most_common(1)[0][0]
            problems += [
                f"{name} is {w} x {h}, most are {usual[1]} x {usual[0]}" for name, (h, w) in sizes.items()
                if (h, w) != usual
            ]  # fmt: skip
        if problems:
            more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
            raise FewstepError(
                f"{len(problems)} of {len(self.names)} images of {self.path} cannot be taken: "
                f"{'; '.join(problems[:NAMED])}{more}"
            )
        return super().content


class ArrayImages(Images):
    """An array (N, H, W, C) or (N, C, H, W), uint8 or floats of the rule's range, read by `chunks(size)`."""

    def __init__(self, path: Path, rule: Rule, shape: tuple[int, ...], dtype: str, chunks: Callable):
        super().__init__(path, rule)
        self.chunks = chunks
        self.last = channels_last(shape, path)
        if shape[0] < 2:
            raise FewstepError(f"{path} holds {shape[0]} images: at least two are needed")
        channels = shape[3 if self.last else 1]
        if channels > rule.channels:
            raise FewstepError(f"{path} holds images in colour, the task's are grey: bring grey ones")
        if 0 in shape:
            raise FewstepError(f"{path} holds an array of shape {shape}, without a pixel: bring images")
        self.floats = dtype in FLOATS
        if not self.floats and dtype != "uint8":
            raise FewstepError(f"{path} holds {dtype}: images must be uint8 from 0 to 255, or floats with --range")
        if self.floats and rule.limits is None:
            raise FewstepError(
                f"{path} holds {dtype}, whose range nobody has stated: say it with --range, such as --range -1 1 or "
                "--range 0 1, or bring uint8"
            )
        if not self.floats and rule.limits is not None:
            raise FewstepError(f"{path} holds uint8, which go from 0 to 255: leave --range out")

    def batches(self, size: int) -> Iterator[Tensor]:
        for chunk in self.chunks(size):
            batch = torch.as_tensor(chunk)
            batch = self._levels(batch) if self.floats else batch
            batch = batch.permute(0, 3, 1, 2) if self.last else batch
            batch = batch.expand(-1, self.rule.channels, -1, -1).contiguous()
            yield resized(batch, self.path, self.rule.size, self.rule.filter) if self.rule.size else batch

    def _levels(self, batch: Tensor) -> Tensor:
        low, high = self.rule.limits  # type: ignore[misc]
        if not batch.isfinite().all():
            raise FewstepError(f"{self.path} holds NaN or infinite values: leave those images out")
        smallest, largest = (bound.item() for bound in batch.aminmax())
        if smallest < low - SLACK * (high - low) or largest > high + SLACK * (high - low):
            raise FewstepError(
                f"{self.path} holds values from {smallest:.4g} to {largest:.4g}, outside the stated range of {low:g} "
                f"to {high:g}: state the right one with --range, or clip them"
            )
        if (low, high) != (-1, 1):
            batch = (batch.double() - low) * (2 / (high - low)) - 1
        return to_uint8(batch, self.rule.rounding)


def _content(images: Images, batches: Iterable[Tensor]) -> Content:
    seen, count, low, high, shape = hashlib.sha256(), 0, 255, 0, None
    for batch in batches:
        if shape is None:
            shape = tuple(batch.shape[1:])
            seen.update(repr(shape).encode())
        low, high = min(low, int(batch.min())), max(high, int(batch.max()))
        count += len(batch)
        seen.update(batch.numpy().tobytes())
    if high < 2:
        raise FewstepError(f"{images.path}: images must go from 0 to 255, and these hold nothing above {high}")
    limits = images.rule.limits
    if limits and limits[0] < 0 < limits[1] and low >= 127:
        raise FewstepError(
            f"{images.path} holds nothing below 0, and the stated range begins at {limits[0]:g}: if black is 0, say "
            f"--range 0 {limits[1]:g}"
        )
    return Content(count, shape, seen.hexdigest())  # type: ignore[arg-type]


def channels_last(shape: tuple[int, ...], path: Path) -> bool:
    """Whether an array is (N, H, W, C) rather than (N, C, H, W); raises FewstepError where its shape does not tell."""
    if len(shape) != 4:
        raise FewstepError(f"{path} holds an array of shape {shape}: images are (N, H, W, C) or (N, C, H, W)")
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first and last:
        raise FewstepError(
            f"{path} holds an array of shape {shape}, which could be (N, C, H, W) or (N, H, W, C): bring PNG files"
        )
    if not first and not last:
        raise FewstepError(
            f"{path} holds an array of shape {shape}: images have 1 channel or 3, first or last, and no alpha"
        )
    return last


def open_images(path: Path, rule: Rule) -> Images:
    """Images below a folder, of a .zip, .npz, .npy, .pt, .pth or .safetensors; no pixel is read yet.

    Raises FewstepError for a path that is not there, another kind of file, and one without images.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        names = [str(each.relative_to(path)) for each in _below(path)]
        return _files(path, rule, names, lambda name: (path / name).read_bytes())
    if not path.is_file():
        raise FewstepError(f"there is no {path}: give a folder of images, or a {', '.join(['.zip', *ARRAYS])} file")
    if path.suffix.lower() == ".zip":
        return _zip(path, rule)
    if path.suffix.lower() not in ARRAYS:
        raise FewstepError(
            f"{path} is no kind of file that holds images here: bring a folder, or {', '.join(['.zip', *ARRAYS])}"
        )
    from bench import images_arrays

    shape, dtype, chunks = getattr(images_arrays, ARRAYS[path.suffix.lower()])(path)
    return ArrayImages(path, rule, shape, dtype, chunks)


ARRAYS = {
    ".npz": "open_npz",
    ".npy": "open_npy",
    ".pt": "open_torch",
    ".pth": "open_torch",
    ".safetensors": "open_safetensors",
}


def _below(folder: Path) -> Iterator[Path]:
    """The files below a folder; of folders that links lead to again, as in a loop, the first time."""
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if os.path.realpath(Path(here, name)) not in seen]
        seen |= {os.path.realpath(here), *(os.path.realpath(Path(here, name)) for name in folders)}
        yield from (path for name in files if (path := Path(here, name)).is_file())


def _zip(path: Path, rule: Rule) -> Images:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise FewstepError(f"{path} is no zip, or is cut short ({error}): get the file again") from error
    return _files(path, rule, [info.filename for info in archive.infolist() if not info.is_dir()], archive.read)


def _files(path: Path, rule: Rule, names: list[str], read: Callable[[str], bytes]) -> Images:
    if rule.limits is not None:
        raise FewstepError(f"{path} holds image files, whose values go from 0 to 255: leave --range out")
    seen = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)]
    images = sorted(name for name in seen if name.lower().endswith(SUFFIXES))
    if len(images) < 2:
        what = "no image" if not images else "one image alone"
        raise FewstepError(f"there is {what} in {path} ({', '.join(SUFFIXES)}), among {len(seen)} files")
    return FileImages(path, rule, images, read, len(seen) - len(images))
