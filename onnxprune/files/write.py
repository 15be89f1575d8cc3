"""Files written so that nobody ever sees half of one.

One trick: fill a temporary file in the same folder, flush it, read it back, and only then give it the name. Knows
nothing of ONNX Runtime (a caller passes `verify`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from onnx import ModelProto, TensorProto

from onnxprune.errors import FileError, one_line
from onnxprune.files.external import external_files, holds, load_external
from onnxprune.files.functions import run_checker
from onnxprune.files.parse import parse
from onnxprune.files.read import check_model
from onnxprune.files.walk import walk_model
from onnxprune.protobuf import disk, serialize
from onnxprune.protobuf.external import write_external

_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}


def atomic_write(
    model: ModelProto,
    path: str | Path,
    *,
    force: bool = False,
    sources: Iterable[str | Path] = (),
    verify: Callable[[Path], object] | None = None,
) -> None:
    """Writes `model` to `path`, whole or not at all.

    A reader sees the old file or the new one, also when the process is killed. Above `MAX_PROTOBUF` bytes of
    weights they go to `<stem>-<hash of the content>.data` beside it, which is in place before the model is.

    Args:
        model: written as it is (IR version, opset, metadata); its nodes must pass `check_model`.
        path: the new file.
        force: replace an existing file. A symbolic link is replaced itself, not what it points to.
        sources: files that must never be overwritten, whatever `force` says; also under another name, and
            also the external data files that they name.
        verify: loads the temporary file before it gets its name; whatever it raises stops the writing. None: the
            file is parsed and checked.

    Raises:
        FileError: the path is taken or cannot be written (no space, no permission).
        ModelError: the model is not sound.
    """
    path, sources = Path(path), tuple(map(Path, sources))
    ensure_writable(path, force=force, sources=sources)
    model = check_model(model, name=str(path))
    placed: list[Path] = []
    with disk.among_others(path.parent) as alone:
        before = _own_data(path)
        try:
            if serialize.weight_bytes(model) > serialize.MAX_PROTOBUF or serialize.byte_size(model) >= 2**31:
                model = write_external(
                    model, path.parent, stem=path.stem, placed=placed, mode=disk.mode_of(path) if force else None
                )
            _place(model, path, force, verify)
        except BaseException:
            # The model may be in place already (an interruption right after), or a second writer's with the same
            # weights, or about to be: then the data file stays.
            left = set(placed) - set(external_files(path))
            for extra in left if left and alone() else ():
                extra.unlink(missing_ok=True)
            raise
        gone = before - set(external_files(path))
        if gone and alone():
            _remove_data(gone, path, sources)


def _place(model: ModelProto, path: Path, force: bool, verify: Callable[[Path], object] | None) -> None:
    """The file under its name, after it was read back and has passed `verify`."""
    with _Stage(path, force) as stage:
        stage.write(serialize.serialized(model))
        back = _check_written(stage.temporary, model, path)
        if verify is None:
            _check_loads(back, stage.temporary, path)
        else:
            del back
            verify(stage.temporary)
        stage.commit()


def _own_data(path: Path) -> set[Path]:
    """The data files that an earlier run has written for the model at `path`."""
    own = re.compile(re.escape(path.stem) + r"-[0-9a-f]{16}\.data")
    found = () if path.is_symlink() else external_files(path)
    return {extra for extra in found if extra.parent == path.parent and own.fullmatch(extra.name)}


def _remove_data(gone: Iterable[Path], path: Path, sources: Iterable[str | Path]) -> None:
    """Removes data files of a model that was replaced, unless another in the folder names them, or a source does."""
    with contextlib.suppress(OSError):
        others = {other for other in path.parent.glob("*.onnx") if other != path} | set(map(Path, sources))
        for extra in gone:
            named = any(holds(other, os.fsencode(extra.name)) for other in others)
            if not named and stat.S_ISREG(os.lstat(extra).st_mode):
                extra.unlink()


def atomic_write_text(text: str, path: str | Path, *, force: bool = False, sources: Iterable[str | Path] = ()) -> None:
    """Writes `text` as UTF-8 to `path`, whole or not at all.

    Args:
        text: line ends are written as they are.
        path: the new file.
        force: replace an existing file.
        sources: files that must never be overwritten, whatever `force` says.

    Raises:
        FileError: the path is taken or cannot be written.
    """
    atomic_write_bytes(text.encode("utf-8", "backslashreplace"), path, force=force, sources=sources)


def atomic_write_bytes(
    data: bytes, path: str | Path, *, force: bool = False, sources: Iterable[str | Path] = ()
) -> None:
    """Writes `data` to `path`, whole or not at all; arguments and errors as for `atomic_write_text`."""
    atomic_write_by(lambda file: file.write(data), path, force=force, sources=sources)


def atomic_write_by(
    fill: Callable[[IO[bytes]], object], path: str | Path, *, force: bool = False, sources: Iterable[str | Path] = ()
) -> None:
    """Writes what `fill` writes into a file to `path`, whole or not at all; errors as for `atomic_write_text`."""
    path = Path(path)
    ensure_writable(path, force=force, sources=sources)
    with _Stage(path, force) as stage:
        stage.fill(fill)
        stage.commit()


def ensure_writable(path: str | Path, *, force: bool = False, sources: Iterable[str | Path] = ()) -> None:
    """Refuses an output path early, before the work is done.

    Args:
        path: where a file is going to be written.
        force: whether an existing file may be replaced.
        sources: files that must not be overwritten, as in `atomic_write`.

    Raises:
        FileError: the path is a source, a folder, taken, or in a folder that does not exist.
    """
    path = Path(path)
    if "\0" in str(path) or path.name in ("", ".", ".."):
        raise FileError(one_line(f"{path!s}: is not a file name; choose another"))
    taken = os.path.lexists(path)
    for source in map(Path, sources):
        if _same_file(path, source):
            raise FileError(one_line(f"{path}: is the input {source} itself; choose another output"))
        if taken and any(_same_file(path, extra) for extra in external_files(source)):
            raise FileError(one_line(f"{path}: holds the weights of the input {source}; choose another output"))
    if path.is_dir():
        raise FileError(one_line(f"{path}: is a folder; name a file"))
    if taken and stat.S_IFMT(os.lstat(path).st_mode) not in (stat.S_IFREG, stat.S_IFLNK):
        raise FileError(one_line(f"{path}: is not a regular file; choose another output"))
    if taken and not force:
        raise _taken(path)
    if not path.parent.is_dir():
        raise FileError(one_line(f"{path}: there is no folder {path.parent}; create it first"))


def _taken(path: Path) -> FileError:
    return FileError(one_line(f"{path}: exists already; use --force (force=True) to replace it"))


def _same_file(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        if os.path.samefile(one, other):
            return True
    return os.path.realpath(one) == os.path.realpath(other)


class _Stage:
    """A temporary file beside `path`: `write` or `fill`, then `commit`; leaving the block removes what is left. A file
    that is replaced hands its permissions on."""

    def __init__(self, path: Path, force: bool) -> None:
        self.path = path
        self.force = force
        self.temporary = disk.temporary_in(path.parent)
        self.mode = disk.mode_of(path) if force else None
        self._made = contextlib.ExitStack()

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._made.close()
        if isinstance(error, OSError):
            raise disk.write_error(self.path, error) from error

    def write(self, parts: Iterable[bytes]) -> None:
        self.fill(lambda file: file.writelines(parts))

    def fill(self, fill: Callable[[IO[bytes]], object]) -> None:
        file = self._made.enter_context(disk.making(self.temporary, 0o666 if self.mode is None else self.mode | 0o600))
        fill(file)
        disk.flush(file)
        file.close()

    def commit(self) -> None:
        if self.mode is not None:
            os.chmod(self.temporary, self.mode)
        if self.force:
            os.replace(self.temporary, self.path)
        else:
            _claim(self.temporary, self.path)
        disk.flush_folder(self.path.parent)


def _claim(temporary: Path, path: Path) -> None:
    """Gives the file its name if nobody has it yet: of two writers, one wins and one is told."""
    try:
        if os.name == "nt":
            os.rename(temporary, path)  # on Windows this refuses an existing name
        else:
            os.link(temporary, path)
        return
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    # A file system without hard links (FAT, some mounts): reserve the name with an empty file, then replace.
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError as error:
        raise _taken(path) from error
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _check_written(temporary: Path, written: ModelProto, path: Path) -> bytes:
    """What is on the disk, which must be what was meant."""
    back = temporary.read_bytes()
    at, same = 0, True
    for part in serialize.serialized(written):
        same = same and back[at : at + len(part)] == part
        at += len(part)
    if not same or at != len(back):
        raise FileError(one_line(f"{path}: the disk gave back other bytes than were written; check the disk"))
    return back


def _check_loads(back: bytes, temporary: Path, path: Path) -> None:
    """That a file with these bytes is a sound model."""
    model = parse(back, str(path))
    walk = walk_model(model, str(path))
    if any(t.data_location == TensorProto.EXTERNAL for _, t in walk.tensors):
        load_external(walk.tensors, str(path), temporary.parent)
    if len(walk.graphs) > 1:
        return  # checked a moment ago, in a child
    run_checker(model, str(path))
