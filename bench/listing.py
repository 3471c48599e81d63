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
    sections = {
        "tasks": (f"tasks ({FOLDER})", {name: load_task(name).summary for name in task_names()}),
        "students": (
            "students",
            {name: entry.summary for name, entry in (STUDENTS | METHODS).items()}
            | {
                "<method>:weights=DIR": "a distillation method, with the weights that you trained",
                "diffusers:<Class>": "any scheduler of diffusers, by class name",
                "module:attribute": "your own solver function, Student, or factory of one",
            },
        ),
        "metrics": (
            "metrics",
            {name: f"{metric.summary} ({metric.kind} tasks)" for name, metric in METRICS.items()},
        ),
        "studies": (
            "studies (python -m bench study NAME TASK)",
            {name: plan.summary for name, plan in STUDIES.items()},
        ),
        "protocols": (
            "protocols (python -m bench score PATH --protocol NAME)",
            {name: load_protocol(name).summary for name in protocol_names()},
        ),
        "references": (
            "references (python -m bench score PATH --reference NAME)",
            {name: f"{card.data}, of {' and '.join(card.extractors)}; {card.url}" for name, card in cards().items()},
        ),
        "tables": ("tables of papers (python -m bench table NAME)", titles()),
    }
    found = []
    for title, entries in [sections[what]] if what else sections.values():
        found += [title, *(f"  {name:<22}{summary}" for name, summary in entries.items())]
    return found
