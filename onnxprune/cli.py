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
from collections.abc import Iterator, Sequence
from typing import NoReturn

from onnxprune.commands.mistakes import meant_command
from onnxprune.commands.table import COMMANDS
from onnxprune.errors import CalibrationError, FileError, ModelError, PruneError, UsageError
from onnxprune.report.terminal import Status


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; never raises."""
    argv = list(sys.argv[1:] if argv is None else argv)
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


START = """\
onnxprune makes a CNN in the ONNX format smaller and faster. Type

  onnxprune MODEL.onnx --calib SAMPLES    half the work, mended on your samples
  onnxprune inspect MODEL.onnx            what can be cut, and why not the rest
  onnxprune --help                        every command and option

"""


def _dispatch(argv: list[str], status: Status) -> None:
    if not argv:
        if sys.stdout.isatty():
            print(START, end="", flush=True)
        raise UsageError("no model given; try `onnxprune MODEL --ratio 0.5`, or `onnxprune --help`")
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
    status.set(quiet=args.quiet, verbose=args.verbose)
    command(args, status)


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
