"""Tasks where they are asked to run, and results that are known already."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from onnxprune.elsewhere.backends import HERE, Backend, Connection, named
from onnxprune.elsewhere.store import NOTHING, Store
from onnxprune.elsewhere.tasks import Missed, Task
from onnxprune.errors import ProviderError, one_line

TRIES = 3
"""How often what all workers have lost is sent out anew, without one result in between."""


@dataclass(frozen=True)
class Elsewhere:
    """Where work that does not depend on the place is done, and where its results are kept.

    Attributes:
        backend: a name in `backends.BACKENDS`; None: threads of this process.
        address: of its scheduler; None: on this machine.
        store: a folder, or an address that fsspec knows; None: nothing is kept.

    Raises:
        UsageError: there is no such backend, it is not installed, or has no address.
    """

    backend: str | None = None
    address: str | None = None
    store: str | None = None

    def __post_init__(self) -> None:
        self._engine  # noqa: B018 (refuses what cannot be)

    @cached_property
    def _engine(self) -> Backend | None:
        return named(self.backend or HERE, self.address)

    @cached_property
    def _connected(self) -> list[Connection]:
        """The engine, once it was used; let go of with this, or when it has lost its workers."""
        held: list[Connection] = []
        weakref.finalize(self, _close, held)
        return held

    @cached_property
    def _kept(self) -> Store | None:
        return None if self.store is None else Store(self.store)

    @property
    def idle(self) -> bool:
        """Whether all is done here, and nothing kept."""
        return self._engine is None and self.store is None

    def results(
        self, task: Task, items: Sequence[Any], here: Callable[[Sequence[Any]], Iterable[Any]]
    ) -> Iterator[Any]:
        """The results of the items, in order.

        Args:
            task: what evaluates them.
            items: plain values where results are kept.
            here: the same in this process: items -> their results, in order.

        Raises:
            PruneError: what the evaluation of an item raises.
            ProviderError: nothing answers at the address, or no worker stays.
        """
        store = self._kept if task.of is not None else None
        known = [NOTHING if store is None else store.get(task.of or {}, item) for item in items]
        todo = [item for item, value in zip(items, known, strict=True) if value is NOTHING]
        fresh = iter(here(todo) if self._engine is None else self._away(self._engine, task, todo)) if todo else iter(())
        for item, value in zip(items, known, strict=True):
            if value is NOTHING:
                value = next(fresh)
                if store is not None:
                    store.put(task.of or {}, item, value)
            yield value

    def _away(self, engine: Backend, task: Task, items: Sequence[Any]) -> Iterator[Any]:
        done, tries, held = 0, 0, self._connected
        while done < len(items):
            try:
                if not held:
                    held.append(engine.connect(self.address))
                for found in held[0].run(task.parcel, items[done:]):
                    if isinstance(found, Missed):
                        raise found.error()
                    done, tries = done + 1, 0
                    yield found
            except engine.lost() as error:
                _close(held)
                tries += 1
                if tries == TRIES:
                    words = f"--backend {engine.name}: its workers were lost {tries} times in a row: {error!r}"
                    raise ProviderError(one_line(words)) from error


def _close(held: list[Connection]) -> None:
    while held:
        held.pop().close()
