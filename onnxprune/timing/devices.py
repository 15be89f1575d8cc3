"""A device that was measured elsewhere, or is to be: what planning asks of a clock, written down and answered later.

Everything that is measured goes through an engine. `Asking` is one that measures nothing and keeps what it was asked;
`profile_device` answers that on the device; `Recorded` is an engine that knows these answers. So planning is the same
code wherever the times come from. A question is known by what decides its answer: the model's nodes and the sizes of
its weights, but not their values.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.errors import ProviderError, UsageError, one_line
from onnxprune.files.text import read_text
from onnxprune.protobuf.nodes import node_key
from onnxprune.protobuf.serialize import without_initializers
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.providers import provider_name, provider_of, short_name
from onnxprune.timing import profile_device
from onnxprune.timing.engine import Engine
from onnxprune.timing.profile_device import KIND, SCHEMA

STRIPPED = 32
"""Weights of more elements are made up where it is measured."""
MADE_UP = ("float32", "float16", "int8", "uint8")
"""Types of weights that are; others may be sizes or indices."""


class Elsewhere(Engine):
    """An engine whose times are not of this machine; no two are the same."""

    elsewhere = True
    __eq__, __hash__ = object.__eq__, object.__hash__

    def check(self) -> None:
        """Nothing runs here."""


@dataclass(frozen=True, eq=False)
class Asking(Elsewhere):
    """An engine that measures nothing: it keeps what it is asked, and answers with the sizes of weights."""

    questions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def told(
        self, kind: str, models: Sequence[onnx.ModelProto], feeds: Feeds, budget_ms: float, least_most: tuple[int, int]
    ) -> Any:
        """As `Engine.told`: what lets everything be asked that might be."""
        self.questions[_key(kind, models, feeds)] = {
            "kind": kind,
            "models": [_asked_for(model) for model in models],
            "feeds": [_spec(np.asarray(value), name) for name, value in feeds.items()],
            "budget_ms": budget_ms,
            "least_most": list(least_most),
        }
        if kind == "walls":
            return [1.0 + _size(model) for model in models]
        each, nodes = 1.0 + _size(models[0]), models[0].graph.node
        return {node_key(n): (each, n.op_type) for n in nodes}, each * len(nodes)

    def work(self, batch: int, model: str, precision: str | None = None) -> dict[str, Any]:
        """What `profile_device.measure` takes.

        Args:
            batch: of the timed runs.
            model: what it is called.
            precision: the floats that it was converted to.
        """
        names = [provider_name(p) for p in self.providers]
        return {
            "providers": names,
            "provider_options": {provider_name(p): {k: str(v) for k, v in o.items()} for p, o in self.options.items()},
            "device": provider_of(names[0]).device,
            "threads": self.threads,
            "batch": batch,
            "precision": precision,
            "model": model,
            "questions": self.questions,
        }


@dataclass(frozen=True, eq=False)
class Recorded(Elsewhere):
    """A device as it was measured.

    Attributes:
        path: the file.
        content: all that it holds.
    """

    path: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Samples in a run."""
        return int(self.content["batch"])

    @property
    def precision(self) -> str | None:
        """The floats that were measured; None: as the model has them."""
        found = self.content.get("precision")
        return None if found is None else str(found)

    @property
    def words(self) -> str:
        """The device, in words."""
        own, threads = self.content["device"], self.threads
        on = ", ".join(self.providers)
        return one_line(
            f"{own['cpu']} ({on}, {threads} thread{'s' * (threads > 1)}, batch {self.batch}, "
            f"{f'{self.precision}, ' if self.precision else ''}ONNX Runtime {own['onnxruntime']})"
        )

    def told(
        self, kind: str, models: Sequence[onnx.ModelProto], feeds: Feeds, budget_ms: float, least_most: tuple[int, int]
    ) -> Any:
        """As `Engine.told`.

        Raises:
            UsageError: it was not measured.
            ProviderError: the device could not run it.
        """
        answer = self.content["answers"].get(_key(kind, models, feeds))
        if answer is None:
            raise UsageError(
                one_line(
                    f"{self.path}: a time that this model needs was not measured there (the profile is of "
                    f"{self.content['model']}, batch {self.batch}); run `onnxprune profile` on this very model, or go "
                    "on with a profile that was interrupted"
                )
            )
        if "failed" in answer:
            raise ProviderError(one_line(f"{self.words}: {answer['failed']}"))
        return answer


