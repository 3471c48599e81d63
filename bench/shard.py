"""What is known of a range of a cell's seeds. Shards of neighbouring ranges merge to what one of both would be."""

from dataclasses import dataclass, field

import numpy as np

from bench.measure.statistics import FeatureStats


@dataclass
class Shard:
    """One range of seeds.

    statistics: by representation. kept: its first samples, up to as many as a cell keeps. images: all samples in 8
    bits, (N, C, H, W), where they are to be saved. evaluations: of networks, for `samples` samples. setup: those spent
    once for the student. latency: of the cell, measured with its first shard. about: what a record says of the student.
    """

    seeds: range
    samples: int
    statistics: dict[str, FeatureStats]
    kept: np.ndarray | None = None
    images: np.ndarray | None = None
    evaluations: int = 0
    setup: float = 0.0
    peak_memory_mb: float | None = None
    latency: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    about: dict = field(default_factory=dict)

    def merge(self, other: "Shard", keep: int) -> None:
        """Add the shard of the seeds that come next; `keep` samples are kept. Changes this one, not the other."""
        assert self.seeds.stop == other.seeds.start, f"{other.seeds} do not follow {self.seeds}"
        self.seeds = range(self.seeds.start, other.seeds.stop)
        self.samples += other.samples
        for name, stats in self.statistics.items():
            stats.merge(other.statistics[name])
        self.kept = np.concatenate([self.kept, other.kept])[:keep]
        if self.images is not None:
            self.images = np.concatenate([self.images, other.images])
        self.evaluations += other.evaluations
        self.setup = max(self.setup, other.setup)
        self.peak_memory_mb = max(self.peak_memory_mb, other.peak_memory_mb)  # type: ignore[type-var]
        self.seconds += other.seconds

    @property
    def nfe(self) -> float:
        """Network evaluations a sample."""
        return self.evaluations / self.samples


@dataclass(frozen=True)
class Failure:
    """What there is instead of a shard: the status of its cell, and the reason in one line."""

    status: str
    reason: str
    about: dict = field(default_factory=dict)
    seconds: float = 0.0
