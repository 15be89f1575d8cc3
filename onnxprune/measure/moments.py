"""Activation statistics over the calibration samples, reduced inside the graph.

The model gets one `ReduceMean` of x and one of x² per tapped tensor, so what leaves ONNX Runtime is a vector a
channel axis, not an activation, whatever the batch and the number of samples. Sums are kept in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxprune.protobuf.nodes import opset
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds


@dataclass(frozen=True)
class Moments:
    """First and second moments per index of one axis.

    Attributes:
        count: samples times positions seen.
        mean: (length,) E[x].
        square: (length,) E[x²].
    """

    count: float
    mean: np.ndarray
    square: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """(length,) standard deviation."""
        return np.sqrt(np.maximum(self.square - self.mean**2, 0))


def moments(
    model: onnx.ModelProto,
    taps: Mapping[str, tuple[int, int]],
    batches: Iterable[Feeds],
    *,
    zeros: Mapping[str, float] | None = None,
    threads: int | None = None,
) -> dict[str, Moments]:
    """Moments of tapped tensors over all batches.

    Args:
        model: the model.
        taps: tensor name -> (axis, rank).
        batches: feeds; each is run once.
        zeros: tapped tensors whose squares do not fit their type, and what stands for zero there: of quantized ones,
            whose unit is one step, an integer.
        threads: ORT threads.
    """
    if not taps:
        return {}
    apart = sessions.parted(model)
    tapped = apart.model
    del tapped.graph.output[:]
    version, outputs = opset(model), [f"__m{i}_{k}" for k in range(len(taps)) for i in (1, 2)]
    # ORT starts with the last leaf: in this order a tap runs as soon as its tensor is there, and no activation waits.
    for k, (name, (axis, rank)) in reversed(list(enumerate(taps.items()))):
        others = [i for i in range(rank) if i != axis]
        real = name if zeros is None or name not in zeros else _widened(tapped.graph, name, zeros[name])
        square = helper.make_node("Mul", [real, real], [f"__sq_{k}"])
        tapped.graph.node.append(square)
        for source, out in ((real, f"__m1_{k}"), (f"__sq_{k}", f"__m2_{k}")):
            _mean(tapped.graph, source, out, others, version)
    tapped.graph.output.extend(helper.make_empty_tensor_value_info(o) for o in outputs)
    session = sessions.open_session(tapped, threads=threads, weights=apart.weights, name="calibration pass")
    total = 0.0
    sums: list[np.ndarray] = [np.zeros(1)] * len(outputs)
    for feeds in batches:
        weight = float(len(next(iter(feeds.values())))) if feeds else 1.0
        total += weight
        for i, value in enumerate(session.run(dict(feeds), outputs)):
            sums[i] = sums[i] + weight * np.asarray(value, np.float64).reshape(-1)
    return {
        name: Moments(total, np.asarray(sums[2 * k]) / total, np.asarray(sums[2 * k + 1]) / total)
        for k, name in enumerate(taps)
    }


def _widened(graph: onnx.GraphProto, name: str, zero: float) -> str:
    """Append the tensor in float32, counted from what stands for zero."""
    wide, real = f"{name}::wide", f"{name}::real"
    graph.initializer.append(helper.make_tensor(f"{name}::zero", onnx.TensorProto.FLOAT, [], [zero]))
    graph.node.append(helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.FLOAT))
    graph.node.append(helper.make_node("Sub", [wide, f"{name}::zero"], [real]))
    return real


def _mean(graph: onnx.GraphProto, source: str, out: str, axes: list[int], version: int) -> None:
    """Append the mean over `axes`; from opset 18 on they are an operand."""
    if not axes:
        graph.node.append(helper.make_node("Identity", [source], [out]))
    elif version < 18:
        graph.node.append(helper.make_node("ReduceMean", [source], [out], axes=axes, keepdims=0))
    else:
        graph.initializer.append(helper.make_tensor(f"{out}_axes", onnx.TensorProto.INT64, [len(axes)], axes))
        graph.node.append(helper.make_node("ReduceMean", [source, f"{out}_axes"], [out], keepdims=0))
