"""Where a number or a set of weights came from: the commit of the source tree."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def commit() -> str:
    """The commit of the source tree, with `+changes` if it has any; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
