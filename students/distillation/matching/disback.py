"""Distribution backtracking (Zhang et al. 2024 [2408.15991]): the teacher comes to meet the student, and walks back."""

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from students.diffusion.denoiser import Denoiser
from students.diffusion.schedules import VE
from students.distillation.matching.core import ScoreDistillation
from students.distillation.matching.diff_instruct import DiffInstruct
from students.distillation.matching.dmd import DistributionMatching
from students.distillation.matching.sid import ScoreIdentity
from students.distillation.matching.vsd import VariationalScore
from students.distillation.method import Distillation, trainable
from students.options import Choices, Range
from students.training.batches import NOISE, Batch

WRAPPED = {
    "diff_instruct": (DiffInstruct, None),
    "vsd": (VariationalScore, None),
    "dmd": (DistributionMatching, DistributionMatching.Options(regression=False)),
    "sid": (ScoreIdentity, None),
}
DEGRADATION = "degradation"


class DistributionBacktracking(Distillation):
    """Degradation recording, then backtracking (the paper's two stages).

    First a copy of the teacher learns to denoise the images of the untrained generator,

        loss = lambda(sigma) |D(x + sigma eps, sigma) - x|^2,    x = G_0(z),

    and is kept at `checkpoints` points of the way, evenly spaced. Then another score distillation, `method`, has these
    for its real score, the last one first, each for an equal part of the first `back` of its updates, and the teacher
    for the rest. Its fake score starts from the end of the way, where it knows the generator's images.
    """

    @dataclass(frozen=True)
    class Options:
        method: Annotated[str, Choices(*WRAPPED)] = "diff_instruct"
        checkpoints: Annotated[int, Range(1, 100)] = 4
        back: Annotated[float, Range(0.001, 1)] = 0.2

    needs = {NOISE}
    stages = (DEGRADATION, "")
    shares = (0.1, 0.9)
    passing = (DEGRADATION,)
    evaluations = 0.1 * 2 + 0.9 * 3
    opponent_evaluations = 0.9 * 2
    settings = ScoreDistillation.settings
    vector_settings = ScoreDistillation.vector_settings
    budget = ScoreDistillation.budget
    vector_budget = ScoreDistillation.vector_budget

    def build(self, stage, trained):
        kind, options = WRAPPED[self.options.method]
        self.inner = kind(self.source, self.start, options)
        self.inner.begin(stage, trained, self.steps)
        if stage == DEGRADATION:
            self.path = Path(trainable(self.start, VE), self.options.checkpoints)
            self.inner.model.requires_grad_(False)
            self.inner.fake = self.path.end
            return self.path
        self.path.eval().requires_grad_(False)
        self.inner.fake.load_state_dict(self.path.end.state_dict())
        return self.inner.model

    def opponents(self):
        return {} if self.stage == DEGRADATION else self.inner.opponents()

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor | dict[str, Tensor]:
        if self.stage == DEGRADATION:
            self.path.record(step, self.steps)
            return self.inner.fake_loss(batch, step, generator)
        self.inner.teacher = self.real(step)
        return self.inner.loss(batch, step, generator)

    def real(self, step: int) -> nn.Module:
        """The real score at a step of the backtracking."""
        kept, backtracking = self.path.kept, self.options.back * self.steps
        return kept[-1 - int(step * len(kept) / backtracking)] if step < backtracking else self.teacher

    def teachers(self):
        return [self.teacher] if self.stage == DEGRADATION else [self.teacher, *self.path.kept]

    def networks(self):
        return [self.path.end, self.inner.model] if self.stage == DEGRADATION else [self.model]

    def sampler(self, model):
        return self.inner.sampler(model)


class Path(nn.Module):
    """A denoiser that is trained, the `end` of the path, and copies of it, `kept` on the way from the teacher."""

    recorded: Tensor  # how many of them are

    def __init__(self, denoiser: Denoiser, checkpoints: int):
        super().__init__()
        self.end = denoiser
        self.kept = nn.ModuleList(copy.deepcopy(denoiser).requires_grad_(False) for _ in range(checkpoints))
        self.register_buffer("recorded", torch.tensor(0))

    def record(self, step: int, steps: int) -> None:
        """Keep the denoiser as it is before `step`, if points to keep it at have come since the last call."""
        for i, node in enumerate(self.kept, 1):
            if self.recorded < i and step >= steps * i // (len(self.kept) + 1):
                node.load_state_dict(self.end.state_dict())
                self.recorded += 1
