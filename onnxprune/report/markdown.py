"""A result as Markdown: two tables, for the page of a job or the text of a change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxprune.report.forms import Told
from onnxprune.report.reading import read
from onnxprune.report.terminal import Said, cost_rows, plain, sentences

if TYPE_CHECKING:
    from onnxprune.report.result import Result


def in_markdown(result: Result, name: str) -> str:
    """What `Result.summary` says, as GitHub and GitLab show it.

    Args:
        result: what was made.
        name: what the model is called.
    """
    told: Told = read(Told, result.told())
    what: Mapping[str, Any] = result.told()
    said = [*sentences(told), *(Said("warning", plain(text)) for text in result.warnings)]
    verdict = f": {result.verdict}" if result.verdict else ""
    costs = _table(("", "original", "pruned", "change"), cost_rows(what["before"], what["after"]), right=3)
    return f"### {_safe(name)}{verdict}\n\n{costs}\n{_table(('', ''), said)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """A table; its last `right` columns are numbers."""
    rule = [*["---"] * (len(head) - right), *["---:"] * right]
    lines = [head, rule, *([_safe(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _safe(text: str) -> str:
    """Words that are shown as they are: neither markup nor HTML."""
    return re.sub(r"([\\`*_\[\]<>#|~$@&])", lambda m: f"&#{ord(m[1])};", text)
