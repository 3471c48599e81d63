"""Writing a report's files: whole or not at all, and not again when nothing changed."""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from students import files
from students.errors import FewstepError

PIPE = re.compile(r"(?<!\\)\|")


def write_atomically(path: Path, content: bytes) -> Path:
    """Write under a temporary name, then rename. Raises FewstepError if the folder cannot be written."""
    try:
        return files.write_atomically(path, content)
    except OSError as error:
        raise FewstepError(f"cannot write {path}: {error.strerror}; give another folder with --out") from error


def is_current(path: Path, inputs: str) -> bool:
    """Whether a picture is there and carries `inputs`, the digest of what it was drawn from, in its metadata."""
    try:
        return inputs.encode() in path.read_bytes()
    except OSError:
        return False


def png(picture, inputs: str) -> bytes:
    """A PIL image as PNG, with `inputs` in its metadata."""
    from PIL.PngImagePlugin import PngInfo

    info, content = PngInfo(), io.BytesIO()
    info.add_text("Inputs", inputs)
    picture.save(content, "PNG", optimize=True, pnginfo=info)
    return content.getvalue()


def safe_name(name: str) -> str:
    """A student's name as a file name: `diffusers:DDIMScheduler` -> `diffusers-DDIMScheduler`."""
    return re.sub(r"[^\w.,=+-]", "-", name).lstrip(".")


def markdown_table(header: Sequence, rows: Iterable[Sequence]) -> list[str]:
    """The lines of a table of GitHub; a pipe within a cell is escaped, unless it is already."""
    lines = ["| " + " | ".join(PIPE.sub(r"\\|", str(cell)) for cell in row) + " |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]
