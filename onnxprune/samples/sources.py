"""The forms in which people have samples: one entry each, which says what it recognises and how it is read.

A new form is one function, here or in a program of one's own:

    @source("a .h5", "file", suffix(".h5"), extra=("h5py", "a .h5 needs h5py; pip install h5py"))
    def h5(reading, path):
        import h5py

        with h5py.File(path) as file:
            yield reading.item(str(path), {name: data[:] for name, data in file.items()})

Messages and the help of `--calib` name it from then on. How bytes are read, within which bounds, is known elsewhere;
it is imported by the entry that needs it, so that help, which is made from this table, need not wait for numpy.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxprune.errors import CalibrationError
from onnxprune.samples.messages import saying, shown
from onnxprune.samples.user_code import FUNCTION, function_of, importable

if TYPE_CHECKING:
    from onnxprune.samples.layout import Entry
    from onnxprune.samples.reading import Reading

Place = Literal["file", "folder", "name", "python"]
Find = Callable[[Any], Any]
Read = Callable[["Reading", Any], Iterable["Entry"]]

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


# ---- the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One form of samples.

    Attributes:
        words: what messages and help call it, such as "a .npz"; of a folder, what lies in it; empty where the words of
            the others cover it.
        place: what it is looked for in: a "file" or a "folder" that exists, the "name" of any path, or an object
            of "python".
        finds: what there is to read in such a path or object, or None.
        read: the entries of what was found. They are taken one by one, up to the limit.
        first: whether it is asked before the others of its place, because one of those would take its samples too.
        extra: a module that it takes, and what to say where that is missing.
    """

    words: str
    place: Place
    finds: Find
    read: Read
    first: bool = False
    extra: tuple[str, str] | None = None


SOURCES: list[Source] = []
"""In the order in which they are named, and asked."""


def source(
    words: str, place: Place, finds: Find, *, first: bool = False, extra: tuple[str, str] | None = None
) -> Callable[[Read], Read]:
    """Enters the decorated function as what reads a form of samples.

    Args:
        words: what messages and help call it.
        place: what it is looked for in.
        finds: what there is to read in it.
        first: whether it is asked before the others of its place.
        extra: a module that it takes, and what to say where that is missing.
    """

    def enter(read: Read) -> Read:
        SOURCES.append(Source(words, place, finds, read, first, extra))
        return read

    return enter


def when(recognised: Callable[[Any], bool]) -> Find:
    """Finds what was given itself, where it is recognised."""
    return lambda given: given if recognised(given) else None


def suffix(text: str) -> Find:
    """Finds files whose name ends so."""
    return when(lambda path: path.suffix.lower() == text)


def kinds() -> str:
    """What a path may be: `a .npz, ..., a folder of .npy, ... or images, or file.py:function`."""
    words = [*_words("file"), f"a folder of {_either(_words('folder'))}", *_words("name")]
    return f"{', '.join(words[:-1])}, or {words[-1]}"


def _words(place: Place) -> list[str]:
    return [entry.words for entry in SOURCES if entry.place == place and entry.words]


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


# ---- asking it -------------------------------------------------------------------------------------------


def read(reading: Reading, given: Any) -> list[Entry]:
    """The entries of the samples in `given`, a path or an object: as many as the limit needs.

    Raises:
        CalibrationError: they are missing, cannot be read, do not fit the model, or need an extra.
        UsageError: they are images, and nobody has said how one becomes an input.
        FileError: there is no room for the temporary file.
    """
    if not isinstance(given, str | os.PathLike):
        return _read_object(reading, given)
    reading.title = shown(given)
    with saying(reading.title):
        return _read_path(reading, Path(os.fspath(given)))


def _read_path(reading: Reading, path: Path) -> list[Entry]:
    folder = path.is_dir()
    places: tuple[Place, ...] = ("folder",) if folder else ("file", "name") if path.is_file() else ("name",)
    for place in places:
        if (entries := _ask(reading, place, path)) is not None:
            return entries
    if folder:
        what = f"no {_either(_words('folder'))} in this folder{_instead(path)}"
    else:
        what = "not a source of samples" if path.exists() else "not found"
    raise CalibrationError(f"{reading.title}: {what}; give {kinds()}")


def _instead(folder: Path) -> str:
    """What there is instead, and what reads it: `, but 120 files .wav, which a function of yours can read (...)`."""
    kinds = (path.suffix.lower() for path in folder.iterdir() if path.suffix[1:].isalnum() and path.is_file())
    ((kind, count),) = Counter(kinds).most_common(1) or (("", 0),)
    return f", but {count} files {kind}: a function of yours can read them (`onnxprune help samples`)" if count else ""


def is_sample(path: Path, folder: Path) -> bool:
    """Whether the file at `path` is there and is one of the samples in the folder."""
    if not path.exists() or not folder.is_dir():
        return False
    place = os.path.realpath(path)
    for entry in (entry for entry in SOURCES if entry.place == "folder"):
        for own in (os.path.realpath(found) for found in entry.finds(folder) or () if isinstance(found, Path)):
            if place == own or (path.suffix == ".pb" and place == os.path.join(own, path.name)):
                return True
    return False


def _read_object(reading: Reading, given: Any) -> list[Entry]:
    entries = _ask(reading, "python", given)
    if entries is None:
        raise _no_source(reading, given)
    return entries


