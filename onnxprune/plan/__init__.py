"""What a plan is: a document of edits, the seam between deciding and rewriting."""

from onnxprune.plan.edits import (
    PAIRS,
    DropBlock,
    Edit,
    Factorize,
    FuseLayers,
    KeepChannels,
    MergeBlock,
    MergeColumns,
    Resample,
    edit_of,
)
from onnxprune.plan.prune_plan import Origin, PrunePlan, Value, read_json

__all__ = [
    "PAIRS",
    "DropBlock",
    "Edit",
    "Factorize",
    "FuseLayers",
    "KeepChannels",
    "MergeBlock",
    "MergeColumns",
    "Origin",
    "PrunePlan",
    "Resample",
    "Value",
    "edit_of",
    "read_json",
]
