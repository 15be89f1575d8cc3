"""Work in a child process with a clock and a cap on memory: what a model may do to a process, it does there.

On Linux the child is a fork, which takes milliseconds and needs nothing sent to it. Elsewhere, and where a fork is
stuck as another thread held a lock when it was made, it is a fresh interpreter. A child answers with bytes that nobody
unpickles. It dies with its parent, by its clock, or when it holds too much. Knows no model.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from onnxprune import errors
from onnxprune.errors import FileError, ModelError, one_line
from onnxprune.runtime import inside, signals

PAUSE_S = 0.01
"""Between two looks at a child."""
STUCK_S = 3.0
"""Asleep for so long without any work: a fork that waits for a lock that nobody will let go."""
PATIENCE = 8
"""How many times its seconds a child may be under way on a machine that is busy with something else."""
FORKS = sys.platform == "linux"  # macOS has frameworks that do not survive it


@dataclass(frozen=True)
class Caps:
    """What a child may take.

    Attributes:
        seconds: of its own time; on a busy machine it may be under way for longer.
        room: bytes that it holds beyond what its parent held.
    """

    seconds: float = 6.0
    room: int = 5 << 28


class Stopped(ModelError):
    """A child was killed, or died: what it ran is not to be run again."""


class Child:
    """A job under way.

    Args:
        job: a function of a module.
        args: of the job.
        label: what messages call the model.
        what: what the child does, in words: "its first run".
        remedy: what helps where the caps are too small.
        caps: what it may take.
        more: asked once, when that is not enough: what it may take then.
        fork: whether it may be a fork.
    """

    def __init__(
        self,
        job: inside.Job,
        args: Sequence[Any] = (),
        *,
        label: str,
        what: str,
        remedy: str = "simplify the model first",
        caps: Caps | None = None,
        more: Callable[[], Caps] | None = None,
        fork: bool = FORKS,
    ) -> None:
        self._job, self._args, self._more = job, args, more
        self._label, self._what, self._remedy = label, what, remedy
        self._caps = caps or Caps()
        self._start(fork)

    def result(self) -> bytes:
        """What the job returned.

        Raises:
            Stopped: it took too much, or died.
            PruneError: what the job raised.
        """
        answer = self._answer()
        if answer[:1] == inside.FULL:  # refused at once, where honest work may have had it
            if self._more is not None:
                self._caps, self._more = self._more(), None
            if self._caps.room > self._began_with:  # or has it since, which came too late
                self._start(isinstance(self._process, _Fork))
                answer = self._answer()
        kind, said = answer[:1], answer[1:]
        if kind == inside.DONE:
            return said
        if kind == inside.FULL:
            self._too_much(f"{self._caps.room / 2**30:.1f} GiB of memory")
        if kind == inside.REFUSED:
            name, text = json.loads(said)
            raise getattr(errors, name, ModelError)(text)
        raise RuntimeError(said.decode("utf-8", "replace"))

    def _answer(self) -> bytes:
        try:
            while not self._process.over(PAUSE_S):
                self._watch()
        finally:
            self._process.kill()
        return self._process.answer or self._died(self._process.status)

    def kill(self) -> None:
        """It is not wanted any more."""
        self._process.kill()

    def _start(self, fork: bool) -> None:
        self._begin = self._moved = time.monotonic()
        self._worked, self._began_with = 0.0, self._caps.room
        make: Callable[..., _Process] = _Fork if fork else _Fresh
        try:
            self._process = make(self._job, self._args, self._caps.room)
        except (OSError, ValueError, pickle.PicklingError) as error:
            raise FileError(one_line(f"{self._label}: {self._what} needs a child process: {error}")) from error
        self._held = _usage(self._process.pid).held

    def _watch(self) -> None:
        """Kill the child when it is out of time or holds too much; start afresh when it is stuck."""
        now, used = time.monotonic(), _usage(self._process.pid)
        if used.worked > self._worked or not used.asleep:
            self._moved, self._worked = now, used.worked
        elif now - self._moved > STUCK_S and isinstance(self._process, _Fork):
            self._process.kill()
            self._start(fork=False)
            return
        took, limit = now - self._begin, self._caps.seconds
        late = took > limit and (used.worked > limit or took > PATIENCE * limit)
        full = used.held - self._held > self._caps.room
        if (late or full) and self._more is not None:
            self._caps, self._more = self._more(), None
            _allow(self._process.pid, self._caps.room)
        elif late:
            self._too_much(f"{limit:.2g} s" if limit < 10 else f"{limit:.0f} s")
        elif full:
            self._too_much(f"{self._caps.room / 2**30:.1f} GiB of memory")

    def _died(self, status: int) -> NoReturn:
        if status in (-signal.SIGINT, -signal.SIGTERM) and callable(signal.getsignal(-status)):
            signal.raise_signal(-status)  # meant for all of us
        how = f"crashed (status {status})"
        if status == -signal.SIGKILL:
            how = "was killed, probably for want of memory"
        elif status < 0:
            how = f"crashed ({signal.Signals(-status).name})"
        raise Stopped(one_line(f"{self._label}: {self._what} {how}; the model is damaged, export it again"))

    def _too_much(self, what: str) -> NoReturn:
        raise Stopped(one_line(f"{self._label}: {self._what} took more than {what}; {self._remedy}"))


def call(job: inside.Job, *args: Any, label: str, what: str, **how: Any) -> bytes:
    """The result of a job in a child; arguments as those of `Child`."""
    return Child(job, args, label=label, what=what, **how).result()


# -- the two kinds -----------------------------------------------------------------------------------------


class _Process(Protocol):
    """`answer`: what it has said, empty unless all of it was heard; `status`: as subprocess tells it."""

    pid: int
    answer: bytes
    status: int

    def over(self, pause: float) -> bool:
        """Whether it has answered or died; waits for so many seconds."""

    def kill(self) -> None:
        """End it, unless it has ended."""


class _Fork:
    """A copy of this process."""

    def __init__(self, job: inside.Job, args: Sequence[Any], room: int) -> None:
        self.answer, self.status = b"", 0
        self._heard = bytearray()
        ours, theirs = os.pipe()
        parent = os.getpid()
        with warnings.catch_warnings(), signals.later():
            warnings.simplefilter("ignore")  # that there are threads: a child that is stuck is started afresh
            self.pid = os.fork()
            if not self.pid:
                inside.be_copy(job, args, theirs, room, parent)
        os.close(theirs)
        self._pipe = ours

    def over(self, pause: float) -> bool:
        if self._pipe < 0:
            return True
        if not select.select([self._pipe], [], [], pause)[0]:
            return False
        part = os.read(self._pipe, 1 << 20)
        self._heard += part
        if part:
            return False
        self.answer = inside.whole(self._heard)
        self._end(kill=bool(self.answer))
        return True

    def kill(self) -> None:
        if self._pipe >= 0:
            self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        os.close(self._pipe)
        self._pipe = -1
        with contextlib.suppress(OSError):  # somebody else has waited for it
            if kill:
                os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class _Fresh:
    """An interpreter of its own."""

    def __init__(self, job: inside.Job, args: Sequence[Any], room: int) -> None:
        self.answer, self.status = b"", 0
        self._task: bytes | None = pickle.dumps((job, tuple(args)))
        code = f"from onnxprune.runtime.inside import be_fresh; be_fresh({room}, {os.getpid()})"
        # OpenBLAS maps a large stack per thread, which the cap on addresses would count
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        self.pid = self._process.pid

    def over(self, pause: float) -> bool:
        task, self._task = self._task, None  # once begun, it is sent to its end
        try:
            heard, _ = self._process.communicate(task, timeout=pause)
        except subprocess.TimeoutExpired:
            return False
        self.answer, self.status = inside.whole(heard), self._process.returncode
        return True

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@dataclass(frozen=True)
class _Usage:
    """Seconds of processor time, bytes in memory, and whether it waits for something."""

    worked: float
    held: int
    asleep: bool


def _usage(pid: int) -> _Usage:
    """What a process has taken; where the system does not tell, it counts as busy all the time."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            fields = file.read().rpartition(") ")[2].split()  # behind its name, which may hold anything
        ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        return _Usage((int(fields[11]) + int(fields[12])) / ticks, int(fields[21]) * page, fields[0] in "SD")
    except (OSError, IndexError, ValueError, AttributeError):
        return _Usage(float("inf"), 0, False)


def _allow(pid: int, room: int) -> None:
    """Let a process have more addresses."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
        resource.prlimit(pid, resource.RLIMIT_AS, (inside.addresses(room, hard), hard))
