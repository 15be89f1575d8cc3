"""How signs are spelled where the encoding of a terminal does not have them: `->` for an arrow, `\\u03bb` for what has
no likeness in ASCII."""

from __future__ import annotations

import codecs

NAME = "onnxprune.spelled"
"""The handler of errors that streams are given."""
ALIKE = str.maketrans({
    "−": "-", "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "→": "->", "←": "<-", "…": "...", "×": "x", "·": "*",
    "²": "^2", "½": "1/2", "≈": "~", "µ": "u", "─": "-", "│": "|", "├": "+", "└": "+", "\u00a0": " ",
    **{sign: str(digit) for digits in ("⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉") for digit, sign in enumerate(digits) if sign != "²"},
    "⁻": "^-",
})  # fmt: skip


def use() -> None:
    """Make the handler known."""
    codecs.register_error(NAME, _spelled)


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    alike = error.object[error.start : error.end].translate(ALIKE)
    escaped = "".join(c if c.isascii() else c.encode("ascii", "backslashreplace").decode() for c in alike)
    return escaped, error.end
