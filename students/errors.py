"""Errors a user can mend. The command line prints them as one line and ends with status 2."""

import difflib
from collections.abc import Iterable


class FewstepError(Exception):
    """What is wrong and what to do about it, in one line."""


class Unsupported(FewstepError):
    """A student was asked for what it is not made for."""


class UnsupportedSteps(Unsupported):
    """A student was asked for a step count that makes no sense for it."""


class WeightsError(FewstepError):
    """Weights are missing, cut short, or not those their record describes."""


def unknown(kind: str, name: str, known: Iterable[str]) -> FewstepError:
    """`unknown task 'digit': did you mean 'digits'? (digits, gaussians)`"""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "known:"
    return FewstepError(f"unknown {kind} {name!r}: {hint} ({', '.join(known)})")
