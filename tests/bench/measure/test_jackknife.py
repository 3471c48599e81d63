"""The deal of samples into groups, and what is left without each."""

import torch

from bench.measure.jackknife import GROUPS, can_leave_out, groups, without_each_group
from bench.measure.statistics import FeatureStats


def stats(rows, keep_rows=True) -> FeatureStats:
    made = FeatureStats(keep_rows=keep_rows)
    made.update(rows)
    return made


def test_groups_are_of_equal_size_and_have_equal_class_counts():
    classes = torch.arange(7).repeat_interleave(60)[torch.randperm(420)]
    dealt = groups(420, classes)
    assert torch.equal(dealt.bincount(), torch.full((GROUPS,), 21))
    for k in range(7):
        assert torch.equal(dealt[classes == k].bincount(minlength=GROUPS), torch.full((GROUPS,), 3))
    sizes = groups(1003).bincount(minlength=GROUPS)
    assert sizes.max() - sizes.min() == 1


def test_what_is_left_has_the_moments_of_the_other_rows():
    rows, dealt = torch.randn(100, 3), groups(100)
    left = list(without_each_group({"features": stats(rows)}, dealt))
    assert len(left) == GROUPS
    for group, found in enumerate(left):
        kept = rows[dealt != group].double()
        torch.testing.assert_close(found["features"].mean(), kept.mean(0))
        torch.testing.assert_close(found["features"].covariance(), kept.T.cov())
        assert torch.equal(found["features"].rows(), rows[dealt != group])


def test_rows_must_be_kept_enough_and_narrow():
    assert can_leave_out({"features": stats(torch.randn(40, 3))})
    assert not can_leave_out({"features": stats(torch.randn(39, 3))})
    assert not can_leave_out({"features": stats(torch.randn(40, 3), keep_rows=False)})
    assert not can_leave_out({"features": stats(torch.zeros(40, 1025))})