def recorded(path: str) -> Recorded:
    """The device in a file that `onnxprune profile` has written.

    Raises:
        FileError: it cannot be read.
        UsageError: it is no such file.
    """
    try:
        text = read_text(path)
    except UnicodeDecodeError:
        text = ""
    return _parsed(path, text)


def script(work: Mapping[str, Any]) -> str:
    """A program that measures, and needs nothing but ONNX Runtime and numpy."""
    source = Path(profile_device.__file__).read_text(encoding="utf-8")
    packed = base64.b64encode(zlib.compress(json.dumps(work, sort_keys=True).encode(), 9)).decode()
    return source.replace('\nWORK = ""\n', f'\nWORK = "{packed}"\n', 1)


@functools.lru_cache(maxsize=4)
def _parsed(path: str, text: str) -> Recorded:
    try:
        content = json.loads(text)
        if content["kind"] != KIND or content["schema"] != SCHEMA or not _sound(content):
            raise ValueError
        providers = tuple(short_name(p) for p in content["providers"])
        options = {short_name(p): o for p, o in content["provider_options"].items()}
        made = Recorded(providers, options, content["threads"], path, content)
        provider_of(providers[0]), str(made.words)  # or it is none
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError):
        raise UsageError(
            one_line(f"{path}: is no profile of a device; `onnxprune profile MODEL -o FILE` makes one")
        ) from None
    return made


def _sound(content: Mapping[str, Any]) -> bool:
    """Whether all times are such as a clock gives."""
    counts = all(type(content[key]) is int and content[key] > 0 for key in ("threads", "batch", "questions"))
    return counts and all(_answered(answer) for answer in content["answers"].values())


def _answered(answer: Any) -> bool:
    if isinstance(answer, dict):
        return set(answer) == {"failed"}
    if answer and isinstance(answer[0], dict):
        events, wall = answer
        return all(isinstance(op, str) and _time(ms) for ms, op in events.values()) and _time(wall)
    return len(answer) > 0 and all(map(_time, answer))


def _time(ms: Any) -> bool:
    return type(ms) in (int, float) and 0 <= ms < 1e9


def _parted(model: onnx.ModelProto) -> tuple[bytes, list[onnx.TensorProto]]:
    """(the model without its large weights, these)."""
    bare, large = without_initializers(model), []
    for tensor in model.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        if math.prod(tensor.dims) > STRIPPED and dtype in MADE_UP:
            large.append(tensor)
        else:
            bare.graph.initializer.add().CopyFrom(tensor)
    return bare.SerializeToString(deterministic=True), large


def _asked_for(model: onnx.ModelProto) -> dict[str, Any]:
    """What a question says of a model."""
    template, large = _parted(model)
    weights = [{**_spec(numpy_helper.to_array(t), t.name), "type": t.data_type} for t in large]
    return {"template": base64.b64encode(template).decode(), "weights": weights}


def _spec(array: np.ndarray, name: str) -> dict[str, Any]:
    """What `profile_device.made` takes."""
    spec: dict[str, Any] = {"name": name, "dims": list(array.shape), "dtype": array.dtype.name}
    if array.dtype.name not in MADE_UP:
        return {**spec, "values": base64.b64encode(array.tobytes()).decode()}
    whole = array.astype(np.float64)
    return {**spec, "mean": float(whole.mean()), "spread": float(whole.std()), "positive": bool((whole > 0).all())}


def _size(model: onnx.ModelProto) -> float:
    """Elements of all weights: what falls with every width, so that nothing is left out as not worth a question."""
    return float(sum(math.prod(t.dims) for t in model.graph.initializer))


def _key(kind: str, models: Sequence[onnx.ModelProto], feeds: Feeds) -> str:
    """What a question is known by."""
    found = hashlib.sha256(
        str([kind, *((k, np.shape(v), np.asarray(v).dtype.name) for k, v in feeds.items())]).encode()
    )
    for model in models:
        template, large = _parted(model)
        found.update(str([(t.name, list(t.dims), t.data_type) for t in large]).encode())
        found.update(template)
    return found.hexdigest()[:20]
