"""Files that do not ship with the package: where they lie, where they come from, whether they are the right ones.

They are looked for below one folder, the data root: `--data-root`, else the variable FEWSTEP_DATA, else
~/.cache/fewstep. Importing this module imports no torch.
"""

import argparse
import contextlib
import functools
import hashlib
import os
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from students.errors import FewstepError

VARIABLE = "FEWSTEP_DATA"
TIMEOUT_SECONDS = 20


class MissingFile(FewstepError):
    """A file is not there and cannot be downloaded, or is not the one it should be."""


def data_root() -> Path:
    """The folder named by FEWSTEP_DATA, which `--data-root` sets, else ~/.cache/fewstep."""
    return Path(os.environ.get(VARIABLE) or _cache())


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """The option --data-root of a command that reads such files."""
    text = f"folder of data and weights that do not ship (default: ${VARIABLE}, or ~/.cache/fewstep)"
    parser.add_argument("--data-root", type=Path, metavar="DIR", help=text)


def apply_data_root(arguments: argparse.Namespace) -> None:
    """Make the folder given by --data-root the data root; raises FewstepError if it is not there."""
    folder = getattr(arguments, "data_root", None)
    if folder is None:
        return
    if not folder.is_dir():
        raise FewstepError(f"--data-root {folder} is no folder: create it, or name the one that holds the files")
    os.environ[VARIABLE] = str(folder)


def reference_folder() -> Path:
    """Where statistics of real data are kept: the user's cache, as a data root may be read-only."""
    return _cache() / "reference"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep"


@dataclass(frozen=True)
class DataFile:
    """One file. name: its path below the data root. what: in a few words. url: where it is published, if it is.

    sha256: of the file, or how it begins; empty where nobody has published it.
    """

    name: str
    what: str
    url: str = ""
    sha256: str = ""

    @property
    def path(self) -> Path:
        return data_root() / self.name

    def problem(self) -> str:
        """Why the file cannot be used, and what to do about it; empty if it can. Reads no network."""
        path = self.path
        source = f"download {self.url}" if self.url else "get it"
        if not path.is_file():
            return f"{self.what} is missing: {source} and put it at {path} (--data-root or {VARIABLE} name the folder)"
        if self.sha256 and not file_hash(path).startswith(self.sha256):
            return (
                f"{path} is not {self.what}, or is cut short (its sha256 begins {file_hash(path)[:8]}, "
                f"not {self.sha256[:8]}): {source} again"
            )
        return ""

    def fetch(self) -> Path:
        """The path of the file, downloaded if it is missing and a network is there; raises MissingFile."""
        if not self.path.exists() and self.url:
            with contextlib.suppress(OSError):  # `problem` says what to download and where to put it
                self._download()
        if problem := self.problem():
            raise MissingFile(problem)
        return self.path

    def _download(self) -> None:
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        with urllib.request.urlopen(self.url, timeout=TIMEOUT_SECONDS) as response:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = int(response.headers.get("Content-Length", 0)) or None
            try:
                with (
                    open(part, "wb") as file,
                    tqdm.wrapattr(file, "write", total=size, desc=f"downloading {self.path.name}") as sink,
                ):
                    shutil.copyfileobj(response, sink, 2**20)
                part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """The sha256 of a file, computed once while its size and time of change stay the same."""
    status = path.stat()
    return _file_hash(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _file_hash(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
