"""Names of students and what they stand for. Importing this module imports no torch."""

import importlib
import sys
from pathlib import Path

from students.errors import FewstepError


def import_object(target: str):
    """The object named by `package.module:attribute`. The current folder is searched too.

    Raises FewstepError if the module or the attribute is not there.
    """
    module_name, _, attribute = target.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise FewstepError(f"cannot import {module_name!r} of {target!r}: no module {error.name!r} here") from error
        raise
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise FewstepError(f"module {module_name!r} has no attribute {attribute!r}") from error
