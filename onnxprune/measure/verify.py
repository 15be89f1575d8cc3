"""Two questions about a pruned model, kept apart.

*Surgery*: is it the original with the removed channels masked? The judge multiplies every removed index of every
constant that the original reads by zero (the published `cuts`) and compares outputs. Weights play no part in
it, so it is asked before any repair.

*Fidelity*: does the finished model still answer like the original? Asked on samples that nothing was fitted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import BudgetError, PruneError, UsageError
from onnxprune.graph import runtime
from onnxprune.graph.model import node_key

SURGERY_TOLERANCE = 1e-4
"""Worst error allowed, as a share of the output's largest magnitude: float32 sums in another order."""

EQUAL_TOLERANCE = 1e-5
"""The same, for a cut that promises the original's outputs."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Surgery:
    """Worst relative error of the pruned model before any repair.

    Attributes:
        worst: the error, as a share of the output's largest magnitude.
        samples: number of samples.
        tolerance: what is allowed.
        against: what it was compared with: "masked original", or "original" for a lossless cut.
    """

    worst: float
    samples: int
    tolerance: float = SURGERY_TOLERANCE
    against: str = "masked original"

    @property
    def exact(self) -> bool:
        return self.worst <= self.tolerance


@dataclass(frozen=True)
class Fidelity:
    """How alike the outputs are on held-out samples.

    Attributes:
        samples: number of samples.
        cosine: mean cosine between the outputs, per sample and output.
        sqnr_db: 10·log10 of signal power over error power, over all.
        top1: share of samples whose largest entry is the same; None when no output is a vector of scores.
        held_out: False when the samples were also fitted on (there was only one).
    """

    samples: int
    cosine: float
    sqnr_db: float
    top1: float | None
    held_out: bool = True


def masked(model: onnx.ModelProto, cuts: Sequence[Mapping]) -> onnx.ModelProto:
    """The original with every removed index of every listed input multiplied by zero."""
    model = _copy(model)
    nodes = {node_key(n): n for n in model.graph.node}
    shields: dict[str, list[onnx.NodeProto]] = {}
    types = _element_types(model)
    for k, cut in enumerate(cuts):
        node = nodes.get(cut["node"])
        if node is None or cut["input"] >= len(node.input):
            raise UsageError(f"cut {k} names {cut['node']!r}[{cut['input']}], which the model does not have")
        name = node.input[cut["input"]]
        mask = np.ones(cut["length"], types.get(name, np.dtype(np.float32)))
        mask[list(cut["removed"])] = 0
        shape = [1] * cut["rank"]
        shape[cut["axis"]] = -1
        model.graph.initializer.append(numpy_helper.from_array(mask.reshape(shape), f"__mask_{k}"))
        shield = helper.make_node("Mul", [name, f"__mask_{k}"], [f"__masked_{k}"])
        shields.setdefault(cut["node"], []).append(shield)
        node.input[cut["input"]] = f"__masked_{k}"
    ordered: list[onnx.NodeProto] = []
    for node in model.graph.node:
        ordered += shields.get(node_key(node), ())
        ordered.append(node)
    body = [onnx.NodeProto.FromString(n.SerializeToString()) for n in ordered]
    del model.graph.node[:]
    model.graph.node.extend(body)
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _element_types(model: onnx.ModelProto) -> dict[str, np.dtype]:
    """Element types of constants that are not float32 (masks must match them)."""
    found = {}
    for t in model.graph.initializer:
        found[t.name] = helper.tensor_dtype_to_np_dtype(t.data_type)
    for node in model.graph.node:
        if node.op_type == "Constant":
            for a in node.attribute:
                if a.name == "value":
                    found[node.output[0]] = helper.tensor_dtype_to_np_dtype(a.t.data_type)
    for info in (*model.graph.input, *model.graph.value_info):
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type:
            found.setdefault(info.name, helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    return found


def check_surgery(
    original: onnx.ModelProto, pruned: onnx.ModelProto, cuts: Sequence[Mapping], batches: Iterable[Feeds]
) -> Surgery:
    """Compare the unrepaired pruned model with the masked original.

    Raises:
        BudgetError: an output has another shape.
    """
    errors, sizes, samples = _errors(masked(original, cuts), "masked original", pruned, batches)
    return Surgery(float((errors / (sizes + 1e-12)).max(initial=0.0)), samples)


def check_equal(original: onnx.ModelProto, pruned: onnx.ModelProto, batches: Iterable[Feeds]) -> Surgery:
    """Compare a pruned model that promises the original's outputs with the original.

    The error is a share of the output's largest magnitude in the batch, or of a tenth of its largest in any, where
    that is more: a saturated output that is all but zero is nothing but rounding.

    Raises:
        BudgetError: an output has another shape.
    """
    errors, sizes, samples = _errors(original, "original", pruned, batches)
    sizes = np.maximum(sizes, 0.1 * sizes.max(axis=0, initial=0.0))
    return Surgery(float((errors / (sizes + 1e-12)).max(initial=0.0)), samples, EQUAL_TOLERANCE, "original")


def _errors(
    reference: onnx.ModelProto, name: str, pruned: onnx.ModelProto, batches: Iterable[Feeds]
) -> tuple[np.ndarray, np.ndarray, int]:
    """(largest error and largest magnitude per batch and output, (batches, outputs) each; number of samples)."""
    left = runtime.open_session(reference, name=name)
    right = runtime.open_session(pruned, name="pruned model")
    errors: list[list[float]] = []
    sizes: list[list[float]] = []
    samples = 0
    for feeds in batches:
        samples += len(next(iter(feeds.values()))) if feeds else 1
        errors.append([])
        sizes.append([])
        for output, a, b in zip(right.outputs, left.run(dict(feeds)), right.run(dict(feeds)), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            if a.shape != b.shape:
                raise BudgetError(f"output {output!r}: shape {a.shape} became {b.shape} - please report this model")
            measured = bool(a.size) and a.dtype.kind == "f"
            error = float(np.abs(a.astype(np.float64) - b).max()) if measured else 0.0
            errors[-1].append(error if np.isfinite(error) else np.inf)
            sizes[-1].append(float(np.abs(a.astype(np.float64)).max()) if measured else 0.0)
    return np.array(errors), np.array(sizes), samples


def check_fidelity(
    original: onnx.ModelProto, pruned: onnx.ModelProto, batches: Iterable[Feeds], *, held_out: bool = True
) -> Fidelity:
    """Compare the finished model with the original, sample by sample."""
    left = runtime.open_session(original, name="original")
    right = runtime.open_session(pruned, name="pruned model")
    cosines: list[np.ndarray] = []
    agree: list[np.ndarray] = []
    signal = noise = 0.0
    samples = 0
    for feeds in batches:
        count = len(next(iter(feeds.values()))) if feeds else 1
        samples += count
        for a, b in zip(left.run(dict(feeds)), right.run(dict(feeds)), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            if a.dtype.kind != "f" or a.shape != b.shape or not a.size:
                continue
            a, b = a.astype(np.float64), b.astype(np.float64)
            signal, noise = signal + float((a**2).sum()), noise + float(((a - b) ** 2).sum())
            rows = a.shape[0] if a.ndim and a.shape[0] == count else 1
            u, v = a.reshape(rows, -1), b.reshape(rows, -1)
            norm = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
            cosines.append((u * v).sum(axis=1) / np.maximum(norm, 1e-30))
            if a.ndim == 2 and a.shape[1] > 1:
                agree.append(a.argmax(axis=1) == b.argmax(axis=1))
    if not cosines:
        raise PruneError("the model has no floating-point output to compare")
    sqnr = 10 * np.log10(signal / noise) if noise > 0 else np.inf
    return Fidelity(
        samples=samples,
        cosine=float(np.concatenate(cosines).mean()),
        sqnr_db=float(min(sqnr, 300.0)),
        top1=float(np.concatenate(agree).mean()) if agree else None,
        held_out=held_out,
    )
