"""Where tasks may run: the one table of backends. An entry hands items to an engine that exists and gives the results
back in order; what a lost worker had in hand, the engine gives to another.

Engines are imported when they are used. Whoever may reach the address of one may run anything there: they are for
networks that are trusted.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

from onnxprune.elsewhere.tasks import Parcel, evaluate
from onnxprune.errors import ProviderError, UsageError, one_line, unknown

C = TypeVar("C", bound="Connection")
PATIENCE = 15
"""Seconds that a scheduler has to answer."""


class Connection(Protocol):
    """An engine that is connected to; made of its address, or None."""

    def run(self, parcel: Parcel, items: Sequence[Any]) -> Iterator[Any]:
        """What `evaluate` makes of the items, in order. A parcel that was sent already is not sent again."""

    def close(self) -> None:
        """Let go of the engine."""


@dataclass(frozen=True)
class Backend:
    """An engine.

    Attributes:
        name: as it is asked for.
        help: a line.
        package: what it needs.
        connect: address -> the engine.
        lost: the errors that say that workers were lost for good, and their items with them.
        address: what an address is; empty where there is none.
    """

    name: str
    help: str
    package: str
    connect: Callable[[str | None], Connection]
    lost: Callable[[], tuple[type[BaseException], ...]]
    address: str = ""


BACKENDS: dict[str, Backend] = {}
"""By name, in the order in which they are shown."""
HERE = "threads"
"""Threads of this process: the default, no engine."""


def backend(
    name: str,
    *,
    help: str,
    package: str,
    lost: Callable[[], tuple[type[BaseException], ...]],
    address: str = "",
) -> Callable[[type[C]], type[C]]:
    """Enters a class of connections into the table; arguments as the attributes of `Backend`."""

    def entered(connection: type[C]) -> type[C]:
        BACKENDS[name] = Backend(name, help, package, connection, lost, address)
        return connection

    return entered


def named(name: str, address: str | None = None) -> Backend | None:
    """The backend of a name; None for this process.

    Raises:
        UsageError: there is none, its package is not installed, or it has no address.
    """
    if name not in (HERE, *BACKENDS):
        raise unknown("backend", name, (HERE, *BACKENDS))
    found = BACKENDS.get(name)
    if address is not None and (found is None or not found.address):
        raise UsageError(f"--backend {name} is on this machine and has no address; drop --address, or name an engine")
    if found is not None and find_spec(found.package) is None:
        raise UsageError(f"--backend {name} needs {found.package} - pip install {found.package}")
    return found


# ---- processes of this machine ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _InFile:
    """A parcel in a file of this machine."""

    key: str
    path: str

    def fetch(self) -> Parcel:
        found: Parcel = pickle.loads(Path(self.path).read_bytes())  # written below, in a folder of this user alone
        return found


def _broken() -> tuple[type[BaseException], ...]:
    from joblib.externals.loky.process_executor import BrokenProcessPool

    return (BrokenProcessPool,)


@backend("processes", help="processes of this machine (joblib)", package="joblib", lost=_broken)
class Processes:
    """One process a core; the parcel lies in a file."""

    def __init__(self, address: str | None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="onnxprune-")

    def run(self, parcel: Parcel, items: Sequence[Any]) -> Iterator[Any]:
        """As `Connection`."""
        import joblib

        path = Path(self.folder.name, parcel.key)
        if not path.exists():
            path.write_bytes(pickle.dumps(parcel, 5))
        sent = _InFile(parcel.key, str(path))
        pool = joblib.Parallel(max(2, joblib.cpu_count()), backend="loky", batch_size=1, return_as="generator")
        yield from pool(joblib.delayed(evaluate)(sent, item, 1) for item in items)

    def close(self) -> None:
        """As `Connection`."""
        self.folder.cleanup()


# ---- dask ------------------------------------------------------------------------------------------------


def _dask_lost() -> tuple[type[BaseException], ...]:
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError

    return (KilledWorker, FutureCancelledError, CancelledError, CommClosedError)


def _in_dask(sent: Parcel, item: Any) -> Any:
    """`evaluate` in a worker, on as many cores as it was told to have threads: others may share its machine."""
    from distributed import get_worker

    return evaluate(sent, item, get_worker().state.nthreads)


@backend(
    "dask", help="workers of a dask scheduler (dask.distributed); without an address, processes of this machine",
    package="distributed", lost=_dask_lost, address="tcp://HOST:8786",
)  # fmt: skip
class Dask:
    """Not by way of joblib: with one worker of one thread that computes in the calling process instead."""

    def __init__(self, address: str | None) -> None:
        from distributed import Client

        own = {} if address else {"processes": True, "threads_per_worker": 1, "n_workers": os.cpu_count() or 1}
        try:
            self.client = Client(address, timeout=PATIENCE, set_as_default=False, **own)
        except (OSError, ValueError) as error:
            raise unreachable("dask", address, error) from error
        if own:
            self.client.wait_for_workers(1)
        elif not self.client.nthreads():
            self.client.close()
            raise ProviderError(f"--backend dask: no worker at {address}; start one with `dask worker {address}`")
        self._sent: tuple[str, Any] = "", None

    def run(self, parcel: Parcel, items: Sequence[Any]) -> Iterator[Any]:
        """As `Connection`."""
        if self._sent[0] != parcel.key:
            self._sent = parcel.key, self.client.scatter(parcel, broadcast=True, hash=False)
        run = partial(self.client.submit, _in_dask, self._sent[1], pure=False)
        waiting = deque(run(item=item) for item in items)
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """As `Connection`."""
        self._sent = "", None
        self.client.close()


# ---- ray -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _InRay:
    """A parcel in ray's object store: every machine gets it once."""

    key: str
    at: tuple[Any]

    def fetch(self) -> Parcel:
        import ray

        found: Parcel = ray.get(self.at[0])
        return found


def _ray_lost() -> tuple[type[BaseException], ...]:
    from ray.exceptions import ObjectLostError, WorkerCrashedError

    return (WorkerCrashedError, ObjectLostError)


@backend(
    "ray", help="workers of a ray cluster; without an address, processes of this machine",
    package="ray", lost=_ray_lost, address="HOST:6379, ray://HOST:10001 or auto",
)  # fmt: skip
class Ray:
    """Not by way of joblib, whose pool of actors does not give away what a lost one had in hand."""

    def __init__(self, address: str | None) -> None:
        import ray

        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise unreachable("ray", address, error) from error
        self._sent: _InRay | None = None

    def run(self, parcel: Parcel, items: Sequence[Any]) -> Iterator[Any]:
        """As `Connection`."""
        import ray

        if self._sent is None or self._sent.key != parcel.key:
            self._sent = _InRay(parcel.key, (ray.put(parcel),))
        run = ray.remote(max_retries=3)(evaluate)
        for waiting in [run.remote(self._sent, item, 1) for item in items]:  # ray reckons with one core a task
            yield ray.get(waiting)

    def close(self) -> None:
        """As `Connection`; the engine itself goes with this process, others may use it."""
        self._sent = None


def unreachable(name: str, address: str | None, error: Exception) -> ProviderError:
    """That nothing answers."""
    where = address or "this machine"
    return ProviderError(one_line(f"--backend {name}: nothing answers at {where} ({error}); check the address"))
