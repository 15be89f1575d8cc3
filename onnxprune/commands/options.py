"""The options of the command line: the parser, the settings from their table, and options that several commands have.

What a setting means, how it is read and which command takes it, `pipeline.settings` says. Nothing heavy is imported, so
that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NoReturn

from onnxprune import __version__
from onnxprune.errors import UsageError, nearest
from onnxprune.pipeline.gates import ANYWAY, GATES, Gates
from onnxprune.pipeline.options import words
from onnxprune.pipeline.settings import GENERAL, OPTIONS, Option, flag_of, help_of
from onnxprune.samples.sources import kinds

Add = Callable[..., object]
"""`add_argument` of a parser or of a group."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one line, exit code 2.

    Attributes:
        command: which command it is of.
    """

    def __init__(self, name: str, usage: str, about: str, epilog: str | None = None):
        super().__init__(
            prog=f"onnxprune {name}".strip(),
            usage=f"onnxprune {usage}",
            description=about,
            epilog=epilog,
            allow_abbrev=False,
            add_help=False,  # `add_general` lists it
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=27, width=100),
        )
        self.command = name or "prune"

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments, options and positional ones in any order.

        Raises:
            UsageError: some are wrong, or are none.
        """
        found, rest = self.parse_known_intermixed_args(argv)
        if not rest:
            return found
        wrong = next((word for word in rest if word.startswith("-")), "").partition("=")[0]
        near = nearest(wrong, self._option_string_actions)
        hint = f"did you mean {near}? " if near else ""
        raise UsageError(f"unrecognized arguments: {' '.join(rest)}; {hint}see `{self.prog} --help`")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


# ---- settings --------------------------------------------------------------------------------------------


def add_settings(add: Add, command: str, part: str, *, brief: bool = False) -> None:
    """The settings of a part that a command takes; `brief` leaves the rarer ones to `onnxprune prune --help`."""
    for name, option in OPTIONS.items():
        if option.part == part and takes(command, option):
            _add(add, name, option, argparse.SUPPRESS if brief and option.rare else help_of(name))


def takes(command: str, option: Option) -> bool:
    """Whether a command takes an option."""
    return option.commands is None or command in option.commands


def _add(add: Add, name: str, option: Option, text: str) -> None:
    flag = flag_of(name)
    if not option.metavar:
        add(flag, dest=name, action="store_true", default=None, help=text)
    elif option.repeated:
        add(flag, dest=name, action="append", metavar=option.metavar, help=text)
    else:
        add(flag, dest=name, type=_reader(option.read), metavar=option.metavar, help=text)


def _reader(read: Callable[[Any], Any]) -> Callable[[str], Any]:
    """The same for argparse, which tells no reason but its own kind."""

    @wraps(read)
    def reading(text: str) -> Any:
        try:
            return read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return reading


def given(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """The settings that were given, by name: keywords of `Settings`."""
    found = {}
    for name, option in OPTIONS.items():
        value = getattr(args, name, None)
        if value is not None and takes(command, option):
            found[name] = option.read(value) if option.repeated else value
    return found


# ---- what several commands have --------------------------------------------------------------------------


def sizes(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(n) for n in sizes.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=1,3,224,224")
    return name, shape


def numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.3,0.5,0.7") from None


def add_samples(parser: Parser) -> None:
    add = parser.add_argument_group("samples").add_argument
    add("--calib", metavar="SAMPLES", help=f"unlabelled: {kinds()}")
    add("--samples", type=int, metavar="N", help="use at most N samples")
    add("--image", metavar="SPEC", help="for a folder of images: size=224x224,mean=0.5,std=0.5,...")
    add(
        "--input-shape",
        type=sizes,
        action="append",
        default=[],
        metavar="NAME=N,N",
        help="sizes of an input with dynamic axes (repeatable)",
    )


def add_gates(add: Add) -> None:
    """What the outcome must keep, or nothing is written."""
    for name, gate in GATES.items():
        add(f"--{name.replace('_', '-')}", type=float, metavar=gate.metavar, help=f"{gate.help}; else exit 6")
    add(ANYWAY, action="store_true", help="write a model whose outputs are destroyed, too: it is to be trained")


def gates_of(args: argparse.Namespace, **more: float | None) -> Gates:
    """The gates that a command line gave."""
    return Gates(**{name: getattr(args, name, None) for name in GATES}, **more)


def add_report(add: Add) -> None:
    add("--report", metavar="FILE", help="write a page about the result too: .html")


def add_output(add: Add, written: str = "NAME.pruned.onnx beside the input") -> None:
    add("-o", "--output", metavar="FILE", help=f"where to write (default {written})")
    add("--force", action="store_true", help="replace an existing file")


def add_general(parser: Parser, *, json_help: str = "print one JSON object instead of text") -> None:
    add = parser.add_argument_group("general").add_argument
    add("--json", action="store_true", help=json_help)
    add_settings(add, parser.command, GENERAL)
    add("--trusted", action="store_true", help="run the model here from the start, not first in a process of its own")
    add_words(add)


def add_words(add: Add) -> None:
    """How much is said; help and version."""
    add("-q", "--quiet", action="store_true", help="only errors on standard error")
    add("-v", "--verbose", action="store_true", help="name the phases; full tables")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("-h", "--help", action="help", help=argparse.SUPPRESS)
    add("--version", action="version", version=f"onnxprune {__version__}")
