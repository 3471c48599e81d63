"""Errors a user can mend. The command line prints them as one line and ends with status 2."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class FewstepError(Exception):
    """What is wrong and what to do about it, in one line."""


class Unsupported(FewstepError):
    """A student was asked for what it is not made for."""


class UnsupportedSteps(Unsupported):
    """A student was asked for a step count that makes no sense for it."""


class WeightsError(FewstepError):
    """Weights are missing, cut short, or not those their record describes."""


class Stopped(FewstepError):
    """The time limit came before the last step; the same command goes on from the checkpoint."""


def one_line(error: BaseException) -> str:
    """`ValueError: what it says`, without line breaks and not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


@contextmanager
def reading(path, kind: str) -> Iterator[None]:
    """Whatever the content of somebody else's file leads to, as one WeightsError that names the file.

    Our own errors pass, as they say more. kind: what the file should be, as in "no state dict".
    """
    try:
        yield
    except FewstepError:
        raise
    except OSError as error:
        raise WeightsError(f"cannot read {path} ({error.strerror or error}): get the file again") from error
    except Exception as error:
        raise WeightsError(
            f"{path} is no {kind}, or is cut short ({one_line(error)}): get the file again, or one of the same family"
        ) from error


def unknown(kind: str, name: str, known: Iterable[str]) -> FewstepError:
    """`unknown task 'digit': did you mean 'digits'? (digits, gaussians)`"""
    known = sorted(known)
    lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean {lower[close[0]]!r}?" if close else "known:"
    return FewstepError(f"unknown {kind} {name!r}: {hint} ({', '.join(known)})")
