"""The documents that travel with the tool, `onnxprune/docs/*.md`: markdown laid out for a terminal.

What is understood is what these files use: headings, paragraphs, lists, tables, code between fences, links. Only the
standard library is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap

FOLDER = Path(__file__).parent.parent / "docs"
LEAST = 9
"""Columns that a cell of a table keeps."""
ITEM = re.compile(r"( *)([-*]|\d+\.) +")


def document(topic: str) -> str:
    """The document about a topic, as markdown; empty where there is none."""
    path = FOLDER / f"{topic}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def laid_out(markdown: str, width: int) -> str:
    """A document in lines of at most `width` columns; code keeps its own."""
    lines = [line for block in _blocks(markdown) for line in ["", *_block(block, width)]]
    return "\n".join(lines[1:]) + "\n"


def _blocks(markdown: str) -> Iterator[list[str]]:
    """Lines that belong together: a fenced stretch, or what stands between empty lines."""
    block: list[str] = []
    fenced = False
    for line in re.sub(r"<!--.*?-->\n?", "", markdown, flags=re.S).splitlines():
        fence = line.startswith("```")
        if block and not fenced and (fence or not line.strip()):
            yield block
            block = []
        if fenced or line.strip():
            block.append(line)
        if fence and fenced:
            yield block
            block = []
        fenced ^= fence
    if block:
        yield block


def _block(lines: Sequence[str], width: int) -> list[str]:
    first = lines[0]
    if first.startswith("```"):
        return [f"    {line}".rstrip() for line in lines[1:-1]]
    if first.startswith("#"):
        title = _wrapped(_plain(first.lstrip("# ")), width)
        mark = "=" if first.startswith("# ") else "-"
        return [*title, mark * max(map(len, title)), *(_block(lines[1:], width) if lines[1:] else [])]
    if first.startswith("|"):
        return _table([_cells(line) for line in lines if not re.fullmatch(r"[|: -]+", line)], width)
    return [line for item in _items(lines) for line in _filled(item, width)]


def _items(lines: Sequence[str]) -> list[str]:
    """A paragraph on one line, or each item of a list on one."""
    found: list[str] = []
    for line in lines:
        if not found or ITEM.match(line):
            found.append(line.rstrip())
        else:
            found[-1] += f" {line.strip()}"
    return found


def _filled(text: str, width: int) -> list[str]:
    item = ITEM.match(text)
    rest = " " * len(item[0]) if item else ""
    return _wrapped(_plain(text), width, rest)


def _wrapped(text: str, width: int, rest: str = "") -> list[str]:
    return wrap(text, width, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)


def _plain(text: str) -> str:
    """Without marks for bold; a link to another document says how to read that."""

    def link(found: re.Match[str]) -> str:
        label, topic = found[1], found[2].partition("#")[0].removesuffix(".md")
        if "/" in found[2] or not found[2].partition("#")[0].endswith(".md"):
            return label if "://" not in found[2] else f"{label} ({found[2]})"
        return f"`onnxprune help {topic}`" if label == topic else f"{label} (`onnxprune help {topic}`)"

    return re.sub(r"\[([^]]*)\]\(([^)]*)\)", link, text.replace("**", ""))


# ---- tables ----------------------------------------------------------------------------------------------


def _cells(line: str) -> list[str]:
    return [_plain(cell.strip().replace(r"\|", "|")) for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def _table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns two blanks apart; the widest ones are wrapped where the whole is too wide."""
    count = max(map(len, rows))
    cells = [[*row, *[""] * (count - len(row))] for row in rows]
    sizes = [max(1, *(len(row[k]) for row in cells)) for k in range(count)]
    while sum(sizes) + 2 * (count - 1) > width and max(sizes) > LEAST:
        sizes[sizes.index(max(sizes))] -= 1
    found = [_row(row, sizes) for row in cells]
    several = any(len(row) > 1 for row in found[1:])
    rule = "  ".join("-" * size for size in sizes)
    body = [line for row in found[1:] for line in ([*row, ""] if several else row)]
    return [*found[0], rule, *(body[:-1] if several else body)]


def _row(row: Sequence[str], sizes: Sequence[int]) -> list[str]:
    parts = [
        wrap(c, n, break_long_words=False, break_on_hyphens=False) or [""] for c, n in zip(row, sizes, strict=True)
    ]
    lines = []
    for k in range(max(map(len, parts))):
        words = [part[k] if k < len(part) else "" for part in parts]
        lines.append("  ".join(f"{word:<{size}}" for word, size in zip(words, sizes, strict=True)).rstrip())
    return lines
