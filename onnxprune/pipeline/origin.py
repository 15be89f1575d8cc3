"""What a plan remembers of its making, gathered: every setting as it came out, the samples, the version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune import __version__
from onnxprune.pipeline.opened import Subject
from onnxprune.plan import Origin, Value


def origin_of(subject: Subject, settings: Mapping[str, Value | None], **known: Any) -> Origin:
    """The memory of a plan for a subject: its settings by name, and further fields of `Origin`."""
    data = subject.calibration
    return Origin(
        settings={name: value for name, value in settings.items() if value is not None},
        samples=None if data is None else len(data),
        samples_digest=subject.samples_digest,
        version=__version__,
        **known,
    )
