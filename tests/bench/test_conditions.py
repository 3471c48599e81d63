"""Classes of a block: the data's proportions to within one, and the same for a seed however its block is cut."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.conditions import Conditions, class_counts, stratified


@given(n=st.integers(0, 500), weights=st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
def test_counts_are_the_shares_to_within_one(n, weights):
    prior = torch.tensor(weights)
    counts = class_counts(n, prior)
    assert counts.sum() == n
    assert ((counts - n * prior / prior.sum()).abs() < 1).all()
    assert (counts[prior == 0] == 0).all()


def test_every_block_has_the_same_counts_in_another_order():
    prior = torch.tensor([1.0, 2.0, 1.0])
    blocks = [stratified(range(start, start + 100), prior) for start in (0, 100, 10**6)]
    assert all(torch.equal(block.bincount(), torch.tensor([25, 50, 25])) for block in blocks)
    assert not torch.equal(blocks[0], blocks[1])
    assert blocks[0][:50].bincount(minlength=3).min() > 3  # no class comes in a row


def test_a_seed_shows_the_same_whatever_the_shard():
    conditions, block = Conditions(torch.tensor([3.0, 1.0])), range(200, 300)
    whole = conditions(block, block)
    parts = [conditions(block[start : start + 30], block) for start in range(0, 100, 30)]
    assert torch.equal(torch.cat(parts), whole)
