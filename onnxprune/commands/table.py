"""The commands: the one table of them. Each is imported when it is asked for: `--help` must not wait for the others."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def _of(module: str, function: str, *first: str) -> Callable[..., Any]:
    """A function of a command's file, which is imported when it is called."""

    def called(*rest: Any) -> Any:
        return getattr(import_module(f"onnxprune.commands.{module}"), function)(*first, *rest)

    return called


COMMANDS: dict[str, tuple[Callable[[], Any], Callable[..., None]]] = {
    "prune": (_of("prune", "parser", "prune"), _of("prune", "run")),
    "inspect": (_of("inspect", "parser"), _of("inspect", "run")),
    "plan": (_of("prune", "plan_parser"), _of("prune", "run_plan")),
    "apply": (_of("prune", "apply_parser"), _of("prune", "run_apply")),
    "train": (_of("train", "parser"), _of("train", "run")),
    "verify": (_of("verify", "parser"), _of("verify", "run")),
    "sensitivity": (_of("sensitivity", "parser"), _of("sensitivity", "run")),
    "search": (_of("search", "parser"), _of("search", "run")),
    "diff": (_of("diff", "parser"), _of("diff", "run")),
    "bench": (_of("bench", "parser"), _of("bench", "run")),
    "profile": (_of("profile", "parser"), _of("profile", "run")),
    "demo": (_of("demo", "parser"), _of("demo", "run")),
    "report": (_of("report", "parser"), _of("report", "run")),
    "help": (_of("help", "parser"), _of("help", "run")),
    "completion": (_of("completion", "parser"), _of("completion", "run")),
}
"""Name -> (makes the parser, does the work: of the arguments and the status)."""


def flags_of(parser: Any) -> list[str]:
    """The options of a parser that its help shows or could show, each by its longest name."""
    return [max(a.option_strings, key=len) for a in parser._actions if a.option_strings]
