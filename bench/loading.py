"""Loading a student for a task, and identifying what may be anybody's: students, teachers, extractors, data."""

import functools

from torch import nn

import students
from bench.identity import state_hash, tensor_hash
from bench.tasks import Task
from students.base import networks_of
from students.data import load_data
from students.errors import FewstepError, one_line
from students.teachers import load_teacher


def load_student(spec: str, task: Task, teacher, device="cpu", dtype: str = "float32"):
    """A student on the task's grid; raises FewstepError whatever goes wrong in a third party's code."""
    try:
        return students.load(spec, task=teacher, grid=task.grid, device=device, dtype=dtype)
    except FewstepError:
        raise
    except Exception as error:
        raise FewstepError(f"cannot load student {spec!r}: {one_line(error)}") from error


@functools.cache
def teacher_hash(name: str) -> str:
    """The hash of the weights of a third party's teacher; of a plain callable, which shows none, that of nothing."""
    teacher = load_teacher(name)
    return state_hash([teacher] if isinstance(teacher, nn.Module) else [])


@functools.cache
def extractor_hash(name: str) -> str:
    """The hash of the weights of a third party's extractor."""
    from bench.measure.features import load_extractor

    return load_extractor(name).hash


@functools.cache
def data_hash(name: str) -> str:
    """The hash of a third party's data."""
    data = load_data(name)
    halves = (data.train, data.heldout)
    return tensor_hash(tensor for half in halves for tensor in (half.samples, half.labels) if tensor is not None)


def identify(spec: str, task: Task) -> dict:
    """What a third party's student depends on beside its code: its `options`, and the hash of its networks' weights."""
    student = load_student(spec, task, task.teacher)
    return {"own_options": getattr(student, "options", {}), "weights": state_hash(networks_of(student))}
