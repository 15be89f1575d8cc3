"""Python files of a user's own: a function out of one, and its neighbours for as long as it runs.

The file is run as it stands, with all the rights of this program: give only files that you would run yourself.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxprune.errors import CalibrationError, PruneError
from onnxprune.samples.messages import as_error, shown

FUNCTION = re.compile(r"(?P<path>.+\.py):(?P<name>[^\W\d]\w*)")


def load_function(spec: str, kind: type[PruneError] = CalibrationError) -> tuple[Callable[..., Any], Path]:
    """The function that `file.py:name` names, and the file's folder, to be `importable` while it runs.

    Raises:
        PruneError: of that kind; there is no such file or function, or the file raises.
    """
    found = FUNCTION.fullmatch(spec)
    if found is None or not Path(found["path"]).is_file():
        raise kind(f"{shown(spec)}: not found; give file.py:function")
    path = Path(found["path"])
    with importable(path.parent), as_error(kind, f"{shown(spec)}: cannot be read:"):
        return function_of(path, found["name"], shown(spec), kind), path.parent


def function_of(path: Path, name: str, title: str, kind: type[PruneError] = CalibrationError) -> Callable[..., Any]:
    """The function of that name out of a file, which is run for it. `title` is what messages call it."""
    module = ModuleType(f"onnxprune_samples_{path.stem}")
    sys.modules[module.__name__] = module  # dataclasses look their module up by name
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)  # an import would leave a __pycache__
    function = getattr(module, name, None)
    if not callable(function):
        raise kind(f"{title}: no function {name!r} in it; check the name")
    return function  # type: ignore[no-any-return]


_NEIGHBOURS: dict[str, dict[str, ModuleType]] = {}
"""Modules that came from a user's folder, by folder: two folders may each have a `common.py`."""


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """`folder` on the import path, as if the file in it had been run.

    What is imported from it is put aside afterwards, so that a file in another folder finds its own neighbours.
    """
    entry = str(folder.resolve())
    if entry in sys.path:  # the program's own modules
        yield
        return
    own = _NEIGHBOURS.setdefault(entry, {})
    before = dict(sys.modules)
    sys.modules.update(own)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
        tops = {name for name, module in sys.modules.items() if "." not in name and _stands_in(module, entry)}
        for name, module in list(sys.modules.items()):
            if before.get(name) is module or name.partition(".")[0] not in tops:
                continue
            own[name] = module
            if name in before:
                sys.modules[name] = before[name]
            else:
                del sys.modules[name]


def _stands_in(module: ModuleType, folder: str) -> bool:
    """Whether a module is `folder/name.py` or `folder/name/`: what that entry of the import path alone brings."""
    places = [getattr(module, "__file__", None)] if not hasattr(module, "__path__") else list(module.__path__)
    return any(os.path.dirname(os.path.realpath(p)) == folder for p in places if p)
