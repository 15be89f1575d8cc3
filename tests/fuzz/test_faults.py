"""A few injected faults and kills, from seeds that are the same each time; `-m slow` for some hundred."""

import os

import pytest

from tests.fuzz import faults
from tests.fuzz.injected import SITES, Injector

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd") or not hasattr(os, "fork"), reason="needs Linux")
LIGHT = ["report", "inspect", "replace", "weights beside"]


def clean(found):
    assert not found.finds, found.finds
    return sum(found.tried.values())


def test_faults():
    assert clean(faults.run(20_000, 8, jobs=LIGHT)) >= 4


def test_kills():
    clean(faults.run(20_001, 4, kills=True, jobs=LIGHT))


@pytest.mark.slow
def test_many_faults_and_kills():
    assert clean(faults.run(21_000, 100)) > 70
    assert clean(faults.run(21_000, 40, kills=True)) > 10


def test_what_is_lost_is_found(tmp_path):
    """A changed input, a torn output, what is left, a wrong exit code and a bug of ours are all seen."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "m.onnx").write_bytes(b"input")
    before = faults.content(tmp_path)
    (tmp_path / "work" / "m.onnx").write_bytes(b"changed")
    (tmp_path / "work" / "o.onnx").write_bytes(b"torn")
    (tmp_path / "work" / ".onnxprune-0.tmp").write_bytes(b"left")
    done = faults.Done(1, "this is our bug")
    said = faults.wrong(tmp_path, faults.JOBS["replace"], before, done, (0, 7), left=False)
    for word in ("exit 1", "a bug of ours", "0 lines", "m.onnx is not as it was", "o.onnx is torn", ".tmp is left"):
        assert word in said


def test_the_call_that_is_meant_fails(tmp_path):
    """The second of a site, and all later ones where it lasts; calls on other files do not count."""
    once, lasting = Injector([tmp_path], "fsync", 1, 28), Injector([tmp_path], "fsync", 1, 28, lasting=True)
    for injector, failed in ((once, [1]), (lasting, [1, 2])):
        seen = []
        for k in range(3):
            try:
                injector.meet("fsync")
            except OSError as error:
                assert error.errno == 28
                seen.append(k)
        assert seen == failed and injector.struck == len(failed) and injector.counts["fsync"] == 3
    assert once.ours(tmp_path / "a") and not once.ours("/etc/hostname") and set(once.counts) == set(SITES)
