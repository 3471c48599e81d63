"""Reference statistics as EDM, EDM2, guided-diffusion, pytorch-fid and clean-fid write them."""

import os
import pickle

import numpy as np
import pytest

from bench.measure.references import cards, find_reference, reference_of
from bench.measure.statistics_files import read_moments
from bench.protocols import load_protocol, protocol_names
from students.datafiles import MissingFile
from students.errors import FewstepError

F = 5


@pytest.fixture(scope="module")
def moments():
    rows = np.random.default_rng(0).standard_normal((40, F))
    return rows.mean(0), np.cov(rows, rowvar=False)


def write(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def test_every_format_gives_the_same_moments(tmp_path, moments):
    mu, sigma = moments
    spatial = mu[:3] + 1, sigma[:3, :3] * 2
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    np.savez_compressed(tmp_path / "clean_fid.npz", mu=mu.astype(np.float64), sigma=sigma)
    np.savez(
        tmp_path / "VIRTUAL.npz",
        np.zeros((2, 4, 4, 3), np.uint8),
        mu=mu,
        sigma=sigma,
        mu_s=spatial[0],
        sigma_s=spatial[1],
    )
    for protocol in (2, 4, 5):
        content = {"fid": {"mu": mu, "sigma": sigma}, "fd_dinov2": {"mu": mu + 2, "sigma": sigma}}
        (tmp_path / f"edm2-{protocol}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    write(tmp_path / "edm.pkl", {"mu": mu, "sigma": np.asfortranarray(sigma)})
    for path in sorted(tmp_path.iterdir()):
        found = read_moments(path, "inception")
        assert np.array_equal(found.mean(), mu) and np.allclose(found.covariance(), sigma, rtol=0, atol=1e-15), (
            path.name
        )
    assert np.array_equal(read_moments(tmp_path / "edm2-4.pkl", "dinov2").mean(), mu + 2)
    found = read_moments(tmp_path / "VIRTUAL.npz", "inception_spatial")
    assert np.array_equal(found.mean(), spatial[0]) and np.allclose(found.covariance(), spatial[1])
    with pytest.raises(
        FewstepError, match=r"edm.npz lacks mu_s and sigma_s for inception_spatial, and holds mu, sigma"
    ):
        read_moments(tmp_path / "edm.npz", "inception_spatial")


def test_float32_is_taken_as_it_is(tmp_path, moments):
    np.savez(tmp_path / "x.npz", mu=moments[0].astype(np.float32), sigma=moments[1].astype(np.float32))
    assert np.allclose(read_moments(tmp_path / "x.npz", "inception").covariance(), moments[1], atol=1e-6)


def test_singular_covariances_are_covariances(tmp_path):
    rows = np.random.default_rng(1).standard_normal((4, F))
    np.savez(tmp_path / "few.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    assert len(read_moments(tmp_path / "few.npz", "inception").mean()) == F


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mu, sigma: {"mu": mu}, "lacks sigma"),
        (
            lambda mu, sigma: {"mu": mu, "sigma": sigma[:, :-1]},
            r"mu and sigma must be \(F,\) and \(F, F\), got \(5,\) and \(5, 4\)",
        ),
        (lambda mu, sigma: {"mu": mu, "sigma": sigma - 9 * np.eye(F)}, "sigma has eigenvalues from -"),
        (lambda mu, sigma: {"mu": mu, "sigma": 0 * sigma}, "sigma has eigenvalues from 0 to 0"),
        (lambda mu, sigma: {"mu": mu, "sigma": sigma + np.triu(sigma, 1)}, "sigma is not symmetric"),
        (lambda mu, sigma: {"mu": mu * np.nan, "sigma": sigma}, "mu holds NaN or infinite values"),
        (lambda mu, sigma: {"mu": mu * 1j, "sigma": sigma}, "mu must be real numbers, got complex128"),
    ],
)
def test_what_is_no_pair_of_moments_is_refused(change, message, tmp_path, moments):
    np.savez(tmp_path / "bad.npz", **change(*moments))
    with pytest.raises(FewstepError, match=f"bad.npz:? {message}"):
        read_moments(tmp_path / "bad.npz", "inception")


