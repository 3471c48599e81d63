"""Cards: what is known of public checkpoints. One YAML file a family (a paper or a repository), one entry a checkpoint.

`load_card("edm:uncond-vp")` reads one. Facts come from the sources that a card names; a hash is given only where it is
published. Nothing is shipped: files are looked for, and downloaded to, `models/<family>/<name>/` below the data root
(students/datafiles.py). Importing this module imports no torch.
"""

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from students.datafiles import DataFile, data_root, file_hash
from students.errors import FewstepError, unknown

FOLDER = Path(__file__).parent
FILE = "file"  # the family of checkpoints of one's own: file:PATH
MODELS = "models"  # the folder of checkpoints below the data root
KINDS = ("teacher", "consistency", "generator")
FORMATS = ("edm_pickle", "edm_state_dict", "openai", "diffusers", "safetensors")
INDEX = ".index.json"  # how the list of the files of a sharded checkpoint ends
WEIGHT_SUFFIXES = (".json", ".safetensors", ".bin")  # what a folder of diffusers is read from


@dataclass(frozen=True)
class Card:
    """A public checkpoint; the keys of its YAML entry are these fields without family and name.

    kind: "teacher", a denoiser for any solver; "consistency", a consistency model; "generator", D(sigma z, sigma) for
        one sigma.
    format: how the files are read (students/models/public.py). files: path below the card's folder -> url, or null
        where `page` must be opened by hand. sha256: path -> hash, where one is published. network: arguments of the
        architecture where the file does not carry them.
    shape, classes: of a sample; classes is null for an unconditional model. sigma: the range of noise levels of a
        variance exploding schedule, or null where the file says which schedule it is.
    grid, solver: a teacher's defaults. levels: of the other kinds, steps -> the noise levels of its times, the last one
        the data end; its keys are the supported steps. options: of the solver.
    licence, page, source: the terms, where it is published, where `published` (NFE and FID) and the settings were read.
    confirmed: false where something could not be read at the source; `source` says what.
    """

    family: str
    name: str
    summary: str
    kind: str
    format: str
    shape: tuple[int, ...]
    classes: int | None
    files: dict[str, str | None]
    licence: str
    page: str
    source: str
    published: tuple[dict, ...]
    sha256: dict[str, str] | None = None
    sigma: tuple[float, ...] | None = None
    grid: str | None = None
    solver: str | None = None
    levels: dict[int, list] | None = None
    options: dict | None = None
    network: dict | None = None
    confirmed: bool = True

    @property
    def spec(self) -> str:
        return f"{self.family}:{self.name}"

    @property
    def folder(self) -> Path:
        return data_root() / MODELS / self.family / self.name

    def data_files(self) -> list[DataFile]:
        what = f"{self.spec} ({self.summary}; see {self.page})"
        hashes = self.sha256 or {}
        return [
            DataFile(f"{MODELS}/{self.family}/{self.name}/{name}", what, url or "", hashes.get(name, ""))
            for name, url in self.files.items()
        ]

    def fetch(self) -> list[Path]:
        """Its files, downloaded where they are missing and a network is there; raises MissingFile."""
        return [file.fetch() for file in self.data_files()]


def families() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def all_cards() -> list[Card]:
    return [card for family in families() for card in load_family(family).values()]


def load_card(spec: str) -> Card:
    """The card `family:name`; raises FewstepError with the nearest name if there is none."""
    family, _, name = spec.partition(":")
    if family not in families():
        raise unknown("family of checkpoints", family, families())
    cards = load_family(family)
    if name not in cards:
        raise unknown(f"checkpoint of {family!r}", name, cards)
    return cards[name]


@functools.cache
def load_family(family: str) -> dict[str, Card]:
    """The cards of a family by name."""
    import yaml

    path = FOLDER / f"{family}.yaml"
    content = yaml.safe_load(path.read_text())
    defaults = content.get("defaults", {})
    return {name: make_card(family, name, defaults | entry, path) for name, entry in content["cards"].items()}


