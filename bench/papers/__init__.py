"""Tables of papers, as presets: a YAML file each, of which published figures it shows and what measures them here.

`load_preset("dmd-table1")` reads bench/papers/dmd-table1.yaml. Two files are common to all: `_methods.yaml` (what here
is a paper's method) and `_protocols.yaml`. Importing this module imports neither torch nor pandas.
"""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from bench import protocols
from bench.published import BENCHMARKS, COLUMNS, FILE, METRICS, Published, read
from bench.studies import CONVERGENCE, STUDIES
from bench.tasks import ROUNDINGS, Task
from bench.yaml_files import filled, read_mapping
from students.errors import FewstepError, unknown

FOLDER = Path(__file__).parent
CURVE = "curve"  # the figure of quality against NFE; CONVERGENCE is the other
FIGURES = (CURVE, CONVERGENCE)


@dataclass(frozen=True)
class Protocol:
    """What a cell must agree in with a paper; null where the paper leaves it open.

    references: by benchmark, what the samples may be compared with, as a cell names it.
    """

    name: str
    summary: str
    samples: int
    rounding: str | None
    extractor: str | None
    references: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Ours:
    """What here is a paper's method.

    student: a spec of students/spec.py, on any task. steps: that it takes, where the paper gives neither steps nor NFE.
    public: by benchmark, the spec of a public checkpoint: the paper's own network. study, variant: a row of
    reports/<task>/<study>.csv, which comes before a student. needs: what measuring it would take, where nothing here
    does. remark: in what ours differs from the paper's.
    """

    student: str | None = None
    steps: int | None = None
    public: dict = field(default_factory=dict)
    study: str | None = None
    variant: str | None = None
    needs: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Preset:
    """A table; the keys of its YAML file are these fields without the name.

    arxiv: of the paper. rows: each a mapping of columns of published.csv to a value or several: the figures shown are
    those that fit one of them. columns: metrics of published.csv, the first is the one that is always measured.
    protocol: a name of _protocols.yaml. best_of: the figures are the minimum of so many runs. statistic: what else they
    are, in words. figure: "curve" or "convergence". ours: by method, before _methods.yaml. trained_in: by method, the
    feature space that it was trained in.
    """

    name: str
    title: str
    arxiv: str
    rows: tuple[dict, ...]
    columns: tuple[str, ...]
    protocol: str
    best_of: int = 1
    statistic: str = ""
    figure: str | None = None
    note: str = ""
    ours: dict = field(default_factory=dict)
    trained_in: dict = field(default_factory=dict)

    def figures(self) -> list[Published]:
        """The published figures of its rows, in the order of these and of the file."""
        found = {row.line: row for asked in self.rows for row in read() if _fits(row, asked)}
        return list(found.values())

    def measured_by(self, method: str) -> Ours:
        """What here is that method."""
        path = FOLDER / f"{self.name}.yaml"
        for entries, where in ((self.ours, path), (_shared("methods"), FOLDER / "_methods.yaml")):
            if (key := _key(method, entries)) is not None:
                return filled(Ours, entries[key], where)
        return Ours()

    def space(self, method: str) -> str:
        """The feature space that a method was trained in, as far as the preset says."""
        key = _key(method, self.trained_in)
        return "" if key is None else self.trained_in[key]


def preset_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("[!_]*.yaml"))


def titles() -> dict[str, str]:
    """The titles of all presets by name."""
    return {name: read_mapping(FOLDER / f"{name}.yaml", "table")["title"] for name in preset_names()}


def load_preset(name: str) -> Preset:
    """Read and check a preset by name; raises FewstepError, with the nearest name, if there is none."""
    if name not in preset_names():
        raise unknown("table", name, preset_names())
    path = FOLDER / f"{name}.yaml"
    preset = filled(Preset, {"name": name} | read_mapping(path, "table"), path)
    for column in preset.columns:
        if column not in METRICS:
            raise FewstepError(f"{path}: {unknown('column', column, METRICS)}")
    if preset.figure is not None and preset.figure not in FIGURES:
        raise FewstepError(f"{path}: {unknown('figure', preset.figure, FIGURES)}")
    load_protocol(preset.protocol)
    for asked in preset.rows:
        for column in asked:
            if column not in COLUMNS:
                raise FewstepError(f"{path}: {unknown('column of rows', str(column), COLUMNS)}")
        if not any(_fits(row, asked) for row in read()):
            raise FewstepError(f"{path}: no row of {FILE} has {', '.join(f'{k} {v}' for k, v in asked.items())}")
    for method in dict.fromkeys(row.method for row in preset.figures()):
        _check(preset.measured_by(method), f"{path}: method {method!r}")
    return preset


def _check(ours: Ours, where: str) -> None:
    if ours.study and ours.study not in STUDIES:
        raise FewstepError(f"{where}: {unknown('study', ours.study, STUDIES)}")
    labels = [variant.label for variant in STUDIES[ours.study].variants] if ours.study else [None]
    if ours.variant not in labels:
        raise FewstepError(f"{where}: {unknown('variant', str(ours.variant), map(str, labels))}")
    for benchmark in ours.public:
        if benchmark not in BENCHMARKS:
            raise FewstepError(f"{where}: {unknown('benchmark', benchmark, BENCHMARKS)}")


def load_protocol(name: str) -> Protocol:
    """A protocol of papers by name; raises FewstepError, with the nearest name, if there is none."""
    known = _shared("protocols")
    if name not in known:
        raise unknown("protocol", name, known)
    path, stated = FOLDER / "_protocols.yaml", {}
    if name in protocols.protocol_names():
        block = protocols.load_protocol(name)
        stated = {"samples": block.samples, "rounding": block.rounding, "extractor": block.extractor}
    protocol = filled(Protocol, {"name": name} | stated | known[name], path)
    if protocol.rounding not in (None, *ROUNDINGS):
        raise FewstepError(f"{path}: {unknown('rounding', protocol.rounding, ROUNDINGS)}")
    return protocol


def task_protocol(task: Task) -> Protocol:
    """The protocol of a task, under which methods are compared on other data than a paper's."""
    summary = f"the task's own, version {task.version}"
    return Protocol(task.name, summary, task.samples, task.rounding, task.extractor)


@cache
def _shared(name: str) -> dict:
    return read_mapping(FOLDER / f"_{name}.yaml", name)


def _key(method: str, entries: dict) -> str | None:
    """The key of a method: its name, else the first pattern that fits."""
    return method if method in entries else next((key for key in entries if fnmatchcase(method, key)), None)


def _fits(row: Published, asked: dict) -> bool:
    return all(
        getattr(row, column) in (value if isinstance(value, list) else [value]) for column, value in asked.items()
    )
