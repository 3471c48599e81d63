"""References by name: cards of statistics that others publish, or a file of one's own. Neither imports torch.

A distance to one of them is a column of its own, `fid_to_edm/cifar10-32x32`: two references of one data set give two
columns, never one.
"""

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bench.protocols import FOLDER, REFERENCES, Protocol
from bench.yaml_files import filled, read_mapping
from students.datafiles import DataFile, file_hash
from students.errors import FewstepError, unknown

SUFFIXES = (".npz", ".pkl")
IMAGES = "arr_0"  # as guided-diffusion's files have them
DIGITS = 6  # of a file's hash in the name of its columns


@dataclass(frozen=True)
class Card:
    """Published statistics. file: its name in `references` below the data root. data: of what.

    extractors: whose features it has moments of. sha256: where one is published. source: where this was read.
    """

    file: str
    url: str
    data: str
    extractors: tuple[str, ...]
    source: str
    sha256: str = ""


@dataclass(frozen=True)
class ReferenceFile:
    """A file that is there. name: of a card, or `<stem>-<hash>` of one's own. extractors: None where nobody says."""

    name: str
    path: Path
    sha256: str
    source: str
    extractors: tuple[str, ...] | None = None

    def check(self, extractor: str) -> None:
        """Raise FewstepError if its card says that it has no moments of the extractor."""
        if self.extractors is not None and extractor not in self.extractors:
            raise FewstepError(
                f"reference {self.name} is of {' and '.join(self.extractors)}, not of {extractor}: take another "
                "reference, or --extractor"
            )

    @property
    def has_images(self) -> bool:
        """Whether the images that its statistics are of lie in the file too."""
        return zipfile.is_zipfile(self.path) and f"{IMAGES}.npy" in zipfile.ZipFile(self.path).namelist()

    def column(self, column: str) -> str:
        return f"{column}_to_{self.name}"

    def recorded(self) -> dict[str, str]:
        return {"name": self.name, "sha256": self.sha256, "source": self.source}


@functools.cache
def cards() -> dict[str, Card]:
    """All cards by name."""
    path = FOLDER / f"{REFERENCES}.yaml"
    return {name: filled(Card, content, path) for name, content in read_mapping(path, "reference").items()}


def find_reference(name: str) -> ReferenceFile:
    """A card's file, downloaded where it is missing and a network is there, or the file of that path.

    Raises FewstepError for an unknown name and a path that is not there, MissingFile for a card's file that is missing.
    """
    if name in cards():
        card = cards()[name]
        path = DataFile(f"references/{card.file}", f"the reference {name}", card.url, card.sha256).fetch()
        return ReferenceFile(name, path, file_hash(path), card.source, card.extractors)
    path = Path(name).expanduser()
    if path.suffix not in SUFFIXES:
        raise unknown("reference", name, [*cards(), *(f"PATH{suffix}" for suffix in SUFFIXES)])
    if not path.is_file():
        raise FewstepError(f"there is no reference file {path}: give its path, or one of {', '.join(cards())}")
    sha256 = file_hash(path)
    return ReferenceFile(f"{path.stem}-{sha256[:DIGITS]}", path, sha256, "a file of one's own")


def reference_of(protocol: Protocol, data: str) -> str | None:
    """The card that a protocol names for a data set, or None where it names none at all.

    Raises FewstepError where it has cards of other data sets only.
    """
    found = [name for name in protocol.references if cards()[name].data == data]
    if not found and protocol.references:
        known = ", ".join(sorted({cards()[name].data for name in protocol.references}))
        raise FewstepError(
            f"protocol {protocol.name!r} has no reference of {data} (it has those of {known}): give --reference FILE"
        )
    return found[0] if found else None
