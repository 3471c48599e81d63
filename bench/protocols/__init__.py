"""Protocol blocks: what must agree for two numbers to be comparable, as papers state it; one small YAML file each.

`load_protocol("fid50k_edm")` reads bench/protocols/fid50k_edm.yaml. Importing this module imports no torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from bench.tasks import ROUNDINGS, Task
from bench.yaml_files import filled, read_mapping
from students.errors import FewstepError, unknown

FOLDER = Path(__file__).parent
FILTERS = ("none", "box", "bilinear", "bicubic", "lanczos")
REFERENCES = "references"  # the file of cards beside the protocols


@dataclass(frozen=True)
class Protocol:
    """A protocol; the keys of its YAML file are these fields.

    samples: how many images. seeds, labels: of the samples, in words, which images do not tell. rounding: of floats to
    8 bits. resize: the filter of Pillow that brings images to the task's size, or "none". extractor: a name of
    bench/measure/extractors.py. metrics: names of METRICS. references: cards (bench/measure/references.py), at most one
    a data set; of data without one the training half is the reference, and only if none is named. source: where it was
    read.
    """

    name: str
    summary: str
    samples: int
    seeds: str
    labels: str
    rounding: str
    resize: str
    extractor: str
    metrics: tuple[str, ...]
    references: tuple[str, ...]
    source: str

    def recorded(self) -> dict:
        """The fields that a cell keeps."""
        return {key: value for key, value in asdict(self).items() if key not in ("summary", "source", "references")}


def protocol_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != REFERENCES)


def load_protocol(name: str) -> Protocol:
    """Read and check a protocol by name; raises FewstepError for an unknown one, and for keys as `load_task` does."""
    if name not in protocol_names():
        raise unknown("protocol", name, protocol_names())
    path = FOLDER / f"{name}.yaml"
    protocol = filled(Protocol, read_mapping(path, "protocol"), path)
    for key, known in (("rounding", ROUNDINGS), ("resize", FILTERS)):
        if (value := getattr(protocol, key)) not in known:
            raise FewstepError(f"{path}: {unknown(key, value, known)}")
    return protocol


def of_task(task: Task) -> Protocol:
    """The protocol that a task states itself."""
    return Protocol(
        name=task.name,
        summary=task.summary,
        samples=task.samples,
        seeds="any",
        labels="in the data's proportions" if task.classes else "none",
        rounding=task.rounding,
        resize="none",
        extractor=task.extractor,  # type: ignore[arg-type]
        metrics=task.metrics,
        references=(),
        source="the task's file",
    )
