"""Everything that turns noise into images in a few steps, behind `sample(n_steps)`.

student = students.load("unipc", task="digits")
images = student.sample(4)
"""

import importlib

_HOMES = {
    "load": "students.loading",
    "Student": "students.student",
    "SolverStudent": "students.student",
    "count_nfe": "students.nfe",
    "FewstepError": "students.errors",
    "UnsupportedSteps": "students.errors",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import on first use, so that `import students` costs no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'students' has no attribute {name!r}")
