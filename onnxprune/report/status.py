"""How far the work is, on standard error: one line that changes on a terminal, a line a minute in a log, or objects of
JSON for programs.

Only the standard library at the top: the command line imports this before it knows what it is asked.
"""

from __future__ import annotations

import json
import shutil
import textwrap
import time
from collections.abc import Callable
from typing import Any, TextIO

from onnxprune.report.pace import Pace, in_words
from onnxprune.report.terminal import plain

MINUTE_S, SECOND_S = 60.0, 1.0
"""Between two lines in a log, and at least between two objects on progress."""


class Status:
    """How far the work is: a bar on a terminal, a line a minute elsewhere, a line a phase with `verbose`.

    `tell` gets the phase and the model too, and nothing once the last line is said. With `log_json` every line is an
    object: seconds since the start, what it is ("phase", "progress", "message" or "error"), the phase, and what
    belongs to it.
    """

    def __init__(self, stream: TextIO, tell: Callable[[str], None] = lambda doing: None, *, log_json: bool = False):
        self.stream, self._tell, self.log_json = stream, tell, log_json
        self.now, self.model = "start", ""
        tell(self.now)
        self.verbose = self.quiet = False
        self._began = self._entered = self._told = time.monotonic()
        self._pace = Pace()
        self._bars: Any = None
        self._bar: Any = None

    def set(self, *, quiet: bool, verbose: bool, model: str = "", kind: str = "") -> None:
        """How much to say, and of what; `kind`: of command, for the time that is left."""
        self.quiet, self.verbose, self.model = quiet, verbose and not quiet, model
        self._pace = Pace("" if quiet else kind)

    def phase(self, name: str) -> None:
        """A new phase begins."""
        if name == self.now:
            return
        self._over()
        self.now = name
        self._tell(f"{name} {self.model}".rstrip())
        if self.log_json and not self.quiet:
            self._log("phase")
        elif self.verbose:
            self.say(f"{time.monotonic() - self._began:6.1f} s  {name}")
        if self._wants_bars():
            if self._bars is None:
                self._bars = _bars(self.stream)
                self._bars.start()
            if self._bar is not None:
                self._bars.remove_task(self._bar)
            left = self._left(None)
            self._bar = self._bars.add_task(self._title(), total=None, count="", left=left)

    def progress(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` in a phase: what the API calls."""
        self.phase(phase)
        share = done / total if total else None
        if self._bars is not None:
            self._bars.update(self._bar, completed=done, total=total, count=f"{done}/{total}", left=self._left(share))
        elif self.log_json and not self.quiet:
            if time.monotonic() - self._told >= SECOND_S:
                self._told = time.monotonic()
                self._log("progress", done=done, total=total)
        elif not self.quiet and time.monotonic() - self._told >= MINUTE_S:
            self._told = time.monotonic()
            said = [f"{self._title()} {done}/{total}", f"{(self._told - self._began) / 60:.0f} min", self._left(share)]
            self.say(", ".join(filter(None, said)))

    def say(self, text: str) -> None:
        """One line on standard error; on a terminal, as many as it takes without breaking words."""
        if self.log_json:
            self._log("message", text=plain(text))
            return
        line = f"onnxprune: {plain(text)}"
        if self.stream.isatty():
            width = max(20, shutil.get_terminal_size().columns)
            line = textwrap.fill(
                line, width, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False
            )
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.stream, flush=True)

    def fail(self, text: str) -> None:
        """The last line: what went wrong."""
        self.close()
        if self.log_json:
            self._log("error", text=plain(" ".join(text.split())))
        else:
            self.say(f"error: {' '.join(text.split())}")
        self._tell("")

    def _log(self, event: str, **more: object) -> None:
        """One object of JSON on a line."""
        seconds = round(time.monotonic() - self._began, 3)
        told = {"seconds": seconds, "event": event, "phase": plain(self.now), "model": plain(self.model), **more}
        print(json.dumps(told), file=self.stream, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._bar = None

    def finished(self) -> None:
        """The command did what it was to do: how long that took tells the next run what is left."""
        self._over()
        self._pace.keep()

    def _over(self) -> None:
        """The phase is over."""
        now = time.monotonic()
        if self.now != "start":
            self._pace.ended(self.now, now - self._entered)
        self._entered = now

    def _title(self) -> str:
        """`3/9 decide`, or the phase alone where nobody knows how many there are."""
        place = self._pace.place(self.now)
        return plain(self.now) if place is None else f"{place[0]}/{place[1]} {plain(self.now)}"

    def _left(self, share: float | None) -> str:
        left = self._pace.left_s(self.now, time.monotonic() - self._entered, share)
        return "" if left is None else in_words(left)

    def _wants_bars(self) -> bool:
        return not self.quiet and not self.log_json and self.stream.isatty()


def _bars(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(20),
        TextColumn("{task.fields[count]:>9}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]:<18}", markup=False),
    )
    return Progress(*columns, console=Console(file=stream), transient=True)
