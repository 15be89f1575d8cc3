"""What every source is read with: the model's inputs by name, the limit, the caps, and what was set aside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import CalibrationError
from onnxprune.samples.layout import Entry, Layout, held
from onnxprune.samples.messages import clip, saying

if TYPE_CHECKING:
    from onnxprune.samples.images import ImageSpec

LABELS = frozenset(
    {"label", "labels", "target", "targets", "y", "y_true", "mask", "masks", "boxes", "box_form", "text", "texts",
     "characters"}
)  # fmt: skip
"""What may stand beside inputs and is none (`measure.labelled`)."""


class Reading:
    """How one source is read.

    Attributes:
        layout: which axes of the inputs count samples.
        limit: so many samples are wanted, or None for all.
        image: how an image becomes an input, or None where nobody has said.
        max_bytes: the most that an archive member may unpack to, or an iterable give.
        title: what messages call the source.
        ignored: what it held besides inputs: labels.
    """

    def __init__(self, layout: Layout, limit: int | None, image: ImageSpec | None, max_bytes: int) -> None:
        self.layout, self.image, self.max_bytes = layout, image, max_bytes
        self.limit = limit if limit is None else max(limit, layout.batch or 1)
        self.title = "samples"
        self.ignored: dict[str, None] = {}  # an ordered set

    def enough(self, entries: Iterable[Entry]) -> list[Entry]:
        """As many entries as the limit needs, and no further one made."""
        taken: list[Entry] = []
        count = 0
        for entry in entries:
            taken.append(entry)
            count += entry.count
            if self.limit is not None and count >= self.limit:
                break
        return taken

    def single(self, name: str) -> str:
        """The model's one input, for an array that says no name."""
        if len(names := self._asked()) == 1:
            return names[0]
        raise CalibrationError(f"{name}: one array, but the model has {self.wanted()}; use an .npz or dicts")

    def wanted(self) -> str:
        """What the model has, as messages say it."""
        names = ", ".join(map(repr, self.layout.inputs))
        return f"the input{'s' if len(self.layout.inputs) > 1 else ''} {names}"

    def _asked(self) -> list[str]:
        """The inputs that samples must have."""
        return [name for name in self.layout.inputs if name not in self.layout.values]

    def keyed(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` by input name; labels are set aside, any other unknown or missing name is an error."""
        names = self._asked()
        unknown = [key for key in given if key not in self.layout.inputs]
        other = [key for key in unknown if key not in LABELS]
        missing = [key for key in names if key not in given]
        if missing == names and len(names) == 1:
            candidates = other or unknown
            if len(candidates) == 1 and not {"..", ""} & set(re.split(r"[\\/]", candidates[0])):
                self.ignored.update(dict.fromkeys(key for key in unknown if key != candidates[0]))
                return {names[0]: given[candidates[0]]}
        if missing or other:
            what = f"has no {missing[0]!r}" if missing else f"has {other[0]!r}"
            keys = ", ".join(map(repr, given)) or "nothing"
            hint = f"; {remedy}" if missing and missing != names and (remedy := self.layout.remedy(missing[0])) else ""
            raise CalibrationError(f"{name}: {what}; the model has {self.wanted()}, this has {clip(keys)}{hint}")
        self.ignored.update(dict.fromkeys(unknown))
        return {key: given[key] for key in self.layout.inputs if key in given}

    def item(self, name: str, item: Any) -> Entry:
        """An entry of one dict, one array, or a tuple (inputs..., labels)."""
        if isinstance(item, Mapping):
            item = self.keyed(name, {str(key): value for key, value in item.items()})
        elif isinstance(item, list | tuple) and item and all(hasattr(part, "shape") for part in item):
            names = self._asked()
            if len(item) < len(names):
                raise CalibrationError(f"{name}: {len(item)} arrays, but the model has {self.wanted()}")
            self.ignored.update(dict.fromkeys(f"element {i}" for i in range(len(names), len(item))))
            item = dict(zip(names, item, strict=False))
        else:
            item = {self.single(name): item}
        arrays = {}
        for key, value in item.items():
            with saying(f"{name}: input {key!r}"):
                arrays[key] = held(np.asarray(value))
        return self.layout.entry(name, arrays)
