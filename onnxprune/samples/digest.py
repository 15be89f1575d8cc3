"""Which samples they were: one number for all of them, in order."""

from __future__ import annotations

import hashlib

import numpy as np

from onnxprune.samples.calibration import Calibration

BATCH = 32
"""Samples read at once. Part of what is counted: where sizes change, batches end."""


def digest(data: Calibration) -> str:
    """SHA-256 of all samples: names, types, sizes and values."""
    found = hashlib.sha256()
    for feeds in data.batches(BATCH):
        for name, array in sorted(feeds.items()):
            found.update(f"{name} {array.dtype} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
