"""Text that fits: as many columns as the terminal has, and no word broken.

Only the standard library: help is made with it.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator

MOST = 100
"""Columns of text at most: longer lines are hard to read."""
UNKNOWN = 80
"""Columns where nobody tells."""


def room(most: int = MOST) -> int:
    """Columns for text: what `COLUMNS` says, else those of the terminal, also where only another stream is one."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0:
        return min(int(said), most)
    for stream in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        try:
            found = os.get_terminal_size(stream.fileno()).columns if stream else 0
        except (OSError, ValueError):
            continue
        if found > 0:
            return min(found, most)
    return min(UNKNOWN, most)


def filled(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Lines of at most `width` columns where words allow it; blanks inside brackets do not part a line."""
    whole = re.sub(r"\[[^][]*\]", lambda found: found[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        whole,
        max(width, len(rest) + 8),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]


def wrapped(text: str, width: int) -> str:
    """Paragraphs filled anew. A line that is indented stays one of its own and goes on below its second column."""
    return "\n".join(line for part in _parts(text) for line in _laid_out(part, width))


def _parts(text: str) -> Iterator[str]:
    """Paragraphs on one line each, indented lines, and empty ones."""
    paragraph: list[str] = []
    for line in text.splitlines():
        if line.strip() and not line.startswith(" "):
            paragraph.append(line)
            continue
        if paragraph:
            yield " ".join(paragraph)
            paragraph = []
        yield line
    if paragraph:
        yield " ".join(paragraph)


def _laid_out(line: str, width: int) -> list[str]:
    columns = re.match(r"( +)(\S+(?: \S+)*)(  +)(?=\S)", line)
    if columns is None:
        indent = " " * (len(line) - len(line.lstrip()))
        return filled(line.strip(), width, indent, indent) or [""]
    head = columns[0] if len(columns[0]) <= width // 2 else columns[0].rstrip() + "  "
    hang = len(head) if len(head) <= width // 2 else len(columns[1]) + 4
    if len(head) > hang:
        return [head.rstrip(), *filled(line[len(columns[0]) :], width, " " * hang, " " * hang)]
    return filled(line[len(columns[0]) :], width, head, " " * hang)
