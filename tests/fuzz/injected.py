"""Calls that fail where they are told to, in the process that installs this and in its copies.

Only calls on files in given folders count, besides those that take memory or start processes. Counts are shared with
copies: the fifth call is the fifth of all of them, and it fails once, or from then on (a disk that stays full).
"""

from __future__ import annotations

import builtins
import errno
import functools
import io
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

ERRORS: dict[str, tuple[int, ...]] = {
    "open": (errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EROFS),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG),
    "read": (errno.EIO, errno.ESTALE),
    "fsync": (errno.EIO, errno.ENOSPC),
    "replace": (errno.EIO, errno.ENOSPC, errno.EACCES),
    "link": (errno.EIO, errno.EPERM, errno.ENOSPC),
    "chmod": (errno.EPERM, errno.EIO),
    "unlink": (errno.EIO, errno.EACCES),
    "scandir": (errno.EIO, errno.EMFILE),
    "mkdir": (errno.ENOSPC, errno.EACCES),
    "stat": (errno.EIO, errno.EACCES, errno.ESTALE),
    "dup": (errno.EMFILE,),
    "map": (errno.ENOMEM, errno.ENODEV),
    "fork": (errno.EAGAIN, errno.ENOMEM),
    "pipe": (errno.EMFILE, errno.ENFILE),
    "memory": (),
    "session": (),
}
"""Site -> what the system may say there; nothing: there is no memory."""
SITES = tuple(ERRORS)
LASTING = frozenset(("open", "write", "fsync", "memory"))
"""Sites where the same may go on to happen."""
_CALLS = {
    "open": ("open",), "fsync": ("fsync", "fdatasync"), "replace": ("replace", "rename"), "link": ("link",),
    "chmod": ("chmod",), "unlink": ("unlink", "remove", "rmdir"), "scandir": ("scandir", "listdir"),
    "mkdir": ("mkdir",), "stat": ("stat", "lstat"), "dup": ("dup",), "fork": ("fork",), "pipe": ("pipe",),
}  # fmt: skip
_ARRAYS = ("empty", "zeros", "concatenate", "stack", "ascontiguousarray", "full")


class Injector:
    """Counts calls by site, and has one fail.

    Args:
        folders: files in these count.
        site: where; empty: nowhere.
        at: which call of it fails, from 0.
        number: what the system says.
        lasting: whether all later ones fail too.
    """

    def __init__(self, folders: list[Path], site: str = "", at: int = 0, number: int = 0, *, lasting: bool = False):
        self.folders = tuple(os.path.realpath(f) for f in folders)
        self.site, self.at, self.number, self.lasting = site, at, number, lasting
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def counts(self) -> dict[str, int]:
        """Calls by site so far."""
        return {site: self._number(k + 1) for k, site in enumerate(SITES)}

    @property
    def struck(self) -> int:
        """How many calls have failed."""
        return self._number(0)

    def install(self) -> None:
        """From here on, in this process and its copies, for good."""
        for site, names in _CALLS.items():
            for name in names:
                setattr(os, name, self._guarded(site, getattr(os, name), files=site not in ("fork", "pipe")))
        self._install_files()
        mmap.mmap = self._guarded("map", mmap.mmap, files=False)  # type: ignore[misc, assignment]
        for name in _ARRAYS:
            setattr(np, name, self._guarded("memory", getattr(np, name), files=False))
        import onnxruntime as ort

        ort.InferenceSession.__init__ = self._guarded("session", ort.InferenceSession.__init__, files=False)
        ort.InferenceSession.run = self._guarded("session", ort.InferenceSession.run, files=False)

    def meet(self, site: str) -> None:
        """A call is made: it may fail here."""
        k = 1 + SITES.index(site)
        count = self._number(k)
        struct.pack_into("<q", self._shared, 8 * k, count + 1)
        if site == self.site and (count == self.at or (self.lasting and count > self.at)):
            struct.pack_into("<q", self._shared, 0, self.struck + 1)
            if site == "session":
                raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation")
            raise OSError(self.number, os.strerror(self.number)) if self.number else MemoryError()

    def ours(self, file: Any) -> bool:
        """Whether a path or a descriptor is one that counts."""
        try:
            if isinstance(file, int):
                path = os.readlink(f"/proc/self/fd/{file}")
            else:
                path = os.path.join(os.getcwd(), os.fspath(file))
        except (OSError, TypeError):
            return False
        path = os.fsdecode(path)
        return path.startswith(self.folders)

    def _number(self, k: int) -> int:
        return int(struct.unpack_from("<q", self._shared, 8 * k)[0])

    def _guarded(self, site: str, real: Callable[..., Any], *, files: bool) -> Callable[..., Any]:
        @functools.wraps(real)
        def called(*args: Any, **rest: Any) -> Any:
            if not files or any(self.ours(a) for a in args[:2] if isinstance(a, (int, str, bytes, os.PathLike))):
                self.meet(site)
            return real(*args, **rest)

        return called

    def _install_files(self) -> None:
        """Python's own files: what they read and write in pieces, and how they are opened."""
        injector, real = self, io.open

        class File(io.FileIO):
            def write(self, data: Any) -> Any:
                injector.meet("write")
                return super().write(data)

            def readinto(self, into: Any) -> Any:
                injector.meet("read")
                return super().readinto(into)

            def readall(self) -> Any:
                injector.meet("read")
                return super().readall()

        def opened(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
            newline: Any = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            if not injector.ours(file):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            injector.meet("open")
            raw = File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
            buffered: Any = kind(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

        io.open = builtins.open = opened  # type: ignore[assignment]


def drawn(rnd: Random, counts: dict[str, int], folders: list[Path]) -> Injector:
    """One call of those that there were, and how it fails."""
    site = rnd.choice([s for s in SITES if counts[s]])
    number = rnd.choice(ERRORS[site]) if ERRORS[site] else 0
    lasting = site in LASTING and rnd.random() < 0.5
    return Injector(folders, site, rnd.randrange(counts[site]), number, lasting=lasting)
