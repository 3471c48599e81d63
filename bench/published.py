"""What papers print, as data: `leaderboards/published.csv`, a row a figure, with where it was read.

`quoted`: the paper took the figure from another one. `confirmed`: it was read at a source, not only remembered.
Importing this module imports neither torch nor pandas.
"""

import csv
import math
import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from students.errors import FewstepError, unknown

FILE = Path(__file__).parents[1] / "leaderboards" / "published.csv"


@dataclass(frozen=True)
class Benchmark:
    """What a published figure is measured on. task: the task here that measures it. needs: what that would take."""

    title: str
    needs: str
    task: str | None = None


_SD = "Stable Diffusion 1.5, and captions and images of MS-COCO 2014"
BENCHMARKS = {
    "cifar10-uncond": Benchmark("CIFAR-10, unconditional", "CIFAR-10", "cifar10"),
    "cifar10-cond": Benchmark("CIFAR-10, class-conditional", "CIFAR-10", "cifar10-cond"),
    "imagenet64-cond": Benchmark("ImageNet 64x64", "ImageNet at 64x64", "imagenet64"),
    "imagenet256-cond": Benchmark("ImageNet 256x256", "ImageNet at 256x256 and an autoencoder of latents"),
    "imagenet256-guided": Benchmark("ImageNet 256x256, classifier guidance", "ImageNet at 256x256, and ADM"),
    "imagenet512-cond": Benchmark("ImageNet 512x512", "ImageNet at 512x512 and an autoencoder of latents"),
    "ffhq64": Benchmark("FFHQ 64x64", "FFHQ at 64x64"),
    "afhqv2-64": Benchmark("AFHQv2 64x64", "AFHQv2 at 64x64"),
    "afhqv2-cats": Benchmark("AFHQv2 cats", "the cats of AFHQv2"),
    "lsun-bedroom256": Benchmark("LSUN bedroom 256x256", "LSUN's bedrooms at 256x256"),
    "lsun-cat256": Benchmark("LSUN cat 256x256", "LSUN's cats at 256x256"),
    "coco30k-sd15": Benchmark("COCO 2014, 30,000 captions, SD 1.5", _SD),
    "coco30k-sd21": Benchmark("COCO 2014, 30,000 captions, SD 2.1", _SD.replace("1.5", "2.1")),
    "coco10k-sdxl": Benchmark("COCO 2014, 10,000 captions, SDXL", "SDXL, and captions and images of MS-COCO 2014"),
    "coco5k-sd15": Benchmark("COCO 2017, 5,000 captions, SD", _SD.replace("2014", "2017")),
    "coco5k-sdxl": Benchmark("COCO 2017, 5,000 captions, SDXL", "SDXL, and captions and images of MS-COCO 2017"),
}
FAMILIES = (
    "adversarial", "distillation-distribution", "distillation-trajectory", "from-scratch-few-step", "gan", "ode-solver",
    "sde-sampler", "teacher",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A row of the file; numbers that the source does not give are None. line: of the file."""

    line: int
    benchmark: str
    method: str
    family: str
    nfe: float | None
    steps: float | None
    fid: float
    inception_score: float | None
    precision: float | None
    recall: float | None
    clip_score: float | None
    latency_s: float | None
    guidance_scale: float | None
    paper: str
    arxiv: str
    table: str
    quoted: bool
    confirmed: bool
    seen_in: str
    note: str

    @property
    def source(self) -> str:
        """`sCM Table 1 (quoted)`"""
        text = f"{self.paper} {self.table}".strip()
        return f"{text} (quoted)" if self.quoted else text


COLUMNS = tuple(field.name for field in fields(Published))[1:]
# Numbers: the smallest and the largest possible value; those of WHOLE have no fraction.
LIMITS = {
    "nfe": (1, 10_000),
    "steps": (1, 10_000),
    "fid": (0, 1_000),
    "inception_score": (1, 1_000),
    "precision": (0, 1),
    "recall": (0, 1),
    "clip_score": (0, 1),
    "latency_s": (0, 10_000),
    "guidance_scale": (0, 100),
}
WHOLE = ("steps",)
METRICS = {
    "fid": "FID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "clip_score": "CLIP",
    "latency_s": "latency (s)",
}


@cache
def read(path: Path = FILE) -> tuple[Published, ...]:
    """All rows, checked. Raises FewstepError, which names the line and the column, for a value that cannot be."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if tuple(header) != COLUMNS:
                raise FewstepError(f"{path}, line 1: the columns must be {', '.join(COLUMNS)}")
            rows = [_row(values, f"{path}, line {reader.line_num}", reader.line_num) for values in reader]
    except OSError as error:
        raise FewstepError(f"cannot read the published figures {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FewstepError(f"{path} is not readable as CSV: {error}") from error
    seen: dict[tuple, int] = {}
    for row in rows:
        if (first := seen.setdefault(_key(row), row.line)) != row.line:
            raise FewstepError(f"{path}, line {row.line}: the figure of line {first} is there again: leave one out")
    return tuple(rows)


def _key(row: Published) -> tuple:
    """What tells two figures of a table apart."""
    return (row.benchmark, row.method, row.nfe, row.steps, row.guidance_scale, row.paper, row.table, row.note)


def _row(values: list[str], where: str, line: int) -> Published:
    if len(values) != len(COLUMNS):
        raise FewstepError(f"{where}: {len(values)} values for {len(COLUMNS)} columns")
    text = dict(zip(COLUMNS, values, strict=True))
    numbers = {name: _number(text[name], name, f"{where}, column {name}") for name in LIMITS}
    if numbers["fid"] is None:
        raise FewstepError(f"{where}, column fid: must not be empty")
    for name in ("quoted", "confirmed"):
        if text[name] not in ("yes", "no"):
            raise FewstepError(f"{where}, column {name}: must be yes or no, got {text[name]!r}")
    for name, known in (("benchmark", BENCHMARKS), ("family", FAMILIES)):
        if text[name] not in known:
            raise FewstepError(f"{where}, column {name}: {unknown(name, text[name], known)}")
    for name in ("method", "paper"):
        if not text[name].strip():
            raise FewstepError(f"{where}, column {name}: must not be empty")
    if text["arxiv"] and not re.fullmatch(r"\d{4}\.\d{5}", text["arxiv"]):
        raise FewstepError(f"{where}, column arxiv: must be like 2311.18828, or empty, got {text['arxiv']!r}")
    flags = {name: text[name] == "yes" for name in ("quoted", "confirmed")}
    return Published(**(text | numbers | flags), line=line)  # type: ignore[arg-type]


def _number(text: str, name: str, where: str) -> float | None:
    if not text:
        return None
    low, high = LIMITS[name]
    kind = "a whole number" if name in WHOLE else "a number"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or (name in WHOLE and value % 1):
        raise FewstepError(f"{where}: must be {kind} from {low} to {high}, or empty, got {text!r}")
    return value


def sources(row: Published, column: str, rows: tuple[Published, ...]) -> list[Published]:
    """The row, then every other one with a figure in `column` for the same method, benchmark, NFE and guidance.

    Of a row without NFE nothing tells whether another is the same.
    """
    if row.nfe is None:
        return [row]
    same = (row.benchmark, row.method, row.nfe, row.guidance_scale)
    others = [
        other
        for other in rows
        if (other.benchmark, other.method, other.nfe, other.guidance_scale) == same
        and (other.paper, other.table) != (row.paper, row.table)
        and (other.steps is None or row.steps is None or other.steps == row.steps)
        and getattr(other, column) is not None
    ]
    return [row, *others]


def agree(first: float, second: float) -> bool:
    """Whether two figures are the same to the decimals of the one with fewer, at least one: 1.524 and 1.52 are."""
    decimals = max(1, min(len(f"{value:.10g}".partition(".")[2]) for value in (first, second)))
    return abs(first - second) <= 0.5 * 10**-decimals * (1 + 1e-9)
