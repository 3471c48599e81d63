import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.measure import statistics
from bench.measure.statistics import FeatureStats
from students.errors import FewstepError


def stats_of(rows, keep_rows=False) -> FeatureStats:
    stats = FeatureStats(keep_rows)
    stats.update(rows)
    return stats


def rows_of(n=50, f=4, offset=0.0):
    generator = torch.Generator().manual_seed(n)
    mixing = torch.tensor([[1.0, 0.5, 0, 0], [0, 2, 0.1, 0], [0, 0, 0.3, 0.7], [0.2, 0, 0, 1]])[:f, :f]
    return torch.randn(n, f, generator=generator) @ mixing + offset


def test_moments_are_numpys():
    rows = rows_of()
    stats = stats_of(rows)
    np.testing.assert_allclose(stats.mean(), rows.double().numpy().mean(0), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(stats.covariance(), np.cov(rows.double().numpy(), rowvar=False), rtol=1e-12)
    assert stats.mean().dtype == stats.covariance().dtype == torch.float64


def test_covariance_survives_a_large_mean():
    rows = rows_of(400).double() + 1e7
    stats = FeatureStats()
    for batch in rows.split(32):
        stats.update(batch)
    np.testing.assert_allclose(stats.covariance(), np.cov(rows.numpy(), rowvar=False), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=6), offset=st.sampled_from([0.0, -3.0, 1e4]), data=st.data())
def test_any_sharding_merges_to_the_whole(cuts, offset, data):
    rows = rows_of(offset=offset)
    whole = stats_of(rows, keep_rows=True)
    edges = [0, *sorted(cuts), len(rows)]
    shards = [stats_of(rows[a:b], keep_rows=True) for a, b in pairwise(edges)]
    while len(shards) > 1:  # in any grouping of neighbours
        i = data.draw(st.integers(0, len(shards) - 2))
        shards[i].merge(shards.pop(i + 1))
    merged = shards[0]
    assert merged.count == whole.count == len(rows)
    torch.testing.assert_close(merged.mean(), whole.mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-10, atol=1e-12)
    assert torch.equal(merged.rows(), rows)


def test_rows_keep_their_order_through_blocks(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 16)
    rows = torch.arange(100.0)[:, None]
    stats, other = stats_of(rows[:45], keep_rows=True), FeatureStats(keep_rows=True)
    for part in rows[45:].split(7):
        other.update(part)
    stats.merge(other)
    assert torch.equal(stats.rows(), rows)
    assert torch.equal(other.rows(), rows[45:])


def test_merging_leaves_the_other_alone():
    a, b = stats_of(rows_of(10), True), stats_of(rows_of(20), True)
    before = b.mean().clone(), b.covariance().clone(), b.rows().clone()
    a.merge(b)
    a.update(rows_of(30))
    assert all(map(torch.equal, before, (b.mean(), b.covariance(), b.rows()))) and b.count == 20


def test_memory_without_rows_does_not_grow():
    stats = FeatureStats()
    for _ in range(5):
        stats.update(rows_of())
    tensors = [v for v in vars(stats).values() if torch.is_tensor(v)]
    assert sum(t.numel() for t in tensors) == 4 + 4 * 4 and stats._rows == []


@pytest.mark.parametrize("keep_rows", [False, True])
def test_save_and_load(tmp_path, keep_rows):
    stats = stats_of(rows_of(), keep_rows)
    stats.save(tmp_path / "s.safetensors")
    loaded = FeatureStats.load(tmp_path / "s.safetensors")
    assert loaded.count == 50 and isinstance(loaded.count, int) and loaded.keep_rows == keep_rows
    assert torch.equal(loaded.mean(), stats.mean()) and torch.equal(loaded.covariance(), stats.covariance())
    loaded.merge(stats)
    assert loaded.count == 100
    if keep_rows:
        assert torch.equal(loaded.rows(), torch.cat([rows_of(), rows_of()]))


def test_empty_statistics_are_saved_too(tmp_path):
    FeatureStats(keep_rows=True).save(tmp_path / "s.safetensors")
    loaded = FeatureStats.load(tmp_path / "s.safetensors")
    loaded.update(rows_of())
    assert torch.equal(loaded.covariance(), stats_of(rows_of()).covariance())


def test_exact_moments(tmp_path):
    exact = FeatureStats.from_moments([1.0, 2.0], [[2.0, 0.5], [0.5, 1.0]])
    exact.save(tmp_path / "s.safetensors")
    for stats in (exact, FeatureStats.load(tmp_path / "s.safetensors")):
        assert math.isinf(stats.count)
        assert stats.mean().tolist() == [1, 2] and stats.covariance().tolist() == [[2, 0.5], [0.5, 1]]
        with pytest.raises(FewstepError, match="exact moments"):
            stats.update(torch.zeros(1, 2))


def test_errors(tmp_path):
    with pytest.raises(FewstepError, match="at least 1 samples"):
        FeatureStats().mean()
    with pytest.raises(FewstepError, match="at least 2 samples, got 1"):
        stats_of(torch.zeros(1, 3)).covariance()
    with pytest.raises(FewstepError, match="keep_rows=True"):
        stats_of(rows_of()).rows()
    with pytest.raises(FewstepError, match="flatten"):
        stats_of(torch.zeros(2, 1, 8, 8))
    with pytest.raises(FewstepError, match="4 columns take no rows of 3"):
        stats_of(rows_of()).update(torch.zeros(5, 3))
    with pytest.raises(FewstepError, match="compute both the same way"):
        stats_of(rows_of()).merge(stats_of(rows_of(), True))
    (tmp_path / "cut").write_bytes(b"123")
    for name in ("cut", "absent"):
        with pytest.raises(FewstepError, match="cannot read statistics"):
            FeatureStats.load(tmp_path / name)
