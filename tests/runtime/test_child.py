"""A child does its job within its caps, or is killed; whatever it does, its parent goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onnxprune.errors import FileError, UsageError
from onnxprune.runtime import child
from onnxprune.runtime.child import Caps, Child, Stopped, call

ROOM = 200 << 20
KINDS = [pytest.param(True, marks=pytest.mark.skipif(not child.FORKS, reason="forks on Linux only")), False]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def long(size: int) -> bytes:
    return b"x" * size


def loop() -> bytes:
    while True:
        pass


def sleep() -> bytes:
    time.sleep(60)
    return b""


def eat() -> bytes:
    held = []
    while True:
        held.append(b"x" * (1 << 23))


def gulp() -> bytes:
    return b"x" * (1 << 42)


def die(number: int) -> bytes:
    os.kill(os.getpid(), number)
    return sleep()


def leave() -> bytes:
    os._exit(0)


def refuse() -> bytes:
    raise UsageError("not so")


def lack() -> bytes:
    raise OSError(28, "No space left on device", "/tmp/x")


def fail() -> bytes:
    raise KeyError("a bug")


def shout() -> bytes:
    os.write(1, b"noise")
    os.write(2, b"noise")
    return b"answer"


@pytest.mark.parametrize("fork", KINDS)
@pytest.mark.parametrize("size", [0, 1, 10_000_000])
def test_an_answer(fork, size):
    assert call(long, size, label="m", what="its run", fork=fork) == b"x" * size


@pytest.mark.parametrize("fork", KINDS)
def test_what_it_prints_is_no_answer(fork, capfd):
    assert call(shout, label="m", what="its run", fork=fork) == b"answer"
    assert capfd.readouterr() == ("", "")


ENDS = [
    (loop, (), r"^m\.onnx: its run took more than 1 s; wait$"),
    (sleep, (), "its run took more than 1 s"),
    (eat, (), "its run took more than 0.2 GiB of memory"),
    (gulp, (), "its run took more than 0.2 GiB of memory"),
    (die, (signal.SIGABRT,), r"its run crashed \(SIGABRT\)"),
    (die, (signal.SIGFPE,), r"its run crashed \(SIGFPE\)"),
    (die, (signal.SIGSEGV,), r"its run crashed \(SIGSEGV\)"),
    (die, (signal.SIGKILL,), "its run was killed, probably for want of memory"),
    (leave, (), r"its run crashed \(status 0\)"),
]


@LINUX
@pytest.mark.parametrize(("job", "args", "says"), ENDS, ids=[f"{e[0].__name__} {e[1]}" for e in ENDS])
def test_what_goes_wrong_is_told(job, args, says):
    begin = time.monotonic()
    with pytest.raises(Stopped, match=says) as caught:
        call(job, *args, label="m.onnx", what="its run", remedy="wait", caps=Caps(1, ROOM))
    assert caught.value.exit_code == 3 and time.monotonic() - begin < 15


@pytest.mark.parametrize("fork", KINDS)
@pytest.mark.parametrize(
    ("job", "error"),
    [
        (refuse, pytest.raises(UsageError, match=r"^not so$")),
        (lack, pytest.raises(FileError, match=r"^/tmp/x: No space left on device; ")),
        (fail, pytest.raises(RuntimeError, match="KeyError: 'a bug'")),
    ],
)
def test_an_error_is_an_error_here(fork, job, error):
    with error:
        call(job, label="m", what="its run", fork=fork)


@LINUX
def test_a_fresh_child_has_the_same_caps():
    for job, says in ((loop, "more than 3 s"), (gulp, "0.2 GiB")):
        with pytest.raises(Stopped, match=says):
            call(job, label="m", what="its run", fork=False, caps=Caps(3, ROOM))


def pause(seconds: float) -> bytes:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return b"done"


@LINUX
@pytest.mark.parametrize(("seconds", "done"), [(20, True), (0.5, False)])
def test_caps_are_asked_for_once(seconds, done):
    asked = []

    def more() -> Caps:
        asked.append(1)
        return Caps(seconds, ROOM)

    work = Child(pause, [1.5], label="m", what="its run", caps=Caps(0.2, ROOM), more=more)
    if done:
        assert work.result() == b"done"
    else:
        with pytest.raises(Stopped, match=r"0\.5 s"):
            work.result()
    assert asked == [1]


@LINUX
def test_more_room_is_more_addresses():
    work = Child(eat, label="m", what="its run", caps=Caps(5, 20 << 20), more=lambda: Caps(60, 600 << 20))
    with pytest.raises(Stopped, match=r"0\.6 GiB"):
        work.result()


@LINUX
def test_what_was_refused_at_once_is_tried_again_with_more_room():
    much = Child(long, [700 << 20], label="m", what="its run", caps=Caps(60, ROOM), more=lambda: Caps(60, 4 << 30))
    assert len(much.result()) == 700 << 20
    with pytest.raises(Stopped, match=r"0\.3 GiB"):
        Child(
            long, [700 << 20], label="m", what="its run", caps=Caps(60, ROOM), more=lambda: Caps(60, 300 << 20)
        ).result()


def late_eater() -> bytes:
    held = b"x" * (150 << 20)
    time.sleep(1)  # the parent sees what it holds, and lets it have more
    return str(len(held + b"x" * (700 << 20))).encode()


@LINUX
def test_room_that_comes_too_late_is_tried_again(monkeypatch):
    """What was refused under the old limit, just before the new one was set, is no answer."""
    monkeypatch.setattr(child, "_allow", lambda pid, room: None)
    work = Child(late_eater, label="m", what="its run", caps=Caps(60, 100 << 20), more=lambda: Caps(60, 4 << 30))
    assert work.result() == b"891289600"


@LINUX
def test_a_fork_that_is_stuck_is_started_afresh(monkeypatch):
    monkeypatch.setattr(child, "STUCK_S", 0.3)
    lock = threading.Lock()
    with lock:  # for ever, in the copy
        assert call(Locked(lock), label="m", what="its run", caps=Caps(20, ROOM)) == b"free"


class Locked:
    """A job that waits for a lock, which is a new one where it is unpickled."""

    def __init__(self, lock: threading.Lock | None = None) -> None:
        self.lock = lock or threading.Lock()

    def __reduce__(self):
        return Locked, ()

    def __call__(self) -> bytes:
        with self.lock:
            return b"free"


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_to_the_child_is_one_to_us(number):
    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            call(die, number, label="m", what="its run")
    finally:
        signal.signal(number, before)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except OSError:
        return True


@LINUX
def test_an_interruption_ends_the_child():
    work = Child(loop, label="m", what="its run")
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        work.result()
    assert gone(work._process.pid)


@LINUX
@pytest.mark.parametrize("fork", [True, False])
def test_a_child_dies_with_its_parent(fork):
    script = f"""
from onnxprune.runtime.child import Child
from tests.runtime.test_child import loop
work = Child(loop, label="m", what="its run", fork={fork})
print(work._process.pid, flush=True)
work.result()"""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([os.getcwd(), *filter(None, sys.path)]))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.0 if fork else 2.0)  # it asks for it when it has started
        assert not gone(pid)
        parent.kill()
    until = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert gone(pid)


@LINUX
def test_standard_streams_may_be_closed():
    script = """
import os, sys
for k in (0, 1, 2):
    os.close(k)
from onnxprune.runtime.child import call
from tests.runtime.test_child import long
os._exit(call(long, 5, label="m", what="its run") == b"xxxxx")"""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([os.getcwd(), *filter(None, sys.path)]))
    assert subprocess.run([sys.executable, "-c", script], env=env).returncode == 1


def test_there_must_be_a_way_to_start_one(monkeypatch):
    monkeypatch.setattr(child.sys, "executable", "/nowhere/python")
    with pytest.raises(FileError, match="m: its run needs a child process"):
        call(long, 1, label="m", what="its run", fork=False)
