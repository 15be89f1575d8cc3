"""Where what is learned of this machine is kept from run to run. Only the standard library is imported."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """The folder; `ONNXPRUNE_CACHE` names another, and where that is empty, or there is no home, there is none."""
    root = os.environ.get("ONNXPRUNE_CACHE")
    if root is not None:
        return Path(root) if root else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxprune"
    except RuntimeError:
        return None
