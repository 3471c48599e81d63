"""Loading a student for a task, and identifying the weights of one that may be anybody's."""

import students
from bench.identity import state_hash
from bench.tasks import Task
from students.base import networks_of
from students.errors import FewstepError, one_line


def load_student(spec: str, task: Task, teacher, device="cpu", dtype: str = "float32"):
    """A student on the task's grid; raises FewstepError whatever goes wrong in a third party's code."""
    try:
        return students.load(spec, task=teacher, grid=task.grid, device=device, dtype=dtype)
    except FewstepError:
        raise
    except Exception as error:
        raise FewstepError(f"cannot load student {spec!r}: {one_line(error)}") from error


def identify(spec: str, task: Task) -> dict:
    """What a third party's student depends on beside its code: its `options`, and the hash of its networks' weights."""
    student = load_student(spec, task, task.teacher)
    return {"own_options": getattr(student, "options", {}), "weights": state_hash(networks_of(student))}
