"""Shards merge to what one piece would be, and travel between processes as plain arrays."""

import pickle

import numpy as np
import pytest
import torch

from bench.measure.statistics import FeatureStats
from bench.shard import Shard


def shard(seeds: range, rows: torch.Tensor, **known) -> Shard:
    stats = {"features": FeatureStats(keep_rows=True), "samples": FeatureStats()}
    for collector in stats.values():
        collector.update(rows)
    images = (255 * rows).byte().numpy()[:, None, None]
    return Shard(seeds, len(seeds), stats, images[:3], images, **known)


def test_two_shards_merge_to_one():
    rows = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    whole = shard(range(5, 15), rows, evaluations=70)
    first = shard(range(5, 9), rows[:4], evaluations=20, setup=3.0, peak_memory_mb=1.0, seconds=1.0, latency={"a": 1.0})
    second = shard(range(9, 15), rows[4:], evaluations=50, peak_memory_mb=2.0, seconds=2.0)
    first.merge(second, keep=5)
    assert (first.seeds, first.samples, first.nfe) == (whole.seeds, 10, 7.0) and whole.nfe == 7.0
    assert (first.setup, first.peak_memory_mb, first.seconds, first.latency) == (3.0, 2.0, 3.0, {"a": 1.0})
    assert np.array_equal(first.images, whole.images) and np.array_equal(first.kept, whole.images[[0, 1, 2, 4, 5]])
    for name, stats in first.statistics.items():
        torch.testing.assert_close(stats.mean(), whole.statistics[name].mean(), rtol=1e-14, atol=0)
        torch.testing.assert_close(stats.covariance(), whole.statistics[name].covariance(), rtol=1e-12, atol=1e-15)
    assert torch.equal(first.statistics["features"].rows(), rows)
    assert second.statistics["features"].count == 6


def test_only_neighbours_merge():
    rows = torch.rand(4, 2)
    with pytest.raises(AssertionError, match="do not follow"):
        shard(range(4), rows).merge(shard(range(8, 12), rows), keep=3)


def test_a_shard_travels_as_arrays(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__reduce_ex__", lambda *_: pytest.fail("a tensor was pickled"))
    made = shard(range(3), torch.rand(3, 2))
    back = pickle.loads(pickle.dumps(made))
    assert torch.equal(back.statistics["features"].rows(), made.statistics["features"].rows())
    assert torch.equal(back.statistics["samples"].covariance(), made.statistics["samples"].covariance())
    assert back.seeds == made.seeds and np.array_equal(back.images, made.images)
