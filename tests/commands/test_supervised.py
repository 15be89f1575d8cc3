"""Whatever ends the process that does a command's work: one line, the right exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.files.models import conv

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
RUN = """
import os, signal, sys, time
import onnxprune.pipeline.opened
from onnxprune import cli
from onnxprune.runtime import supervisor

def strike(*_, **__):
    print("there", file=sys.stderr, flush=True)
    {}

supervisor.GRACE_S = 1.0
onnxprune.pipeline.opened.find_channels = strike
sys.argv = ["onnxprune", "inspect", "m.onnx"]
sys.exit(cli.main())
"""
DEAF = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM]); time.sleep(60)"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(conv().SerializeToString())
    return tmp_path


def started(code: str) -> subprocess.Popen[str]:
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", RUN.format(code)], env=env, stdout=pipe, stderr=pipe, text=True)


CRASHES = [
    (signal.SIGFPE, "crashed (SIGFPE) while: analyse m.onnx; "),
    (signal.SIGABRT, "crashed (SIGABRT) while: analyse m.onnx; "),
    (signal.SIGSEGV, "crashed (SIGSEGV) while: analyse m.onnx; "),
    (signal.SIGKILL, "killed, probably for want of memory, while: analyse m.onnx; "),
]


@pytest.mark.parametrize(("number", "says"), CRASHES, ids=[c[0].name for c in CRASHES])
def test_a_crash_is_one_line(here, number, says):
    with started(f"os.kill(os.getpid(), {int(number)}); time.sleep(60)") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 3 and not out
    assert [line for line in err.splitlines() if line != "there"] == [
        f"onnxprune: error: {says}" + err.strip().rpartition("; ")[2]
    ]
    assert os.listdir(here) == ["m.onnx"]


def test_one_that_is_killed_before_it_has_begun_is_one_line():
    code = """
import os, sys
from onnxprune import cli
cli._command = lambda *_, **__: os.kill(os.getpid(), 9)
cli._status = lambda argv, tell=None: cli.Status(sys.stderr) if tell is None else None
sys.argv = ["onnxprune", "inspect", "m.onnx"]
sys.exit(cli.main())
"""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    says = "onnxprune: error: killed, probably for want of memory, while: start; "
    assert done.returncode == 3 and done.stderr.startswith(says) and len(done.stderr.splitlines()) == 1


def test_a_signal_that_is_there_before_anybody_heeds_it_is_one_line():
    code = """
import os, signal, sys
from onnxprune import cli
fork = os.fork
def forked():
    pid = fork()
    if not pid:
        os.kill(os.getpid(), signal.SIGINT)  # waits until signals are let in
    return pid
os.fork = forked
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["onnxprune", "inspect", "m.onnx"]
sys.exit(cli.main())
"""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "onnxprune: error: interrupted while: start\n")


@pytest.mark.parametrize("code", [DEAF, "time.sleep(60)"], ids=["deaf", "asleep"])
@pytest.mark.parametrize(
    ("number", "exit_code", "says"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["INT", "TERM"],
)
def test_a_signal_is_heeded_even_by_the_deaf(here, code, number, exit_code, says):
    with started(code) as process:
        assert process.stderr.readline() == "there\n"
        time.sleep(0.1)
        begin = time.monotonic()
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    assert time.monotonic() - begin < 10
    assert (process.returncode, len(err.splitlines())) == (exit_code, 1) and f"{says} while: analyse" in err


def test_a_terminal_tells_all_processes_at_once(here):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    with subprocess.Popen([sys.executable, "-c", RUN.format("time.sleep(60)")], env=env, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        assert process.stderr.readline() == "there\n"
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and err == "onnxprune: error: interrupted while: analyse\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_the_work_ends_with_the_one_that_waits(here):
    with started("print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)") as process:
        process.stderr.readline()
        pid = int(process.stderr.readline())
        assert pid != process.pid
        process.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize("what", ["os.fork", "mmap.mmap"])
def test_without_a_second_process_it_is_done_in_this_one(here, what):
    """No more processes, or no memory for what they share."""
    script = f"""
import mmap, os, sys
import onnxprune.cli
def refused(*_): raise OSError(12, "Cannot allocate memory")
{what} = refused
sys.argv = ["onnxprune", "inspect", "m.onnx", "--trusted"]
sys.exit(onnxprune.cli.main())
"""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_runs_no_model_needs_no_second_process():
    script = "import os, sys; os.fork = None; sys.argv = ['onnxprune', '--version']; from onnxprune.cli import main; sys.exit(main())"
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    assert subprocess.run([sys.executable, "-c", script], env=env, capture_output=True).returncode == 0
