"""A search in several processes of this machine, which have the opened model and the samples from here.

They meet in the storage alone (`pipeline.searching`): one that dies is missed by nobody. What this process has in
memory comes to them by way of a file in a folder of this user's.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from onnxprune.errors import UnsupportedError, UsageError, one_line
from onnxprune.measure.metric import Metric
from onnxprune.pipeline.asked import Progress
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.searching import Search
from onnxprune.pipeline.settings import TRIALS, Settings
from onnxprune.report.searched import Searched


def search_with(
    subject: Subject,
    storage: str | None,
    settings: Settings,
    *,
    trials: int = TRIALS,
    workers: int = 1,
    metric: str | Metric | None = None,
    progress: Progress | None = None,
) -> Searched:
    """Make trials, in so many processes, until there are as many as were asked for.

    Args:
        subject, storage, settings, metric, progress: as for `Search`.
        trials: so many in all.
        workers: this process, and others.

    Raises:
        UsageError: no samples, no optuna, or what does not go with several processes.
        FileError: the storage cannot be used.
    """
    check_workers(workers, settings)
    if workers == 1:
        return Search(subject, storage, settings, metric=metric, progress=progress).run(trials)
    if callable(metric):
        raise UsageError("a metric that is a function stays in one process; give workers=1, or file.py:function")
    settings = replace(settings, threads=settings.threads or max(1, (os.cpu_count() or 1) // workers))
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        address = storage or str(Path(folder, "journal"))
        search = Search(subject, address, settings, metric=metric, progress=progress)
        search.study  # noqa: B018 (there, before others look for it)
        work = _Work(replace(subject, parts={}), address, settings, metric, trials)
        with _helped(work, Path(folder, "work"), workers - 1):
            search.run(trials)
        return search.run(trials)  # what a helper has left undone


def check_workers(workers: int, settings: Settings) -> None:
    """Refuse none, and several where times count."""
    if workers < 1:
        raise UsageError(f"{workers} workers make no trial; give --workers 1 or more")
    if workers > 1 and settings.of == "latency":
        raise UsageError("times are measured with nothing beside them; --of latency goes with --workers 1")


@dataclass(frozen=True)
class _Work:
    """What another process needs to take part; as for `Search`."""

    subject: Subject
    storage: str
    settings: Settings
    metric: str | None
    trials: int


@contextmanager
def _helped(work: _Work, path: Path, count: int) -> Iterator[None]:
    """Other processes make trials as well, until there are enough; inside.

    Raises:
        UnsupportedError: they cannot be sent what they need.
    """
    try:
        path.write_bytes(pickle.dumps(work, 5))
    except Exception as error:  # protobuf, pickle and what is pickled have errors of their own
        remedy = "give --workers 1, and start the same command several times"
        raise UnsupportedError(one_line(f"cannot be sent to other processes: {error}; {remedy}")) from error
    code = "import sys; from onnxprune.pipeline.joint_search import help_out; help_out(sys.argv[1])"
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    argv = [sys.executable, "-c", code, str(path)]
    others = [subprocess.Popen(argv, **quiet) for _ in range(count)]  # type: ignore[call-overload]
    try:
        yield
        for other in others:
            other.wait()
    finally:
        for other in others:
            other.terminate()
            other.wait()


def help_out(path: str) -> None:
    """In another process: make trials of the same search, and say nothing."""
    work: _Work = pickle.loads(Path(path).read_bytes())  # written above, in a folder of this user alone
    Search(work.subject, work.storage, work.settings, metric=work.metric).run(work.trials)
