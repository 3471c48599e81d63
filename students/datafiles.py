"""Where data and weights that do not ship with the package lie."""

import os
from pathlib import Path


def data_root() -> Path:
    """The folder named by FEWSTEP_DATA, else ~/.cache/fewstep."""
    return Path(os.environ.get("FEWSTEP_DATA") or Path.home() / ".cache" / "fewstep")
