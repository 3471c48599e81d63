"""Tasks, students, metrics, studies, protocols, references and papers' tables by name, with a line on each."""

from bench.measure import METRICS
from bench.measure.references import cards
from bench.papers import titles
from bench.protocols import load_protocol, protocol_names
from bench.studies import STUDIES
from bench.tasks import FOLDER, load_task, task_names
from students.spec import METHODS, STUDENTS


def lines(what: str | None = None) -> list[str]:
    """The lines to print of one section, such as "tasks"; of all if `what` is None."""
    found = []
    for name in [what] if what else SECTIONS:
        title, entries = SECTIONS[name]
        found += [title, *(f"  {entry:<22}{summary}" for entry, summary in entries().items())]
    return found


def _students() -> dict[str, str]:
    return {name: entry.summary for name, entry in (STUDENTS | METHODS).items()} | {
        "<method>:weights=DIR": "a distillation method, with the weights that you trained",
        "diffusers:<Class>": "any scheduler of diffusers, by class name",
        "module:attribute": "your own solver function, Student, or factory of one",
    }


def _references() -> dict[str, str]:
    return {name: f"{card.data}, of {' and '.join(card.extractors)}; {card.url}" for name, card in cards().items()}


# The title of each, and a function that reads its names and summaries.
SECTIONS = {
    "tasks": (f"tasks ({FOLDER})", lambda: {name: load_task(name).summary for name in task_names()}),
    "students": ("students", _students),
    "metrics": ("metrics", lambda: {name: f"{m.summary} ({m.kind} tasks)" for name, m in METRICS.items()}),
    "studies": (
        "studies (python -m bench study NAME TASK)", lambda: {name: plan.summary for name, plan in STUDIES.items()}
    ),
    "protocols": (
        "protocols (python -m bench score PATH --protocol NAME)",
        lambda: {name: load_protocol(name).summary for name in protocol_names()},
    ),
    "references": ("references (python -m bench score PATH --reference NAME)", _references),
    "tables": ("tables of papers (python -m bench table NAME)", titles),
}  # fmt: skip
