import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torch_fidelity.metric_kid import kid_features_to_metric

from bench.measure import METRICS, digits_cnn, fidelity
from bench.measure.extractors import EXTRACTORS, extractor_identity
from bench.measure.features import load_extractor
from bench.measure.fidelity import KID_SEED, kid_subsets
from bench.measure.representations import REPRESENTATIONS, to_uint8
from bench.measure.statistics import FeatureStats, Reference
from students.data import load_data
from students.errors import FewstepError, WeightsError
from students.models.weights import load_weights, verified_hash


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits_cnn")


def collect(extractor, images) -> dict[str, FeatureStats]:
    features, logits = extractor.features(images)
    rows = {"features": features, "logits": logits, "samples": images.flatten(1).float() / 255}
    statistics = {name: FeatureStats(keep_rows=True) for name in rows}
    for name, stats in statistics.items():
        stats.update(rows[name])
    return statistics


def rows_of(features) -> dict[str, FeatureStats]:
    stats = FeatureStats(keep_rows=True)
    stats.update(features)
    return {"features": stats}


@pytest.mark.parametrize(
    "rounding, levels",
    [
        ("round", {-2: 0, -1: 0, -0.9970: 0, -0.9960: 1, 0: 128, 0.5: 191, 0.9960: 254, 0.9962: 255, 1: 255, 3: 255}),
        (
            "truncate",
            {-2: 0, -1: 0, -0.9970: 0, -0.9900: 1, 0: 127, 0.5: 191, 0.9960: 254, 0.9999: 254, 1: 255, 3: 255},
        ),
    ],
)
def test_rounding(rounding, levels):
    got = to_uint8(torch.tensor([float(x) for x in levels]), rounding)
    assert got.dtype == torch.uint8 and got.tolist() == list(levels.values())


def test_rounding_as_published_code_does():
    """EDM's generate.py adds half a level before it cuts, which is rounding; ADM and consistency models add none.

    EDM's sum in float32 comes out on the other side of a level for about two pixels in a million.
    """
    x = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    edm = (x * 127.5 + 128).clip(0, 255).to(torch.uint8)
    adm = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    assert (edm != to_uint8(x)).double().mean() < 1e-5
    assert adm.equal(to_uint8(x, "truncate"))
    assert (to_uint8(x).double() - adm.double()).mean().item() == pytest.approx(0.5 / 1.1, abs=0.01)


def test_rounding_inverts_the_scaling_of_the_data():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)


def test_unknown_rounding():
    with pytest.raises(FewstepError, match=r"unknown rounding 'rund': did you mean 'round'\?"):
        to_uint8(torch.zeros(1), "rund")


def test_the_classifier_that_ships(extractor, digits):
    _, record = load_weights(EXTRACTORS["digits_cnn"].weights)
    features, logits = extractor.features(digits.heldout.samples)
    accuracy = (logits.argmax(1) == digits.heldout.labels).double().mean().item()
    assert accuracy == pytest.approx(record["heldout_accuracy"], abs=2e-3)
    assert accuracy >= 0.97
    assert features.shape == (899, 64) and features.dtype == torch.float32 and (features >= 0).all()
    train, _ = extractor.features(digits.train.samples)
    assert train.square().mean().item() == pytest.approx(1, rel=1e-2)
    assert EXTRACTORS["digits_cnn"].weights == digits_cnn.WEIGHTS
    assert extractor.name == "digits_cnn" and extractor.hash == record["sha256"]
    assert EXTRACTORS["digits_cnn"].weights.stat().st_size < 300_000


def test_rows_do_not_depend_on_the_batch(extractor, digits):
    images = digits.heldout.samples[:70]
    features, logits = extractor.features(images)
    for size in (1, 7, 64):
        parts = [extractor.features(batch) for batch in images.split(size)]
        torch.testing.assert_close(torch.cat([p[0] for p in parts]), features, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.cat([p[1] for p in parts]), logits, rtol=0, atol=1e-5)
    assert torch.equal(load_extractor("digits_cnn").features(images)[0], features)


def test_images_the_classifier_cannot_take(extractor):
    for images in (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)):
        with pytest.raises(FewstepError, match="digits_cnn takes grey uint8 images"):
            extractor.features(images)


class Images(Dataset):
    def __init__(self, images):
        self.images = images.expand(-1, 3, -1, -1).contiguous()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def test_torch_fidelity_gives_the_same_numbers(extractor, digits):
    a, b = digits.heldout.samples[:200], digits.train.samples[:240]
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(a), input2=Images(b), feature_extractor="digits-cnn", cuda=False, cache=False, verbose=False,
        save_cpu_ram=True, fid=True, kid=True, prc=True, isc=True, **kid_subsets(200, 240),
    )  # fmt: skip
    generated, reference = collect(extractor, a), Reference(train=collect(extractor, b))
    ours = {}
    for name in ("fd", "kid", "prc", "is"):
        columns = [column.format(extractor="digits_cnn") for column in METRICS[name].columns]
        ours |= dict(zip(columns, METRICS[name].compute(generated, reference), strict=True))
    assert ours["fd_digits_cnn"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["kid_digits_cnn"] == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-5)
    assert ours["precision_digits_cnn"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall_digits_cnn"] == pytest.approx(theirs["recall"], abs=1e-6)
    assert ours["is_digits_cnn"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)


def test_kid_draws_torch_fidelity_s_subsets():
    generator = torch.Generator().manual_seed(0)
    ours, real = torch.randn(1300, 8, generator=generator), 1.2 * torch.randn(1100, 8, generator=generator)
    theirs = kid_features_to_metric(
        ours.double(), real.double(), kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1, rng_seed=KID_SEED, verbose=False, **kid_subsets(1300, 1100),
    )  # fmt: skip
    (measured,) = METRICS["kid"].compute(rows_of(ours), Reference(train=rows_of(real)))
    assert measured == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)


