"""Samplers: how distilled networks are stepped. One file a kind; none imports what trains.

The record of a method's weights names its sampler and the sampler's options, so that `students.load` needs nothing of
the method: SAMPLERS finds the class, `make` joins it with the network. Importing this module imports no torch.
"""

from dataclasses import dataclass, field
from typing import Any

from students.errors import unknown
from students.options import check, describe
from students.spec import import_object

SAMPLERS = {
    "levels": "students.samplers.levels:LevelsStudent",
    "guided_levels": "students.samplers.levels:GuidedLevelsStudent",
    "flow": "students.samplers.flow:FlowStudent",
    "leaps": "students.samplers.leaps:LeapStudent",
    "signal": "students.samplers.signal:SignalStudent",
    "mean_velocity": "students.samplers.mean_velocity:MeanVelocityStudent",
    "trajectory": "students.samplers.trajectory:TrajectoryStudent",
    "taylor": "students.samplers.taylor:TaylorStudent",
    "annealed": "students.samplers.annealed:AnnealedStudent",
    "posterior": "students.samplers.posterior:PosteriorStudent",
}


@dataclass(frozen=True)
class Sampler:
    """A name of SAMPLERS and what goes with it, in plain JSON."""

    name: str
    options: dict = field(default_factory=dict)

    @property
    def target(self) -> str:
        """`module:class`; raises FewstepError for an unknown name."""
        if self.name not in SAMPLERS:
            raise unknown("sampler", self.name, SAMPLERS)
        return SAMPLERS[self.name]

    def load_class(self) -> type[Any]:
        return import_object(self.target)


def make(sampler: Sampler, model, prior=None, teacher=None, changes: dict | None = None):
    """The student that samples from `model`, a trained module that `load_class().build` can build.

    prior: of the classes, as of a Teacher. teacher: a Teacher, for samplers that use it (`uses_teacher`).
    changes: options in place of the record's. Raises FewstepError for options that the sampler does not take.
    """
    kind = sampler.load_class()
    options = sampler.options | check(f"sampler {sampler.name!r}", changes or {}, describe(kind, ("prior", "teacher")))
    return kind(model, prior=prior, **options, **({"teacher": teacher} if kind.uses_teacher else {}))
