import multiprocessing
import shutil
import time

import pytest
import torch
from filelock import FileLock

from bench.measure import reference
from bench.measure.reference import cached_statistics
from bench.measure.statistics import FeatureStats
from students.errors import FewstepError

TOTAL = 130
DATA = torch.randn(TOTAL, 6, generator=torch.Generator().manual_seed(0))


class Source:
    """Rows of DATA, counted; after `lives` batches the process that asks for more is killed."""

    def __init__(self, columns=4, lives=10**9):
        self.columns, self.lives, self.seen = columns, lives, []

    def __call__(self, start, stop):
        if stop > 1 and len(self.seen) == self.lives:
            raise KeyboardInterrupt
        if stop > 1:
            self.seen += [(start, stop)]
        return {"features": DATA[start:stop, : self.columns], "logits": DATA[start:stop], "samples": None}


def collectors():
    return {"features": FeatureStats(keep_rows=True), "logits": FeatureStats()}


def cached(folder, source, key=None, make=collectors):
    return cached_statistics(folder, key or {"data": "noise"}, TOTAL, 10, source, make)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(reference, "SHARD", 50)


def same(a: dict[str, FeatureStats], b: dict[str, FeatureStats]) -> bool:
    return (
        a.keys() == b.keys()
        and torch.equal(a["features"].rows(), b["features"].rows())
        and all(torch.equal(a[name].mean(), b[name].mean()) for name in a)
        and all(torch.equal(a[name].covariance(), b[name].covariance()) for name in a)
    )


def test_computed_once_and_read_again(tmp_path):
    source = Source()
    first = cached(tmp_path / "new" / "folder", source)
    assert source.seen == [(i, i + 10) for i in range(0, TOTAL, 10)]
    assert first["features"].count == TOTAL and torch.equal(first["features"].rows(), DATA[:, :4])
    torch.testing.assert_close(first["logits"].covariance(), DATA.double().T.cov())
    again = Source(lives=0)
    assert same(first, cached(tmp_path / "new" / "folder", again)) and not again.seen
    assert not list(tmp_path.glob("**/*.shards")) and not list(tmp_path.glob("**/.part-*"))


def test_what_the_numbers_depend_on(tmp_path):
    cached(tmp_path, Source())
    for key, make in (
        ({"data": "other"}, collectors),
        (None, lambda: {"features": FeatureStats(), "logits": FeatureStats()}),
    ):
        source = Source()
        cached(tmp_path, source, key, make)
        assert source.seen


@pytest.mark.parametrize("lives", [3, 5, 9, 12])
def test_a_killed_computation_goes_on(tmp_path, lives):
    whole = cached(tmp_path / "whole", Source())
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "killed", Source(lives=lives))
    source = Source()
    assert same(whole, cached(tmp_path / "killed", source))
    assert source.seen[0] == (50 * (lives // 5), 50 * (lives // 5) + 10)


def _slow(folder, calls):
    def rows(start, stop):
        time.sleep(0.05)
        calls.put((start, stop))
        return Source()(start, stop)

    statistics = cached_statistics(folder, {"data": "noise"}, TOTAL, 10, rows, collectors)
    assert torch.equal(statistics["features"].rows(), DATA[:, :4])


def test_two_processes_compute_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    calls = context.Queue()
    workers = [context.Process(target=_slow, args=(tmp_path, calls)) for _ in range(2)]
    for worker in workers:
        worker.start()
    seen = [calls.get(timeout=60) for _ in range(2 + TOTAL // 10)]  # each process asks for one row first
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert calls.empty() and sorted(seen) == sorted([(0, 1)] * 2 + [(i, i + 10) for i in range(0, TOTAL, 10)])


def test_waiting_is_said(tmp_path, monkeypatch, capsys):
    cached(tmp_path, Source())
    monkeypatch.setattr(reference, "QUIET_SECONDS", 0.01)
    (place,) = (path for path in tmp_path.iterdir() if path.is_dir())
    lock = FileLock(tmp_path / f".{place.name}.lock")
    lock.acquire()
    monkeypatch.setattr(reference.FileLock, "acquire", _released_on_second_call(lock))
    moved = shutil.move(place, tmp_path / "away")
    cached(tmp_path, Source())
    assert "waiting for another process that computes the reference statistics" in capsys.readouterr().err and moved


def _released_on_second_call(held):
    original = FileLock.acquire

    def acquire(self, timeout=None, **options):
        if timeout is None:
            held.release()
        return original(self, timeout, **options)

    return acquire


def test_other_dimensions(tmp_path):
    cached(tmp_path, Source())
    with pytest.raises(FewstepError, match=r"have 4 features a sample, the extractor now gives 5: take the extractor"):
        cached(tmp_path, Source(columns=5))


@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "record", "list"])
def test_altered_files(tmp_path, harm):
    cached(tmp_path, Source())
    (place,) = (path for path in tmp_path.iterdir() if path.is_dir())
    path, content = place / "features.safetensors", (place / "features.safetensors").read_bytes()
    if harm == "cut":
        path.write_bytes(content[:-1])
    elif harm == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "gone":
        path.unlink()
    else:
        (place / "record.json").write_text("{}" if harm == "record" else '{"files": []}')
    with pytest.raises(FewstepError, match="are cut short or altered: delete that folder"):
        cached(tmp_path, Source())
    shutil.rmtree(place)
    cached(tmp_path, Source())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FewstepError, match=r"cannot write reference .* to .*file.*: make room, or name .* XDG_CACHE"):
        cached(tmp_path / "file", Source())
