"""The command line: parse, call the API, print.

Standard output carries the result and nothing else; progress, warnings and errors go to standard error. An
error is one line and an exit code (`errors.py`). At the top only the standard library is imported, so that
`--help` answers at once. Nothing is decided here that the Python API could not do as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NoReturn

from onnxprune.commands import bench, help, inspect, prune, report, sensitivity, train, verify
from onnxprune.commands.options import Parser
from onnxprune.errors import CalibrationError, FileError, ModelError, PruneError, UsageError, nearest
from onnxprune.report.terminal import Status

COMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace, Status], None]]] = {
    "prune": (partial(prune.parser, "prune"), prune.run),
    "inspect": (inspect.parser, inspect.run),
    "plan": (prune.plan_parser, prune.run_plan),
    "apply": (prune.apply_parser, prune.run_apply),
    "train": (train.parser, train.run),
    "verify": (verify.parser, verify.run),
    "sensitivity": (sensitivity.parser, sensitivity.run),
    "bench": (bench.parser, bench.run),
    "report": (report.parser, report.run),
    "help": (help.parser, help.run),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; never raises."""
    argv = list(sys.argv[1:] if argv is None else argv)
    heard = _open_streams()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a name that the terminal cannot spell must not stop us
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    status = Status(sys.stderr)
    debug = "--debug" in argv
    try:
        with _terminated(), warnings.catch_warnings():
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
            status.fail(f"terminated while: {status.now}")
        return code
    except BrokenPipeError:  # the reader of our output has gone: whatever was to be written is
        with contextlib.suppress(Exception):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:
        if debug:
            import traceback

            traceback.print_exc()
        code, text = _explain(error, status.now)
        status.fail(text)
        return code


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
        raise UsageError("no model given; try `onnxprune MODEL --ratio 0.5`, or `onnxprune --help`")
    if argv[0] in COMMANDS:
        make_parser, command = COMMANDS[argv[0]]
        parser, rest = make_parser(), argv[1:]
    else:
        _check_command(argv)
        parser, command, rest = prune.parser(), prune.run, argv
    args = parser.read(rest)
    status.set(quiet=args.quiet, verbose=args.verbose)
    command(args, status)


def _check_command(argv: Sequence[str]) -> None:
    """Refuse a word that is no file, and nearly a command: it would be taken for the model."""
    word = argv[0]
    near = nearest(word, COMMANDS)
    if near and word.isalpha() and not os.path.exists(word):
        raise UsageError(f"no command or file {word!r}; did you mean `onnxprune {near}`?")


def _explain(error: BaseException, phase: str) -> tuple[int, str]:
    """Exit code and words for whatever stopped us."""
    if isinstance(error, PruneError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted while: {phase}"
    if isinstance(error, MemoryError):
        kind = CalibrationError if phase in ("calibrate", "repair", "fidelity") else ModelError
        remedy = "use fewer --samples or a machine with more"
        return kind.exit_code, f"out of memory while: {phase}; {remedy}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return FileError.exit_code, f"{where}{error.strerror or error}; check the path and its permissions"
    return 1, (
        f"unexpected {type(error).__name__} while: {phase}: {error}; this is our bug: please report it with "
        f"what --debug prints"
    )


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM becomes SystemExit(143), so that temporary files are removed on the way out."""

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(143)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