def _ask(reading: Reading, place: Place, given: Any) -> list[Entry] | None:
    for entry in sorted((entry for entry in SOURCES if entry.place == place), key=lambda entry: not entry.first):
        found = entry.finds(given)
        if found is not None:
            if entry.extra is not None and importlib.util.find_spec(entry.extra[0]) is None:
                raise CalibrationError(f"{reading.title}: {entry.extra[1]}")
            return reading.enough(entry.read(reading, found))
    return None


def _no_source(reading: Reading, given: Any) -> CalibrationError:
    name = type(given).__name__
    return CalibrationError(
        f"{reading.title}: {name} is no source of samples; give {kinds()}, {_either(_words('python'))}"
    )


# ---- files -----------------------------------------------------------------------------------------------


@source("a .npz", "file", suffix(".npz"))
def npz(reading: Reading, path: Path) -> Iterator[Entry]:
    """Arrays keyed by input name; a model of one input takes any single key."""
    from onnxprune.samples import arrays

    yield arrays.npz(reading, path)


@source("a .npy", "file", suffix(".npy"))
def npy(reading: Reading, path: Path) -> Iterator[Entry]:
    """The samples of a model of one input."""
    from onnxprune.samples import arrays

    yield arrays.npy(reading, path)


# ---- folders ---------------------------------------------------------------------------------------------


def _ending(paths: Iterable[Path], suffixes: frozenset[str]) -> list[Path] | None:
    return sorted(path for path in paths if path.suffix.lower() in suffixes) or None


@source(".npy", "folder", lambda folder: _ending(folder.iterdir(), frozenset({".npy"})))
def npy_folder(reading: Reading, paths: list[Path]) -> Iterator[Entry]:
    """In the order of their names, a sample or a batch each."""
    from onnxprune.samples import arrays

    return (arrays.npy(reading, path) for path in paths)


def _test_data_sets(folder: Path) -> list[Path] | None:
    if (folder / "input_0.pb").exists():
        return [folder]
    sets = [child for child in folder.glob("test_data_set_*") if child.is_dir()]
    return sorted(sets, key=lambda child: (len(child.name), child.name)) or None  # 2 before 10


@source("test_data_set_*", "folder", _test_data_sets, first=True)
def test_data_sets(reading: Reading, folders: list[Path]) -> Iterator[Entry]:
    """ONNX's own form, one such folder or a folder of them: `input_0.pb` and so on."""
    from onnxprune.samples import arrays

    return (arrays.test_data_set(reading, folder) for folder in folders)


@source(
    "images",
    "folder",
    lambda folder: _ending(folder.rglob("*"), IMAGES),
    extra=("PIL", "images need Pillow; pip install pillow"),
)
def image_folder(reading: Reading, paths: list[Path]) -> Iterator[Entry]:
    """Read as an `ImageSpec` says, folders of classes included."""
    from onnxprune.samples import images

    return images.images(reading, paths)


# ---- Python ----------------------------------------------------------------------------------------------


def _named_function(path: Path) -> tuple[Path, str] | None:
    found = FUNCTION.fullmatch(str(path))
    return (Path(found["path"]), found["name"]) if found and Path(found["path"]).is_file() else None


@source("file.py:function", "name", _named_function)
def function(reading: Reading, named: tuple[Path, str]) -> list[Entry]:
    """A function that returns or yields any of the forms below."""
    path, name = named
    with importable(path.parent):  # read within: it may import its neighbours late
        return _read_object(reading, function_of(path, name, reading.title))


@source("dicts", "python", when(lambda given: isinstance(given, Mapping)))
@source("arrays", "python", when(lambda given: hasattr(given, "__array__")))
def item(reading: Reading, given: Any) -> Iterator[Entry]:
    """All samples in one array, or in a dict with an array for each input."""
    yield reading.item(reading.title, given)


@source("", "python", when(lambda given: hasattr(given, "get_next")))
def reader(reading: Reading, given: Any) -> list[Entry]:
    """ONNX Runtime's `CalibrationDataReader`; left as it was where it can be rewound."""
    from onnxprune.samples import arrays

    entries = arrays.copies(reading, _drain(given))
    if hasattr(given, "rewind"):
        with saying(reading.title):
            given.rewind()
    return entries


def _drain(given: Any) -> Iterator[Any]:
    while (item := given.get_next()) is not None:
        yield item


@source("", "python", when(lambda given: isinstance(given, list | tuple)))
def items(reading: Reading, given: Sequence[Any]) -> Iterator[Entry]:
    """Dicts, arrays, or tuples (inputs..., label)."""
    return (reading.item(f"{reading.title}: item {i}", item) for i, item in enumerate(given))


def _is_iterable(given: Any) -> bool:
    return hasattr(given, "__iter__") and not isinstance(given, str | bytes | os.PathLike)


@source("", "python", when(_is_iterable))
def iterable(reading: Reading, given: Iterable[Any]) -> list[Entry]:
    """The same out of a generator or a loader, read once, and copied."""
    from onnxprune.samples import arrays

    return arrays.copies(reading, given)


@source("", "python", when(callable))
def call(reading: Reading, given: Callable[[], Any]) -> list[Entry]:
    """What returns one of these."""
    with saying(reading.title):
        made = given()
    if callable(made) and not (hasattr(made, "__iter__") or hasattr(made, "get_next")):
        raise _no_source(reading, given)
    return _read_object(reading, made)
