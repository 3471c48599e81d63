import math

import pytest
import torch

from bench.measure.memorisation import memorisation, memorised_fraction, nearest_distances
from bench.measure.statistics import FeatureStats, Reference
from students.errors import FewstepError


def uniform(n, seed, dims=64):
    return torch.rand(n, dims, generator=torch.Generator().manual_seed(seed))


TRAIN, HELDOUT, OTHER = uniform(300, 0), uniform(350, 1), uniform(200, 2)


def measure(samples, train=TRAIN, heldout=HELDOUT):
    statistics = []
    for rows in (samples, train, heldout):
        stats = FeatureStats(keep_rows=True)
        stats.update(rows)
        statistics.append({"samples": stats})
    return memorisation(statistics[0], Reference(*statistics[1:]))


def test_copies():
    assert measure(TRAIN[:100]) == (1.0, 0.0)


def test_near_copies():
    memorised, ratio = measure(TRAIN[:100] + 0.01 * torch.randn(100, 64, generator=torch.Generator().manual_seed(3)))
    assert memorised == 1.0
    assert ratio == pytest.approx(0.08 / 2.6, rel=0.2)  # 0.01 sqrt(64) over a typical nearest distance


def test_fresh_samples():
    memorised, ratio = measure(OTHER)
    assert memorised == 0.0
    assert ratio == pytest.approx(1, abs=0.02)


def test_some_copies():
    memorised, ratio = measure(torch.cat([OTHER[:150], TRAIN[:50]]))
    assert memorised == 0.25
    assert 0.9 < ratio < 1.01


def test_the_threshold_is_a_third():
    train = torch.tensor([[0.0], [1.0]])
    samples = torch.tensor([[0.24], [0.26], [0.76], [0.74]])  # distance ratios 0.316 and 0.351
    assert memorised_fraction(nearest_distances(samples, train, 2)) == 0.5


def test_duplicated_training_images_are_no_evidence():
    assert memorised_fraction(nearest_distances(TRAIN[:10], TRAIN[:10].repeat(2, 1), 2)) == 0.0


def test_both_halves_count_alike():
    assert measure(OTHER) == measure(OTHER, heldout=HELDOUT[:300])
    assert measure(OTHER, heldout=HELDOUT[:5])[1] == measure(OTHER, TRAIN[:5], HELDOUT[:5])[1]


def test_heldout_images_themselves():
    memorised, ratio = measure(HELDOUT[:50])
    assert memorised == 0.0 and math.isnan(ratio)


def test_nearest_distances_in_several_chunks(monkeypatch):
    expected = torch.stack([(TRAIN - x).norm(dim=1).sort().values[:3] for x in OTHER])
    monkeypatch.setattr("bench.measure.memorisation.CHUNK", 64)
    torch.testing.assert_close(nearest_distances(OTHER, TRAIN, 3), expected)


def test_too_few_training_images():
    with pytest.raises(FewstepError, match="two nearest"):
        measure(OTHER, train=TRAIN[:1])
