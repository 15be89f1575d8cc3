"""The command line: parse, call the API, print.

Standard output carries the result and nothing else; progress, warnings and errors go to standard error. An
error is one line and an exit code (`errors.py`). At the top only the standard library is imported, so that
`--help` answers at once. Nothing is decided here that the Python API could not do as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NoReturn

from onnxprune.commands import spelling
from onnxprune.commands.mistakes import meant_command
from onnxprune.commands.table import COMMANDS
from onnxprune.errors import CalibrationError, FileError, ModelError, PruneError, UsageError, of_system, one_line
from onnxprune.report.status import Status
from onnxprune.runtime.supervisor import supervised


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; never raises. Without `argv` it is that of this process, and the work is
    done in another."""
    heard = _open_streams()
    if argv is not None:
        return _command(list(argv), _status(argv), heard=heard)
    argv = sys.argv[1:]
    if not argv or not heard or not _LIGHT.isdisjoint(argv):
        return _command(argv, _status(argv), heard=heard)
    return supervised(lambda note: _command(argv, _status(argv, note.write), alone=True), partial(_ended, argv))


def _status(argv: Sequence[str], tell: Callable[[str], None] = lambda doing: None) -> Status:
    return Status(sys.stderr, tell, log_json="--log-json" in argv)


_LIGHT = frozenset(("-h", "--help", "--version", "help", "report"))
"""What runs no model."""


def _command(argv: list[str], status: Status, *, alone: bool = False, heard: bool = True) -> int:
    """The exit code; `alone`: the process ends with the command; `heard`: standard output is open."""
    spelling.use()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a name that the terminal cannot spell must not stop us
            stream.reconfigure(errors=spelling.NAME)  # type: ignore[union-attr]
    debug, came = "--debug" in argv, list[int]()
    try:
        with _terminated(alone, came), warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            try:
                if not heard:
                    raise FileError("standard output is closed; send it to a file, or to /dev/null")
                _dispatch(argv, status)
                sys.stdout.flush()
            finally:
                status.close()
        return 0
    except SystemExit as stop:  # --help, --version, SIGTERM
        code = stop.code if isinstance(stop.code, int) else 0
        if code == 143:
            code, text = _stopped(signal.SIGTERM, status.now)
            status.fail(text)
        return code
    except BrokenPipeError:  # the reader of our output has gone: whatever was to be written is
        with contextlib.suppress(Exception):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:
        if debug:
            import traceback

            traceback.print_exc()
        # A module that is interrupted while it loads may say that it does not load.
        code, text = _stopped(came[0], status.now) if came else _explain(error, status.now)
        status.fail(text)
        return code


def _stopped(number: int, doing: str) -> tuple[int, str]:
    """Exit code and words for a signal of somebody who wants us to stop."""
    return 128 + number, f"{'interrupted' if number == signal.SIGINT else 'terminated'} while: {doing}"


def _ended(argv: Sequence[str], number: int, doing: str) -> int:
    """Exit code and words for a process that a signal has ended; it has said so itself where it was doing nothing."""
    code, text = ModelError.exit_code, f"crashed ({signal.Signals(number).name}) while: {doing}; export the model again"
    if number in (signal.SIGINT, signal.SIGTERM):
        code, text = _stopped(number, doing)
    elif number == signal.SIGKILL:
        code, _ = _explain(MemoryError(), doing.partition(" ")[0])
        text = f"killed, probably for want of memory, while: {doing}; use fewer --samples or a machine with more"
    if doing:
        _status(argv).fail(text)
    return code


START = """\
onnxprune makes a CNN in the ONNX format smaller and faster. Type

  onnxprune MODEL.onnx --calib SAMPLES    half the work, mended on your samples
  onnxprune demo                          see it on a small model of its own
  onnxprune inspect MODEL.onnx            what can be cut, and why not the rest
  onnxprune --help                        every command and option

"""


_ASIDE = frozenset(("--force", "--json", "--log-json", "--verbose"))
"""Options that change little of what is done."""


def _kind(name: str, rest: Sequence[str]) -> str:
    """A command and its options, without their values: what runs of it have in common."""
    flags = sorted({word.partition("=")[0] for word in rest if word.startswith("--")} - _ASIDE)
    return " ".join([name or "prune", *flags])


def _open_streams() -> bool:
    """Open the standard streams that are closed, on nothing: the next file would take the place of one, and what
    libraries say would go into it. Returns whether standard output was open."""
    heard = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False, encoding="utf-8")
    sys.stderr = sys.stderr or open(2, "w", closefd=False, encoding="utf-8")
    return heard


def _dispatch(argv: list[str], status: Status) -> None:
    if not argv:
        if sys.stdout.isatty():
            print(START, end="", flush=True)
        raise UsageError("no model given; try `onnxprune MODEL --ratio 0.5`, `onnxprune demo`, or `onnxprune --help`")
    name, rest = (argv[0], argv[1:]) if argv[0] in COMMANDS else ("", argv)
    if not name and (near := meant_command(argv[0])):  # the word would be taken for the model
        raise UsageError(f"no command or file {argv[0]!r}; did you mean `onnxprune {near}`?")
    if name:
        make_parser, command = COMMANDS[name]
        parser = make_parser()
    else:
        from onnxprune.commands import prune

        parser, command = prune.parser(), prune.run
    args = parser.read(rest)
    args.argv = ["onnxprune", *argv]
    status.set(quiet=args.quiet, verbose=args.verbose, model=str(getattr(args, "model", "")), kind=_kind(name, rest))
    try:
        command(args, status)
        status.finished()
    except PruneError as error:
        if getattr(args, "model", None):
            error.args = (_with_file(str(error), args.model),)
        raise


UNNAMED = (
    "model: ", "original: ", "masked original: ", "segment: ", "calibration pass: ", "candidate: ", "evaluated: ",
    "trial: ", "repaired: ", "pruned model: ", "nothing can be ", "no channel can ", "no block can ",
)  # fmt: skip
"""How messages begin that are of the model, and of whoever does not know its file."""


def _with_file(text: str, model: str) -> str:
    """The message with the model's file in front."""
    if not text.startswith(UNNAMED):
        return text
    return one_line(f"{model}: {text.removeprefix(UNNAMED[0])}")


NO_MEMORY = ((ImportError, "map segment"), (SystemError, "error return without exception set"))
"""What else is said where there is no memory: of a library that does not fit, and by compiled code that has no words
for it."""


def _explain(error: BaseException, phase: str) -> tuple[int, str]:
    """Exit code and words for whatever stopped us."""
    if isinstance(error, PruneError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return _stopped(signal.SIGINT, phase)
    if isinstance(error, MemoryError) or any(isinstance(error, k) and words in str(error) for k, words in NO_MEMORY):
        kind = CalibrationError if phase in ("calibrate", "repair", "fidelity") else ModelError
        remedy = "use fewer --samples or a machine with more"
        return kind.exit_code, f"out of memory while: {phase}; {remedy}"
    if isinstance(error, OSError):
        return FileError.exit_code, str(of_system(error))
    return 1, (
        f"unexpected {type(error).__name__} while: {phase}: {error}; this is our bug: please report it with "
        f"what --debug prints"
    )


@contextlib.contextmanager
def _terminated(alone: bool, came: list[int]) -> Iterator[None]:
    """SIGTERM becomes SystemExit(143), so that temporary files are removed on the way out. One signal is enough: the
    terminal tells every process, and the one that waits hands it on, perhaps late. `came` gets its number."""

    def stop(number: int, frame: object) -> NoReturn:
        came.append(number)
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(143)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if not alone or signal.getsignal(number) is stop:
                signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