def make_card(family: str, name: str, entry: dict, path: Path) -> Card:
    """A card from its YAML entry; raises FewstepError for a key that is unknown, missing or does not fit the others."""
    where = f"{path}: card {name!r}"
    known = {field.name: field for field in fields(Card) if field.name not in ("family", "name")}
    for key in entry:
        if key not in known:
            raise FewstepError(f"{where}: {unknown('key', str(key), known)}")
    for key, field in known.items():
        if key not in entry and field.default is MISSING:
            raise FewstepError(f"{where}: key {key!r} is missing")
    values = {key: _tuple(value, known[key].type) for key, value in entry.items()}
    card = Card(family, name, **values)
    for key, allowed in (("kind", KINDS), ("format", FORMATS)):
        if getattr(card, key) not in allowed:
            raise FewstepError(f"{where}: {unknown(key, getattr(card, key), allowed)}")
    if card.kind == "teacher" and not (card.grid and card.solver):
        raise FewstepError(f"{where}: a teacher needs 'grid' and 'solver'")
    if card.kind != "teacher":
        if not card.levels:
            raise FewstepError(f"{where}: a {card.kind} needs 'levels', steps -> noise levels")
        for steps, levels in card.levels.items():
            if len(levels) != steps + 1 or levels != sorted(levels, reverse=True):
                raise FewstepError(f"{where}: {steps} steps need {steps + 1} decreasing levels, got {levels}")
    return card


def _tuple(value, expected):
    return tuple(value) if isinstance(value, list) and "tuple" in str(expected) else value


def checkpoint_files(model: str) -> list[Path]:
    """The files of a model, `family:name` or `file:PATH`, fetched where that is needed and possible.

    PATH is a file, or a folder in the format of diffusers. Raises MissingFile or FewstepError.
    """
    family, _, name = model.partition(":")
    if family != FILE:
        return load_card(model).fetch()
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((folder / "config.json").is_file() for folder in (path, path / "unet")):
            raise FewstepError(f"{path} holds no checkpoint: name a folder of diffusers, or a file")
        return sorted(file for file in path.rglob("*") if file.suffix in WEIGHT_SUFFIXES)
    if not path.is_file():
        raise FewstepError(f"no checkpoint at {path}: file:PATH names a file, or a folder in the format of diffusers")
    if path.name.endswith(INDEX):  # it names the files beside it
        return sorted(file for file in path.parent.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    return [path]


def weights_hash(model: str | None) -> str | None:
    """The sha256 of a model's file, or over those of its files; None for no model. `model` as in `checkpoint_files`.

    Part of a cell's identity, and the record of what was downloaded where no hash is published.
    """
    if model is None:
        return None
    hashes = [file_hash(path) for path in checkpoint_files(model)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def model_identity(model: str) -> dict:
    """What a model's numbers depend on, as JSON: its weights, and what its card says of how they are sampled.

    Not where a file of one's own lies.
    """
    identity: dict = {"weights": weights_hash(model)}
    if not model.startswith(f"{FILE}:"):
        card = load_card(model)
        identity |= {key: getattr(card, key) for key in ("kind", "format", "sigma", "grid", "network")}
        identity["levels"] = {str(steps): levels for steps, levels in (card.levels or {}).items()}
    return identity


def check_fits(model: str, shape: Iterable[int], classes: int | None) -> None:
    """Raise FewstepError if a card's model makes other samples than a task's; a `file:` is known once it is loaded."""
    if model.startswith(f"{FILE}:"):
        return
    card = load_card(model)
    if card.shape != tuple(shape):
        raise FewstepError(f"{model} makes samples {card.shape}, the task asks for {tuple(shape)}: take another task")
    if card.classes != classes:
        has, asks = (f"{n} classes" if n else "no classes" for n in (card.classes, classes))
        raise FewstepError(f"{model} has {has}, the task {asks}: take a task, or a checkpoint, that matches")


def listing() -> list[tuple[str, str]]:
    """(spec, one line on it) of every card, for `python -m students list`."""
    lines = []
    for card in all_cards():
        figures = ", ".join(f"FID {figure['fid']} at NFE {figure['nfe']}" for figure in card.published)
        doubt = "" if card.confirmed else " (unconfirmed)"
        lines.append((card.spec, f"{card.kind}: {card.summary}" + (f"; published {figures}{doubt}" if figures else "")))
    return lines
