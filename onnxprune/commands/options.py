"""The options of the command line: the parser, the settings from their table, and options that several commands have.

What a setting means, how it is read and which command takes it, `pipeline.settings` says. Nothing heavy is imported, so
that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

from onnxprune import __version__
from onnxprune.commands import mistakes
from onnxprune.errors import UsageError
from onnxprune.pipeline.gates import ANYWAY, GATES, Gates
from onnxprune.pipeline.options import by_name, words
from onnxprune.pipeline.settings import GENERAL, OPTIONS, SAMPLES, Option, flag_of, help_of
from onnxprune.report.wrapping import filled, room, wrapped
from onnxprune.samples.sources import kinds

Add = Callable[..., object]
"""`add_argument` of a parser or of a group."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one line, exit code 2, and what was probably meant.

    Attributes:
        command: which command it is of.
    """

    def __init__(self, name: str, usage: str, about: str, epilog: Callable[[], str] | None = None):
        super().__init__(
            prog=f"onnxprune {name}".strip(),
            usage=f"onnxprune {usage}",
            description=about,
            allow_abbrev=False,
            add_help=False,  # `add_general` lists it
            formatter_class=Formatter,
        )
        self.command = name or "prune"
        self._ending = epilog

    def format_help(self) -> str:
        if self._ending is not None:  # made only now: it may ask the other commands
            self.epilog = self._ending()
        return super().format_help()

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments, options and positional ones in any order.

        Raises:
            UsageError: some are wrong, or are none.
        """
        self._check_options(argv)
        found, rest = self.parse_known_intermixed_args(argv)
        if not rest:
            return found
        word = next((w for w in rest if not w.startswith("-")), rest[0])
        self.error(f"unexpected {word!r}; {mistakes.meant_by(word, self)}".rstrip("; "))

    def _check_options(self, argv: Sequence[str]) -> None:
        """Refuse an option that there is not, before its value is taken for something else."""
        takes_value = False
        for word in argv:
            if word == "--":
                return
            option = mistakes.dashed(word).partition("=")[0]
            if option and not takes_value and not self._has(word):
                self.error(f"unknown option {word.partition('=')[0]}; {mistakes.meant_by(option, self)}".rstrip("; "))
            action = self._option_string_actions.get(word)
            takes_value = action is not None and action.nargs != 0

    def _has(self, word: str) -> bool:
        """Whether an option is spelled so: -o FILE, -oFILE, -qv, --output=FILE."""
        known = self._option_string_actions
        return word.partition("=")[0] in known or (not word.startswith("--") and word[:2] in known)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}{'' if message.endswith('?') else ';'} see `{self.prog} --help`")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, with no word broken."""

    def __init__(self, prog: str, **rest: Any):
        width = room()
        super().__init__(prog, max_help_position=min(27, width // 3), width=width, **rest)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return filled(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return wrapped(text, width)

    def _format_usage(self, usage: str | None, *rest: Any) -> str:
        return "\n".join(filled(f"usage: {usage}", self._width, "", " " * 9)) + "\n\n"


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
        action = "store_false" if flag.startswith("--no-") else "store_true"
        add(flag, dest=name, action=action, default=None, help=text)
    elif option.repeated:
        add(flag, dest=name, action="append", metavar=option.metavar, help=text)
    else:
        add(flag, dest=name, type=reader(option.read), metavar=option.metavar, help=text)


def reader(read: Callable[[Any], Any]) -> Callable[[str], Any]:
    """What reads a value, for argparse, which tells no reason but its own kind."""

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


def add_input_shape(
    add: Callable[..., Any],
    read: Callable[[str], Any] = sizes,
    about: str = "sizes of an input with dynamic axes (repeatable)",
) -> None:
    """`--input-shape`, what reads it, and what it says of itself."""
    add("--input-shape", type=read, action="append", default=[], metavar="NAME=N,N", help=about)


def add_samples(parser: Parser, *, brief: bool = False) -> None:
    """How samples and inputs are read; `brief` leaves the rarer options to `onnxprune prune --help`."""
    add = parser.add_argument_group("samples").add_argument
    add("--calib", metavar="SAMPLES", help=f"unlabelled: {kinds()}")
    add("--samples", type=int, metavar="N", help="use at most N samples")
    add("--image", metavar="SPEC", help="of images in a folder: size=224x224,mean=0.5,...")
    add_input_shape(add)
    add_settings(add, parser.command, SAMPLES, brief=brief)


def add_gates(add: Add, *, brief: bool = False) -> None:
    """What the outcome must keep, or nothing is written; `brief` leaves them to `onnxprune prune --help`."""

    def line(text: str) -> str:
        return argparse.SUPPRESS if brief else text

    for name, gate in GATES.items():
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=float, metavar=gate.metavar, help=line(f"{gate.help}; else exit 6"))
    add("--min", action="append", metavar="NAME=X", help=line("least value of a figure: box_f1=0.9 (`help metrics`)"))
    add(ANYWAY, action="store_true", help=line("write a model whose outputs are destroyed, too: it is to be trained"))


def gates_of(args: argparse.Namespace, **more: float | None) -> Gates:
    """The gates that a command line gave."""
    least = by_name(float, "NAME=X, such as box_f1=0.9")(getattr(args, "min", None) or ())
    return Gates(**{name: getattr(args, name, None) for name in GATES}, min=least or None, **more)


def add_report(add: Add) -> None:
    add("--report", metavar="FILE", help="write a page about the result too: .html")
    add("--summary", metavar="FILE", help="write what is printed as Markdown too: .md")


def add_report_samples(add: Add, *, brief: bool = False) -> None:
    text = "show so many held samples on the page, with what both models say of each; it then holds their pictures"
    add("--report-samples", type=int, metavar="N", default=0, help=argparse.SUPPRESS if brief else text)


def _file(text: str) -> str:
    """A name of a file, and not what an output is for."""
    if "=" in text:
        from onnxprune.measure.kinds.asked import is_meaning

        if is_meaning(text):
            raise argparse.ArgumentTypeError(f"{text} names no file; did you mean --output-kind {text}?")
    return text


def add_output(add: Add, written: str = "NAME.pruned.onnx") -> None:
    add("-o", "--output", type=_file, metavar="FILE", help=f"where to write (default {written})")
    add("--force", action="store_true", help="replace an existing file")


def add_general(
    parser: Parser, brief: Add | None = None, *, json_help: str = "print one JSON object instead of text"
) -> None:
    """What all commands have; `brief`: --json goes there, and the others are left to `onnxprune prune --help`."""
    add = brief or parser.add_argument_group("general").add_argument
    add("--json", action="store_true", help=json_help)
    add_settings(add, parser.command, GENERAL, brief=brief is not None)
    trusted = "run the model here from the start, not first in a process of its own"
    add("--trusted", action="store_true", help=argparse.SUPPRESS if brief is not None else trusted)
    add_words(add, brief=brief is not None)


def add_words(add: Add, *, brief: bool = False) -> None:
    """How much is said; help and version."""

    def line(text: str) -> str:
        return argparse.SUPPRESS if brief else text

    add("-q", "--quiet", action="store_true", help=line("only errors on standard error"))
    add("-v", "--verbose", action="store_true", help=line("name the phases; full tables"))
    add("--log-json", action="store_true", help=line("phases, progress and messages as lines of JSON"))
    add("--debug", action="store_true", help=line("show the traceback of an error"))
    add("-h", "--help", action="help", help=line("this text"))
    add("--version", action="version", version=f"onnxprune {__version__}", help=line("which version this is"))
