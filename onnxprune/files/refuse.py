"""How a model file is refused: one line that names the file, the place and the remedy."""

from __future__ import annotations

from typing import NoReturn

from onnxprune.errors import ModelError, one_line


def refuse(label: str, text: str) -> NoReturn:
    raise ModelError(one_line(f"{label}: {text}"))


def first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