def test_radii_of_real_images_are_computed_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    reference = Reference(train=rows_of(torch.randn(700, 8, generator=generator)))
    cells = [rows_of(torch.randn(n, 8, generator=generator)) for n in (300, 301)]
    sizes = []

    def counted(rows, k):
        sizes.append(len(rows))
        return radii(rows, k)

    radii = fidelity.radii
    monkeypatch.setattr(fidelity, "radii", counted)
    first = METRICS["prc"].compute(cells[0], reference)
    METRICS["prc"].compute(cells[1], reference)
    assert METRICS["prc"].compute(cells[0], reference) == first
    assert sorted(sizes) == [300, 300, 301, 700]


def test_metrics_order_real_noisy_and_collapsed_images(extractor, digits):
    reference = Reference(train=collect(extractor, digits.train.samples))
    real = digits.heldout.samples[:300]
    noise = 60 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    noisy = collect(extractor, (real + noise).clamp(0, 255).to(torch.uint8))
    collapsed = collect(extractor, real[digits.heldout.labels[:300] == 3].repeat(10, 1, 1, 1))
    real = collect(extractor, real)

    def measure(name, generated):
        return METRICS[name].compute(generated, reference)

    assert 3 * measure("fd", real)[0] < min(measure("fd", noisy)[0], measure("fd", collapsed)[0])
    assert abs(measure("kid", real)[0]) < 0.05 < min(measure("kid", noisy)[0], measure("kid", collapsed)[0])
    assert measure("prc", noisy)[0] < measure("prc", real)[0]
    assert measure("prc", collapsed)[1] < 0.3 < 0.7 < measure("prc", real)[1]
    assert measure("is", real)[0] > 7 > 2 > measure("is", collapsed)[0] >= 1


def test_too_few_samples(extractor, digits):
    few = collect(extractor, digits.train.samples[:1])
    for name in ("kid", "prc", "is"):
        with pytest.raises(FewstepError, match="samples"):
            METRICS[name].compute(few, Reference(train=few))


@pytest.mark.parametrize(
    "n, expected", [((5000, 2000), (100, 1000)), ((1001, 1001), (100, 1000)), ((40, 900), (1, 40))]
)
def test_kid_subsets(n, expected):
    assert tuple(kid_subsets(*n).values()) == expected


def test_training_again_gives_the_same_weights(tmp_path):
    records = [digits_cnn.train(tmp_path / name / "cnn.safetensors", epochs=5) for name in "ab"]
    assert records[0]["heldout_accuracy"] == records[1]["heldout_accuracy"] > 0.3
    first, second = (verified_hash(tmp_path / name / "cnn.safetensors") for name in "ab")
    assert first == second
    digits_cnn.train(tmp_path / "c" / "cnn.safetensors", seed=1, epochs=1)
    assert verified_hash(tmp_path / "c" / "cnn.safetensors") != first


def test_names():
    identity = extractor_identity("digits_cnn")
    assert identity["weights"] == load_extractor("digits_cnn").hash and json.dumps(identity)
    for find in (load_extractor, extractor_identity):
        with pytest.raises(FewstepError, match="unknown extractor 'digits_cn': did you mean 'digits_cnn'"):
            find("digits_cn")
        with pytest.raises(FewstepError, match="no attribute 'Absent'"):
            find("bench.measure.digits_cnn:Absent")
    with pytest.raises(FewstepError, match="no feature extractor"):
        load_extractor("bench.measure.digits_cnn:DigitsCNN")


class NoLogits(digits_cnn.DigitsExtractor):
    """A third party's extractor: no classes, and no recorded hash."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        del self.weights_hash

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "features"


def test_third_party_extractor(digits, extractor):
    name = "tests.bench.measure.test_features:NoLogits"
    other = load_extractor(name)
    features, logits = other.features(digits.train.samples[:5])
    assert logits is None and torch.equal(features, extractor.features(digits.train.samples[:5])[0])
    assert other.name == name and len(other.hash) == 16 and other.hash != extractor.hash
    assert load_extractor(name).hash == other.hash
    assert extractor_identity(name)["name"] == name


def test_altered_extractor_weights(tmp_path, monkeypatch):
    absent = tmp_path / "digits_cnn.safetensors"
    monkeypatch.setattr(digits_cnn, "WEIGHTS", absent)
    monkeypatch.setitem(EXTRACTORS, "digits_cnn", replace(EXTRACTORS["digits_cnn"], weights=absent))
    for find in (load_extractor, extractor_identity):
        with pytest.raises(WeightsError, match="no weights at"):
            find("digits_cnn")


def test_every_metric_is_there():
    from students.spec import import_object

    for name, metric in METRICS.items():
        assert metric.name == name and callable(import_object(metric.target)) and len(metric.code()) == 16
        assert metric.better in ("lower", "higher") and metric.kind in ("image", "vector")
        assert set(metric.opposite) <= set(metric.columns)
        assert set(metric.needs.values()) <= {"moments", "rows"}
        assert set(metric.needs) <= set(REPRESENTATIONS)


def test_the_table_imports_no_torch():
    code = "import sys, bench.measure.extractors as table; table.extractor_identity('digits_cnn')"
    code += "; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
