"""What a run says of the time that is left, and what it keeps of itself for the next."""

import io
import json

import pytest

from onnxprune.cli import main
from onnxprune.report import status as module
from onnxprune.report.pace import NAME, Pace, in_words
from onnxprune.report.status import Status


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / NAME


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def run(clock, seconds, kind="prune --calib"):
    stream = io.StringIO()
    status = Status(stream)
    status.set(quiet=False, verbose=False, kind=kind)
    for phase, spent in seconds:
        status.progress(phase, 0, 10)
        for k in range(1, 11):
            clock[0] += spent / 10
            status.progress(phase, k, 10)
    status.finished()
    return stream.getvalue().splitlines()


def test_a_log_has_a_line_a_minute_and_the_second_run_knows_what_is_left(clock):
    phases = [("analyse", 10), ("decide", 200), ("refit", 100)]
    first = run(clock, phases)
    assert len(first) == 5 and first[0] == "onnxprune: decide 3/10, 1 min"
    second = run(clock, phases)
    assert second[0] == "onnxprune: 2/3 decide 3/10, 1 min, about 4 min left"
    assert second[-1].startswith("onnxprune: 3/3 refit")


def test_what_is_left_is_scaled_by_how_long_this_run_takes(cache):
    pace = Pace("prune")
    for phase in (("a", 10.0), ("b", 20.0), ("c", 30.0)):
        pace.ended(*phase)
    pace.keep()
    again = Pace("prune")
    assert again.place("b") == (2, 3) and again.place("other") is None and again.left_s("other", 1, 0.5) is None
    assert again.left_s("a", 5, 0.5) == pytest.approx(55)
    again.ended("a", 20.0)  # twice as slow
    assert again.left_s("b", 20, 0.5) == pytest.approx(80)
    assert again.left_s("c", 0, None) == pytest.approx(30 * 20 / 30)
    assert Pace("bench").place("a") is None


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 1, "runs": {"prune": [["a", NaN]]}}', "\x00"])
def test_a_cache_that_is_something_else_counts_as_none(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert Pace("prune").past == ()
    pace = Pace("prune")
    pace.ended("a", 1.0)
    pace.keep()
    assert Pace("prune").past == (("a", 1.0),)


def test_nothing_is_kept_where_nobody_wants_it(cache, monkeypatch, clock):
    monkeypatch.setenv("ONNXPRUNE_CACHE", "")
    run(clock, [("a", 70)])
    assert not cache.exists()


def test_only_the_last_kinds_are_kept(cache):
    for k in range(50):
        pace = Pace(f"kind {k}")
        pace.ended("a", 1.0)
        pace.keep()
    kept = json.loads(cache.read_text())["runs"]
    assert len(kept) == 40 and "kind 49" in kept and "kind 9" not in kept


def test_a_run_that_fails_teaches_nothing(cache):
    assert main(["missing.onnx"]) != 0 and not cache.exists()


@pytest.mark.parametrize(
    "seconds, words",
    [(1, "about 5 s left"), (41, "about 40 s left"), (58, "about 1 min left"), (9000, "about 2.5 h left")],
)
def test_time_is_said_no_finer_than_it_is_known(seconds, words):
    assert in_words(seconds) == words
