"""Statistics of a stream of rows, mergeable: shards computed apart merge into the statistics of the whole."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from students.diffusion.analytic import GaussianMixture
from students.errors import FewstepError

BLOCK = 8192  # rows kept together


class FeatureStats:
    """Count, mean and scatter matrix of rows (N, F), in float64; the rows themselves only with `keep_rows`.

    Holds the scatter S = sum_i (x_i - m)(x_i - m)^T about the mean m rather than the raw sum of outer products,
    which it equals up to n m m^T, because raw sums lose the covariance when the mean is large. Two parts merge by

        S = S_a + S_b + n_a n_b / (n_a + n_b) (m_b - m_a)(m_b - m_a)^T

    (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance"), in any order and grouping up
    to rounding. Memory does not grow with the number of rows, kept rows apart.
    """

    def __init__(self, keep_rows: bool = False):
        self.count: int | float = 0  # infinite for exact moments
        self.keep_rows = keep_rows
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)
        self._rows: list[Tensor] = []  # in blocks, which the allocator gives back one by one
        self._latest: list[Tensor] = []  # what comes next

    @classmethod
    def from_moments(cls, mean, covariance) -> Self:
        """Exact moments of a distribution, as if of infinitely many rows; nothing can be added to them."""
        stats = cls()
        stats.count = math.inf
        stats._mean = torch.as_tensor(mean, dtype=torch.float64)
        stats._scatter = torch.as_tensor(covariance, dtype=torch.float64)
        return stats

    def update(self, rows: Tensor) -> None:
        """Add rows (N, F) of any floating dtype and device; raises FewstepError for another shape or F."""
        if rows.ndim != 2:
            raise FewstepError(f"statistics take rows of shape (N, F), got {tuple(rows.shape)}: flatten each sample")
        rows = rows.detach().cpu()
        if len(rows) == 0:
            return
        values = rows.double()
        mean = values.mean(0)
        centred = values - mean
        self._add(len(rows), mean, centred.T @ centred)
        if self.keep_rows:
            self._latest.append(rows.float())
            if sum(map(len, self._latest)) >= BLOCK:
                self._close_block()

    def merge(self, other: Self) -> None:
        """Add the rows of `other`; raises FewstepError unless it keeps rows like this one and has as many columns."""
        if self.keep_rows != other.keep_rows:
            raise FewstepError("statistics that keep rows merge only with others that do: compute both the same way")
        if other.count:
            self._add(other.count, other._mean, other._scatter)
            self._close_block()
            other._close_block()
            self._rows += other._rows

    def _add(self, count, mean: Tensor, scatter: Tensor) -> None:
        if math.isinf(self.count) or math.isinf(count):
            raise FewstepError("exact moments take no further rows: start from empty statistics")
        if self.count == 0:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        if mean.shape != self._mean.shape:
            raise FewstepError(f"statistics of {len(self._mean)} columns take no rows of {len(mean)} columns")
        total = self.count + count
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + self.count * count / total * torch.outer(shift, shift)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    def mean(self) -> Tensor:
        """(F,) float64; raises FewstepError without rows."""
        self._need(1)
        return self._mean

    def covariance(self) -> Tensor:
        """The unbiased covariance (F, F), float64; raises FewstepError for fewer than two rows."""
        self._need(2)
        return self._scatter if math.isinf(self.count) else self._scatter / (self.count - 1)

    def rows(self) -> Tensor:
        """The rows (N, F), float32, in the order they came; raises FewstepError if they were not kept."""
        if not self.keep_rows:
            raise FewstepError("rows were not kept: compute the statistics with keep_rows=True")
        self._need(1)
        self._close_block()
        if len(self._rows) > 1:
            self._rows = [self._joined()]
        return self._rows[0]

    def _close_block(self) -> None:
        if self._latest:
            self._rows.append(torch.cat(self._latest))
            self._latest = []

    def _joined(self) -> Tensor:
        """All blocks in one tensor, each freed once copied, so that many rows are never in memory twice."""
        joined = torch.empty(sum(map(len, self._rows)), self._rows[0].shape[1])
        end = len(joined)
        while self._rows:
            block = self._rows.pop()
            joined[end - len(block) : end] = block
            end -= len(block)
        return joined

    def _need(self, rows: int) -> None:
        if self.count < rows:
            raise FewstepError(f"needs at least {rows} samples, got {self.count}")

    def tensors(self) -> dict[str, Tensor]:
        """All there is to know, as `from_tensors` takes it."""
        tensors = {
            "count": torch.tensor(float(self.count), dtype=torch.float64),
            "mean": self._mean.contiguous(),
            "scatter": self._scatter.contiguous(),
        }
        if self.keep_rows:
            tensors["rows"] = self.rows() if self.count else torch.zeros(0, 0)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        count = tensors["count"]
        stats = cls(keep_rows="rows" in tensors)
        stats.count = count.item() if count.isinf() else int(count)
        stats._mean, stats._scatter = tensors["mean"], tensors["scatter"]
        if stats.keep_rows and stats.count:
            stats._rows = [tensors["rows"]]
        return stats

    def __reduce__(self):
        """Pickle as arrays: torch would send tensors to another process through shared memory and file handles."""
        return _from_arrays, ({name: tensor.numpy() for name, tensor in self.tensors().items()},)

    def to_bytes(self) -> bytes:
        """The content of one safetensors file."""
        return save(self.tensors())

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read what `to_bytes` gave; raises FewstepError if it is cut short or something else."""
        try:
            return cls.from_tensors(load(content))
        except (SafetensorError, KeyError) as error:
            raise FewstepError(f"cannot read statistics ({error})") from error

    def save(self, path: Path) -> None:
        """Write to one safetensors file."""
        save_file(self.tensors(), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises FewstepError if the file is missing, cut short or something else."""
        try:
            return cls.from_tensors(load_file(path))
        except (OSError, SafetensorError, KeyError) as error:
            raise FewstepError(f"cannot read statistics from {path} ({error})") from error


def _from_arrays(arrays: dict) -> FeatureStats:
    return FeatureStats.from_tensors({name: torch.from_numpy(array) for name, array in arrays.items()})


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: statistics by representation (see bench/measure), or the exact mixture.

    device: where metrics may compute what is long.
    """

    train: dict[str, FeatureStats] = field(default_factory=dict)
    heldout: dict[str, FeatureStats] = field(default_factory=dict)
    mixture: GaussianMixture | None = None
    device: torch.device | str = "cpu"
