"""What may be anybody's: students, teachers, extractors and data by `module:attribute`, loaded and identified."""

import functools
import sys
import uuid
from dataclasses import replace

import students
from bench.content import Unknown, content_hash
from bench.tasks import Task
from students.data import load_data
from students.errors import FewstepError, one_line
from students.models.load import load_teacher
from students.models.teacher import Teacher
from students.options import is_plain


def load_student(spec: str, task: Task, teacher: Teacher | None, device="cpu", dtype: str = "float32"):
    """A student of a teacher, None if the spec names a model; a solver without a grid of its own takes the task's.

    Raises FewstepError whatever goes wrong in a third party's code.
    """
    on_grid = task.teacher if teacher is None else replace(teacher, grid=task.grid)
    try:
        return students.load(spec, task=on_grid, device=device, dtype=dtype)
    except FewstepError:
        raise
    except (Exception, SystemExit) as error:
        raise FewstepError(f"cannot load student {spec!r}: {one_line(error)}") from error


@functools.cache
def teacher_hash(name: str) -> str:
    """The hash of what a third party's teacher holds."""
    return _hash(name, load_teacher(name).denoiser)


@functools.cache
def extractor_hash(name: str) -> str:
    """The hash of the weights of a third party's extractor."""
    from bench.measure.features import load_extractor

    return load_extractor(name).hash


@functools.cache
def data_hash(name: str) -> str:
    """The hash of a third party's data."""
    return _hash(name, load_data(name))


def identify(spec: str, task: Task) -> dict:
    """What a third party's student depends on beside its code: its `options`, and the hash of all that it holds."""
    student = load_student(spec, task, load_teacher(task.teacher))
    options = getattr(student, "options", {})
    if not is_plain(options):
        raise FewstepError(
            f"{spec!r}: its options must be finite numbers, text, lists or mappings, got {options!r:.80}"
        )
    return {"own_options": options, "content": _hash(spec, student)}


def _hash(name: str, thing) -> str:
    """The hash of its content; a new one each time, with a note, where something in it cannot be looked into."""
    try:
        return content_hash(thing)
    except Unknown as error:
        print(f"note: {name} holds {error}, which cannot be identified: its cells are computed anew", file=sys.stderr)
        return uuid.uuid4().hex
