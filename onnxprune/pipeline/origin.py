"""Where a plan and a model come from: every setting as it came out, the samples, the version, the passes before.

A plan remembers it (`plan.Origin`), a model is signed with it (`files.metadata`), a result shows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import onnx

from onnxprune import __version__
from onnxprune.files.metadata import LENGTH, earlier, stamp
from onnxprune.pipeline.finishing import FINISHES
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.repairs import REPAIRS
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import Origin, PrunePlan, Value
from onnxprune.report.provenance import Provenance, this_run
from onnxprune.report.terminal import asked_words
from onnxprune.rewrite.repair.table import NONE, WITH_SAMPLES, WITHOUT_SAMPLES

UNSIGNED = ("threads", "memory", "metadata", "recipe", "refine", "version", "samples_digest")
"""What a model is not signed with: what does not change it, paths of this machine, and what is said by itself."""
CARRIED_OUT = ("batch", "providers", "provider_options", "metadata", "threads", "memory", "seed")
"""The settings that decide when a plan is carried out, besides the repair's own and those of `FORMATS`."""
FORMATS = tuple(dict.fromkeys(f.setting for f in FINISHES.values()))


def origin_of(subject: Subject, settings: Mapping[str, Value | None], **known: Any) -> Origin:
    """The memory of a plan for a subject: its settings by name, and further fields of `Origin`."""
    data = subject.calibration
    return Origin(
        settings={name: value for name, value in {**settings, **subject.asked}.items() if value is not None},
        samples=None if data is None else len(data),
        samples_digest=subject.samples_digest,
        version=__version__,
        **known,
    )


def provenance_of(subject: Subject, settings: Settings, repair: str) -> Provenance:
    """Where an outcome comes from that is made of a subject, in this run."""
    names = (*CARRIED_OUT, *FORMATS, *REPAIRS[repair].options)
    own = {name: value for name in names if (value := getattr(settings, name)) not in (None, ())}
    before = tuple(earlier(subject.model))
    return Provenance(subject.digest, subject.samples_digest, own, before, this_run())


def sign(
    model: onnx.ModelProto, subject: Subject, plan: PrunePlan, settings: Settings, repair: str | None = None
) -> None:
    """Write into a model's metadata, in place, what it was made from and how; nothing where the settings say so.

    Args:
        model: the outcome.
        subject: the original, and its samples.
        plan: what was done.
        settings: how it was repaired.
        repair: the repair that was made; None: the one that would be.
    """
    name = repair or settings.repair or _usual(plan, sampled=subject.calibration is not None)
    stamp(model, _entries(subject, plan, settings, name) if settings.metadata else {})


def _usual(plan: PrunePlan, *, sampled: bool) -> str:
    return NONE if plan.lossless else WITH_SAMPLES if sampled else WITHOUT_SAMPLES


def _entries(subject: Subject, plan: PrunePlan, settings: Settings, repair: str) -> dict[str, str]:
    others = set(FORMATS)
    others |= set() if plan.origin.trained else {name for r in REPAIRS.values() for name in r.options}
    remembered = {k: v for k, v in plan.settings.items() if k not in others}
    own = {name: getattr(settings, name) for name in REPAIRS[repair].options}
    own |= {name: value for name in FORMATS if (value := getattr(settings, name)) is not None}
    signed = {**remembered, "repair": repair, "seed": settings.seed, **own}
    shown = {name: value for name, value in signed.items() if name not in UNSIGNED}
    entries = {
        "version": __version__,
        "asked": asked_words(plan.settings),
        "settings": json.dumps(shown, default=str, sort_keys=True, separators=(",", ":")),
        "model_digest": subject.digest,
        "samples_digest": subject.samples_digest or "",
        "predicted": "" if plan.origin.predicted is None else f"{plan.origin.predicted:.4f}",
    }
    return {name: text for name, text in entries.items() if 0 < len(text) <= LENGTH}
