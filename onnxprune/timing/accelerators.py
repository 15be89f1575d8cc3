"""Which accelerators a machine has, by name: a time means nothing without."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence

from onnxprune.runtime.providers import provider_of


def accelerators(providers: Sequence[str]) -> tuple[str, ...]:
    """Names of the machine's NVIDIA GPUs with their drivers, where one of the providers runs on them; empty where
    nobody tells."""
    return _nvidia() if any(provider_of(name).nvidia for name in providers) else ()


@functools.cache
def _nvidia() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in said.splitlines() if line.strip())
