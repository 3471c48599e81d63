"""Files that do not ship: found, downloaded, refused."""

import hashlib
import io

import pytest

from students.data import CIFAR10_FOLDER, load_data
from students.datafiles import VARIABLE, DataFile, MissingFile, data_root

CONTENT = b"weights"
FILE = DataFile("models/net.bin", "the network", "https://example.org/net.bin", hashlib.sha256(CONTENT).hexdigest()[:8])


class Response(io.BytesIO):
    headers = {"Content-Length": str(len(CONTENT))}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    return tmp_path


def test_the_root_is_the_variable_or_the_cache(monkeypatch, root):
    assert data_root() == root
    monkeypatch.delenv(VARIABLE)
    assert data_root().parts[-2:] == (".cache", "fewstep")


def test_a_file_at_hand_is_used_and_another_refused(root):
    FILE.path.parent.mkdir()
    FILE.path.write_bytes(CONTENT)
    assert FILE.problem() == "" and FILE.fetch() == root / "models" / "net.bin"
    FILE.path.write_bytes(CONTENT[:-1])
    with pytest.raises(MissingFile, match="cut short"):
        FILE.fetch()


def test_without_a_network_the_error_says_what_to_put_where(root):
    with pytest.raises(MissingFile, match=f"download https://example.org/net.bin and put it at {FILE.path}"):
        FILE.fetch()
    assert not list(root.iterdir())


def test_with_a_network_it_is_downloaded(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Response(CONTENT))
    assert FILE.fetch().read_bytes() == CONTENT


def test_a_wrong_download_is_refused(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Response(b"something else"))
    with pytest.raises(MissingFile, match="is not the network"):
        FILE.fetch()


def test_cifar10_that_is_missing_or_cut_short_says_which_file(root):
    with pytest.raises(MissingFile, match="CIFAR-10 is missing"):
        load_data("cifar10")
    (root / CIFAR10_FOLDER).mkdir()
    (root / CIFAR10_FOLDER / "data_batch_1").write_bytes(b"cut short")
    with pytest.raises(MissingFile, match=r"data_batch_1 is cut short or not the original"):
        load_data("cifar10")
