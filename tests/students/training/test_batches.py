"""What an update sees: each part drawn as a method needs it, and none tied to another."""

from itertools import chain, combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from students.training.batches import DATA, NOISE, PAIRS, Batches, PairRows, draw_data, scaled

N, SHAPE = 6000, (1, 1, 2)
SAMPLES = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, *SHAPE).contiguous()  # row i is all i
LABELS = torch.arange(50) % 3
PRIOR = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
EVERY = [set(some) for some in chain.from_iterable(combinations((NOISE, DATA, PAIRS), n) for n in (1, 2, 3))]


def rows_of_pairs(index, device):
    """Pairs whose noise is their index."""
    noise = index.float()[:, None, None, None].expand(-1, *SHAPE)
    return PairRows(noise, noise / 10, index % 3)


def draw(needs, n=N, seed=0, **options):
    given = {"classes": 3, "prior": PRIOR, "pairs": SimpleNamespace(count=40, rows=rows_of_pairs)} | options
    return Batches(needs, n, SAMPLES, LABELS, **given)(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("needs", EVERY, ids=lambda needs: "+".join(sorted(needs)))
def test_a_batch_carries_what_is_needed_and_no_more(needs):
    batch = draw(needs, n=9)
    for need in (NOISE, DATA, PAIRS):
        assert (getattr(batch, need) is not None) == (need in needs)
    assert (batch.condition is not None) == (NOISE in needs)
    if NOISE in needs:
        assert batch.noise.shape == (9, *SHAPE) and batch.noise.dtype == torch.float32
        assert batch.condition.shape == (9,) and batch.condition.dtype == torch.int64
    if DATA in needs:
        assert batch.data.x0.shape == (9, *SHAPE) and batch.data.condition.shape == (9,)
    if PAIRS in needs:
        assert batch.pairs.x0.shape == (9, *SHAPE) and batch.pairs.path is None


@pytest.fixture(scope="module")
def batch():
    return draw({NOISE, DATA, PAIRS})


def indices(batch):
    """Which row of the data, and which pair, each row of a batch is."""
    return ((batch.data.x0[:, 0, 0, 0] + 1) * 127.5).round().long(), batch.pairs.noise[:, 0, 0, 0].long()


def test_each_part_is_drawn_from_all_there_is(batch):
    rows, pairs = indices(batch)
    assert stats.chisquare(rows.bincount(minlength=50)).pvalue > 0.01
    assert stats.chisquare(pairs.bincount(minlength=40)).pvalue > 0.01
    assert batch.data.condition.equal(rows % 3) and batch.pairs.condition.equal(pairs % 3)
    assert stats.kstest(batch.noise.flatten(), "norm").pvalue > 0.01
    assert stats.chisquare(batch.condition.bincount(), N * PRIOR.numpy()).pvalue > 0.01


def test_no_part_is_tied_to_another(batch):
    rows, pairs = indices(batch)
    columns = [batch.noise[:, 0, 0, 0], batch.noise[:, 0, 0, 1], batch.condition, rows, pairs, rows % 3, pairs % 3]
    found = np.corrcoef(torch.stack([column.double() for column in columns]).numpy())
    for i, j in combinations(range(len(columns)), 2):
        if (i, j) not in ((3, 5), (4, 6)):  # an index and its class
            assert abs(found[i, j]) < 4 / N**0.5, (i, j)
    for a, b in ((batch.condition, rows % 3), (batch.condition, pairs % 3), (rows % 3, pairs % 3)):
        table = torch.zeros(3, 3).index_put((a, b), torch.ones(N), accumulate=True)
        assert stats.chi2_contingency(table.numpy()).pvalue > 0.01


def test_classes_are_equally_frequent_without_a_prior_and_there_are_none_without_classes():
    counts = draw({NOISE}, prior=None).condition.bincount()
    assert stats.chisquare(counts).pvalue > 0.01
    assert draw({NOISE}, classes=None, prior=None).condition is None


def test_a_generator_s_state_is_all_that_counts():
    torch.manual_seed(1)
    one = draw({NOISE, DATA, PAIRS}, n=5)
    torch.manual_seed(2)
    other, another = draw({NOISE, DATA, PAIRS}, n=5), draw({NOISE, DATA, PAIRS}, n=5, seed=3)
    assert one.noise.equal(other.noise) and one.data.x0.equal(other.data.x0) and one.pairs.x0.equal(other.pairs.x0)
    assert not one.noise.equal(another.noise)


def test_images_are_scaled_and_half_of_them_mirrored():
    samples = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    plain = scaled(samples)
    torch.testing.assert_close(plain, torch.tensor([[[[-1.0, -0.6, 1.0]]]]))
    x0, labels = draw_data(samples, None, 4000, torch.Generator().manual_seed(0), flips=True)
    assert labels is None
    mirrored = (x0 == plain.flip(3)).flatten(1).all(1)
    assert (x0[~mirrored] == plain).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)
    vectors = torch.randn(3, 2, dtype=torch.float64)
    assert scaled(vectors).equal(vectors.float())
