"""A teacher: a denoiser, and how it is sampled from unless somebody says otherwise."""

from dataclasses import dataclass

from torch import Tensor, nn

DEFAULT_GRID = "log_snr"


@dataclass(frozen=True)
class Teacher:
    """What solver students sample from and distilled students start from.

    denoiser: see students/diffusion/denoiser.py; a module, so that its calls can be counted.
    grid: the time grid of solvers without one of their own. prior: (classes,) probabilities of its classes, None for
    equal ones.
    levels: of a checkpoint that is no teacher but samples by itself, steps -> noise levels, the last one the data end.
    name: as it was loaded, None for an object that was handed over.
    """

    denoiser: nn.Module
    grid: str | list = DEFAULT_GRID
    prior: Tensor | None = None
    levels: dict[int, list] | None = None
    name: str | None = None

    @property
    def schedule(self):
        return self.denoiser.schedule

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.denoiser.shape)  # type: ignore[arg-type]

    @property
    def classes(self) -> int | None:
        return getattr(self.denoiser, "classes", None)

    @property
    def has_no_class(self) -> bool:
        """Whether it knows the absence of a class, which classifier-free guidance needs."""
        return self.classes is not None and getattr(self.denoiser, "has_no_class", True)


def as_teacher(found) -> Teacher:
    """A teacher as it is, or of a denoiser, which may be any callable `denoise(x, t, condition=None)` with a schedule.

    A denoiser may say how it is sampled by attributes `grid` and `prior`.
    """
    if isinstance(found, Teacher):
        return found
    module = found if isinstance(found, nn.Module) else CallableDenoiser(found)
    return Teacher(module, getattr(found, "grid", None) or DEFAULT_GRID, getattr(found, "prior", None))


class CallableDenoiser(nn.Module):
    """A plain callable as a module."""

    def __init__(self, denoise):
        super().__init__()
        self.denoise = denoise
        self.schedule = denoise.schedule
        self.classes = getattr(denoise, "classes", None)
        if shape := getattr(denoise, "shape", None):
            self.shape = tuple(shape)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.denoise(x, t) if condition is None else self.denoise(x, t, condition)
