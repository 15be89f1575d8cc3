"""What ONNX Runtime means by its errors, and what its native code says beside them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

from onnxprune.errors import ModelError, one_line


def reason(error: object) -> str:
    """What ORT means, in one line: its codes, colours, source paths and C++ signatures left out."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line for line in text.splitlines() if line.strip()]
    text = next((line for line in lines if "rror" in line), lines[0] if lines else type(error).__name__)
    text = re.sub(r"^.*?\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^\d{4}-\d\d-\d\d [\d:.]+ ", "", text)
    text = re.sub(r"\[E:onnxruntime:[^\]]*\] ", "", text)
    text = re.sub(r"(/\S*)?/onnxruntime(_src)?/\S+:\d+ .*?\) (?=[A-Z])", "", text)
    return one_line(text)[:300].rstrip(" .")


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Collects what native code writes to file descriptor 2: there ORT tells why a provider did not start.

    The list receives one string when the block ends. Other threads' words land there too, so the block is
    kept short and only wraps the making of a session.
    """
    said: list[str] = []
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, AttributeError, ValueError):  # no standard error at all
        yield said
        return
    with tempfile.TemporaryFile() as shelf:
        os.dup2(shelf.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            shelf.seek(0)
            said.append(shelf.read(100_000).decode("utf-8", "replace").strip())


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """Makes a MemoryError of what ONNX Runtime says when it gets no memory."""
    try:
        yield
    except ModelError as error:
        if re.search("alloc|Available memory", str(error.__cause__)):
            raise MemoryError from error
        raise
