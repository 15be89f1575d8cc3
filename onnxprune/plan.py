"""The plan: which edits make the smaller model. The seam between deciding and rewriting.

A plan names channel groups, so it can be read, changed by hand and replayed: `onnxprune plan` writes one,
`onnxprune apply` uses it. It belongs to one model, known by its digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from onnxprune.errors import UsageError

SCHEMA = 1


@dataclass(frozen=True)
class KeepChannels:
    """Keep these channels of a group and remove the others.

    Attributes:
        group: the group's name, as `onnxprune inspect` prints it.
        width: its number of channels before.
        keep: the channels that stay, ascending.
    """

    group: str
    width: int
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.keep or list(self.keep) != sorted(set(self.keep)):
            raise UsageError(f"plan: group {self.group!r} must keep at least one channel, ascending, none twice")
        if self.keep[0] < 0 or self.keep[-1] >= self.width:
            raise UsageError(f"plan: group {self.group!r} has channels 0 to {self.width - 1}")


@dataclass(frozen=True)
class PrunePlan:
    """All edits to one model.

    Attributes:
        model_digest: SHA-256 of the model that the plan was made for.
        edits: the edits, in the order of the graph.
        settings: how the plan came about (ratio, criterion, seed), for the reader.
    """

    model_digest: str
    edits: tuple[KeepChannels, ...]
    settings: Mapping[str, object]

    def keep(self) -> dict[str, tuple[int, ...]]:
        """Group name -> kept channels."""
        return {e.group: e.keep for e in self.edits}

    def to_json(self) -> str:
        """JSON text; `from_json` gives the plan back."""
        edits = [{"edit": "keep_channels", **asdict(e), "keep": list(e.keep)} for e in self.edits]
        content = {
            "schema": SCHEMA,
            "kind": "onnxprune plan",
            "model_digest": self.model_digest,
            "settings": dict(self.settings),
            "edits": edits,
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PrunePlan:
        """Read a plan.

        Raises:
            UsageError: not a plan, or one of a newer schema.
        """
        try:
            content = json.loads(text)
            if content.get("kind") != "onnxprune plan":
                raise UsageError("not an onnxprune plan - write one with `onnxprune plan MODEL`")
            if content["schema"] > SCHEMA:
                raise UsageError(f"the plan has schema {content['schema']}, this onnxprune reads {SCHEMA} - upgrade")
            edits = []
            for e in content["edits"]:
                if e["edit"] != "keep_channels":
                    raise UsageError(f"the plan holds an unknown edit {e['edit']!r} - upgrade onnxprune")
                edits.append(KeepChannels(str(e["group"]), int(e["width"]), tuple(int(k) for k in e["keep"])))
            return cls(str(content["model_digest"]), tuple(edits), dict(content.get("settings", {})))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"the plan cannot be read: {error!r} - write one with `onnxprune plan MODEL`") from error
