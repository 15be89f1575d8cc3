"""Settings in the words of the rooms below: widths that are allowed, what times are taken on, criterion, allocation."""

from __future__ import annotations

import re

from onnxprune.decide.criteria import BY_DEFAULT, named
from onnxprune.decide.limits import Limits
from onnxprune.errors import UsageError
from onnxprune.pipeline.settings import Settings
from onnxprune.timing.engine import Engine


def engine_of(settings: Settings) -> Engine:
    """What timed runs run on."""
    return Engine(settings.providers, settings.provider_options or {}, settings.threads or 1)


def limits_of(settings: Settings) -> Limits:
    """The widths that are allowed; none but the full ones where channels are not to be cut."""
    if not {"channels", "3c"} & set(settings.kinds()):
        return Limits(include=r"(?!)")
    blind = settings.of != "latency" and engine_of(settings).on_gpu  # a latency model has seen the stairs
    return Limits(settings.round_to, settings.min_width, settings.include, settings.exclude, on_gpu=blind)


def allows(settings: Settings, weight: str) -> bool:
    """Whether a layer with a weight of that name may be made of two."""
    wanted = settings.include is None or bool(re.search(settings.include, weight))
    return wanted and not (settings.exclude is not None and re.search(settings.exclude, weight))


def choices_of(settings: Settings, samples: bool) -> tuple[str, str]:
    """Criterion and allocation, with or without samples.

    Raises:
        UsageError: one was asked for that needs samples, and there are none.
    """
    criterion = settings.criterion or BY_DEFAULT[samples]
    allocation = settings.allocation or ("adaptive" if samples else "uniform")
    if not samples:
        for option, value, needed in (
            ("criterion", criterion, named(criterion).needs_samples),
            ("allocation", allocation, allocation == "adaptive"),
        ):
            if needed:
                raise UsageError(f"--{option} {value} needs samples; give --calib")
    return criterion, allocation
