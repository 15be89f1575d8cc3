"""Every error that onnxprune raises on purpose. One tree, one exit code a branch:

    PruneError                      1   (our bug, when nothing below fits)
    ├── UsageError (ValueError)     2   a bad call: ratio out of range, unknown criterion
    │   └── PlanError               2   a plan that cannot be read, or is not the model's
    ├── ModelError                  3   the file is not a model we can read
    │   ├── LoadError               3   ONNX Runtime does not load it
    │   └── RunError                3   it loads, and does not run with what it is given
    ├── CalibrationError            4   the samples are missing, unreadable, or do not fit the model
    ├── UnsupportedError            5   a sound model in which nothing can be pruned
    ├── BudgetError                 6   the asked-for budget or the verification was missed
    │   ├── OutOfReachError         6   a ratio that no plan reaches
    │   └── UnstableError           6   on random input, rounding decides the outputs: they prove nothing
    ├── FileError                   7   reading or writing failed
    └── ProviderError               8   the asked-for execution provider, or backend of trials, is not there

A message is one line: what, where (file, node, tensor, sample) and the remedy after a dash or a semicolon.
"""

from __future__ import annotations

from collections.abc import Iterable

EXITS = {
    0: "done", 1: "our bug", 2: "usage", 3: "bad model", 4: "bad samples", 5: "nothing to prune",
    6: "ratio or check missed", 7: "reading or writing failed", 8: "provider not available", 130: "interrupted",
    143: "terminated",
}  # fmt: skip
"""What an exit code means."""


def one_line(text: object) -> str:
    """`text` on one line: blanks collapsed, control characters and lone surrogates escaped."""
    flat = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in flat)


def is_utf8(path: object) -> bool:
    """Whether a path can be spelled in UTF-8, as protobuf and ONNX Runtime do."""
    return not any("\ud800" <= c <= "\udfff" for c in str(path))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant; empty where none is near."""
    import difflib  # only here: nobody wants it where names are right

    return next(iter(difflib.get_close_matches(name.lower(), list(known), n=1)), "")


def unknown(what: str, name: object, known: Iterable[str]) -> UsageError:
    """That there is no such provider, criterion or the like; with the nearest name, and with all."""
    names = list(known)
    near = nearest(str(name), names)
    hint = f"did you mean {near}? " if near else ""
    return UsageError(one_line(f"unknown {what} {name!r}; {hint}choose from {', '.join(names)}"))


class PruneError(Exception):
    exit_code = 1


class UsageError(PruneError, ValueError):
    exit_code = 2


class PlanError(UsageError):
    """Whoever knows the plan's file puts it in front."""


class ModelError(PruneError):
    exit_code = 3


class LoadError(ModelError):
    """ONNX Runtime does not load the model."""


class RunError(ModelError):
    """ONNX Runtime loads the model, and does not run it with what it is given."""


class CalibrationError(PruneError):
    exit_code = 4


class UnsupportedError(PruneError):
    exit_code = 5


class BudgetError(PruneError):
    exit_code = 6


class OutOfReachError(BudgetError):
    """Attributes: removed: the share that can go."""

    def __init__(self, text: str, removed: float):
        super().__init__(text)
        self.removed = removed


class UnstableError(BudgetError):
    """Attributes: groups: the channel groups ahead of the nodes that decide."""

    def __init__(self, text: str, groups: tuple[str, ...]):
        super().__init__(text)
        self.groups = groups


class FileError(PruneError):
    exit_code = 7


def of_system(error: OSError) -> FileError:
    """What the system says of a file, or of none, as an error of ours."""
    where = f"{error.filename}: " if error.filename else ""
    return FileError(one_line(f"{where}{error.strerror or error}; check the path and its permissions"))


class ProviderError(PruneError):
    exit_code = 8


class FidelityWarning(UserWarning):
    """A pruned model says other things than the original: its verdict is "changed" or "destroyed"."""