def test_no_code_of_a_file_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = write(tmp_path / "evil.pkl", {"mu": Evil()})
    with pytest.raises(FewstepError, match=r"evil.pkl asks for posix.mkdir, which could run code"):
        read_moments(path, "inception")
    np.savez(tmp_path / "evil.npz", mu=np.array([Evil()], object))
    with pytest.raises(FewstepError, match=r"evil.npz is no archive of numbers"):
        read_moments(tmp_path / "evil.npz", "inception")
    assert not (tmp_path / "made").exists()
    objects = write(tmp_path / "objects.pkl", {"mu": np.array([1, "a"], object), "sigma": np.eye(2)})
    with pytest.raises(FewstepError, match=r"objects.pkl"):
        read_moments(objects, "inception")


def test_damaged_files_are_named(tmp_path, moments):
    np.savez(tmp_path / "x.npz", mu=moments[0], sigma=moments[1])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps({"mu": moments[0]})[:100])
    write(tmp_path / "list.pkl", [1])
    write(tmp_path / "value.pkl", {"fid": 2.3})
    np.savez_compressed(tmp_path / "bytes.npz", mu=moments[0], sigma=moments[1])
    content = bytearray((tmp_path / "bytes.npz").read_bytes())
    content[150:160] = bytes(10)
    (tmp_path / "bytes.npz").write_bytes(content)
    for name in ("cut.npz", "cut.pkl", "list.pkl", "value.pkl", "bytes.npz"):
        with pytest.raises(FewstepError, match=name):
            read_moments(tmp_path / name, "inception")


def test_cards_and_protocols_agree():
    for name in protocol_names():
        protocol = load_protocol(name)
        found = [cards()[reference] for reference in protocol.references]
        assert len({card.data for card in found}) == len(found), "at most one reference a data set"
        assert all(protocol.extractor in card.extractors for card in found)
    assert reference_of(load_protocol("fid50k_edm"), "cifar10") == "edm/cifar10-32x32"
    assert reference_of(load_protocol("fid50k_adm"), "imagenet64") == "adm/imagenet64"
    with pytest.raises(
        FewstepError, match=r"'fid50k_edm' has no reference of digits .*cifar10.*: give --reference FILE"
    ):
        reference_of(load_protocol("fid50k_edm"), "digits")
    with pytest.raises(FewstepError, match=r"unknown protocol 'fid50k_emd': did you mean 'fid50k_edm'"):
        load_protocol("fid50k_emd")
    assert len({card.file for card in cards().values()}) == len(cards()), "no two cards share a file"


def test_names_of_references(tmp_path, monkeypatch, moments):
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    monkeypatch.setattr("students.datafiles.DataFile._download", lambda self: None)
    with pytest.raises(
        MissingFile, match=r"edm/cifar10-32x32 is missing: download https://.*cifar10-32x32.npz and put it"
    ):
        find_reference("edm/cifar10-32x32")
    with pytest.raises(FewstepError, match=r"unknown reference 'edm/cifar10-32': did you mean 'edm/cifar10-32x32'"):
        find_reference("edm/cifar10-32")
    with pytest.raises(FewstepError, match=r"there is no reference file absent.npz"):
        find_reference("absent.npz")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "a" / "x.npz", mu=moments[0], sigma=moments[1])
    np.savez(tmp_path / "b" / "x.npz", mu=moments[0], sigma=2 * moments[1])
    both = [find_reference(str(tmp_path / part / "x.npz")) for part in "ab"]
    assert both[0].column("fid") != both[1].column("fid"), "two references are two columns"
    (tmp_path / "references").mkdir()
    np.savez(tmp_path / "references" / "cifar10-32x32.npz", mu=moments[0], sigma=moments[1])
    assert find_reference("edm/cifar10-32x32").column("fid") == "fid_to_edm/cifar10-32x32"
    with pytest.raises(FewstepError, match=r"edm/cifar10-32x32 is of inception, not of inception768"):
        find_reference("edm/cifar10-32x32").check("inception768")
