"""Runs that stop: at a signal, when nobody waits for them any more, and when they are late."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxprune import parallel
from onnxprune.errors import ModelError
from onnxprune.runtime import sessions, stopping
from onnxprune.runtime.sessions import open_session

ENDLESS = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
net (float[N, 2] x, bool c) => (float[N, 2] y) {
    y = Loop ("", c, x) <body = rounds (int64 i, bool go, float[N, 2] v) => (bool on, float[N, 2] w) {
        on = Identity (go)
        w = Sin (v)
    }>
}""")
"""Without an end where c is true."""


def feeds(endless: bool, rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.ones((rows, 2), np.float32), "c": np.array(endless)}


@pytest.fixture
def session():
    return open_session(ENDLESS)


class Heard(BaseException):
    pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_is_heard_in_a_run(session, number):
    def stop(*_):
        raise Heard

    before = signal.signal(number, stop)
    threading.Timer(0.3, os.kill, [os.getpid(), number]).start()
    begin = time.monotonic()
    try:
        with pytest.raises(Heard):
            session.run(feeds(True))
    finally:
        signal.signal(number, before)
    assert time.monotonic() - begin < 5 and signal.set_wakeup_fd(-1) == -1
    assert len(session.run(feeds(False))) == 1  # and it may be used again


def test_a_signal_that_was_not_meant_for_us_changes_nothing(session, monkeypatch):
    """Its handler returns; the run is made once more, and is late."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    monkeypatch.setattr(sessions, "LOOP_SECONDS", 1.0)
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
    try:
        with pytest.raises(ModelError, match="a run took more than 1 s"):
            session.run(feeds(True))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]


def test_other_signals_do_not_stop_it_and_others_hear_them(session, monkeypatch):
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    ear.settimeout(5)
    handlers = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGUSR1, signal.SIGTERM)}
    before = signal.set_wakeup_fd(mouth.fileno())
    monkeypatch.setattr(sessions, "LOOP_SECONDS", 1.0)
    for after, number in ((0.2, signal.SIGUSR1), (0.5, signal.SIGTERM)):
        threading.Timer(after, os.kill, [os.getpid(), number]).start()
    begin = time.monotonic()
    try:
        with pytest.raises(ModelError, match="a run took more than 1 s"):
            session.run(feeds(True))
        assert time.monotonic() - begin > 1
        assert signal.SIGTERM in ear.recv(10)
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_task_that_nobody_waits_for_ends(session):
    def task(endless):
        if not endless:
            time.sleep(0.3)
            raise Heard
        return session.run(feeds(True))

    begin = time.monotonic()
    with parallel.at_most(2), pytest.raises(Heard):
        list(parallel.each(task, [False, True]))
    busy = [t for t in stopping._only[0].runs]
    while busy and time.monotonic() - begin < 10:
        time.sleep(0.05)
        busy = [t for t in stopping._only[0].runs]
    assert not busy


def test_a_loop_may_take_a_time_for_every_sample(session, monkeypatch):
    monkeypatch.setattr(sessions, "LOOP_SECONDS", 0.2)
    for rows, least in ((1, 0.2), (5, 1.0)):
        begin = time.monotonic()
        with pytest.raises(ModelError, match=f"took more than {least:g} s"):
            session.run(feeds(True, rows))
        assert least < time.monotonic() - begin < least + 5


def test_whoever_looks_sleeps_until_there_is_a_run(session, monkeypatch):
    monkeypatch.setattr(stopping, "IDLE_S", 0.0)
    session.run(feeds(False))
    watcher, until = stopping._only[0], time.monotonic() + 5
    while not watcher.asleep and time.monotonic() < until:
        time.sleep(0.05)
    assert watcher.asleep
    monkeypatch.setattr(sessions, "LOOP_SECONDS", 0.3)
    with pytest.raises(ModelError, match="took more than"):
        session.run(feeds(True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_copy_of_the_process_has_a_watcher_of_its_own(session):
    session.run(feeds(False))
    pid = os.fork()
    if not pid:
        sessions.LOOP_SECONDS = 0.3
        try:
            session.run(feeds(True))
        except ModelError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert len(session.run(feeds(False))) == 1


def test_only_what_loops_has_a_clock():
    assert open_session(ENDLESS)._loops
    plain = onnx.ModelProto()
    plain.CopyFrom(ENDLESS)
    plain.graph.node[0].CopyFrom(onnx.helper.make_node("Sin", ["x"], ["y"]))
    assert not open_session(plain)._loops
