"""The file that a search keeps its trials in: lines of JSON, which several processes add to, one at a time.

Imports optuna, so it is imported where that is known to be there.
"""

from __future__ import annotations

import contextlib
import mmap
import os

from optuna.storages.journal import JournalFileOpenLock


class Lock(JournalFileOpenLock):
    """What whoever adds lines holds. A last line without an end is cut off first: the disk was full, or its writer was
    killed; optuna would join the next line to it, and nobody could read the file again.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def acquire(self) -> bool:
        """Wait for it."""
        got = super().acquire()
        try:
            _cut_torn_line(self._path)
        except OSError:
            self.release()
            raise
        return got

    def release(self) -> None:
        """Let go of it: where the system does not rename it, it is taken away at once.

        Raises:
            OSError: what the system said.
        """
        try:
            super().release()
        except RuntimeError as error:  # it says that it was not held
            with contextlib.suppress(OSError):
                os.unlink(self._lock_file)
            raise (error.__context__ or error) from None


def _cut_torn_line(path: str) -> None:
    with open(path, "rb+") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            whole = text.rfind(b"\n") + 1
        if whole < size:
            file.truncate(whole)
