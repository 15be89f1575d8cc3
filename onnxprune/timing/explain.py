"""Why a network is not faster: what its nodes take, against what their arithmetic and their bytes promise.

    promised = max(MACs / rate, bytes / bandwidth) + launch

Rate, bandwidth and what it costs to launch a node are measured here, with a convolution, an activation and a chain of
nodes that do nothing. Causes are a table; the first that applies to a node is named. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.layers import Layer, layers
from onnxprune.graph.model import Graph
from onnxprune.protobuf.nodes import node_key
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.providers import provider_name
from onnxprune.timing.engine import Engine, chained_ms, idle_ms
from onnxprune.timing.node_times import nearest_widths, owner, profiled, profiler_ms

Shapes = Mapping[str, tuple[int, ...]]
PROFILE_MS = 600.0
"""Time spent on a model's profile, at least 12 and at most 200 runs."""
SLOW, HEAVY, WORTH = 1.5, 0.4, 0.02
"""A node is slow from that many times what was promised; it dominates, or is worth a look, from that share of a run."""
LAYOUT = ("ReorderInput", "ReorderOutput", "MemcpyToHost", "MemcpyFromHost")
"""Operators that ONNX Runtime puts in to bring tensors into another layout or place."""
FUSIBLE = ("BatchNormalization", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish")
"""What ONNX Runtime computes within the layer before it, where it can."""


@dataclass(frozen=True)
class Machine:
    """What is promised.

    Attributes:
        macs_per_ms: of a convolution that fills the machine.
        bytes_per_ms: read and written.
        launch_ms: of a node in a chain.
    """

    macs_per_ms: float
    bytes_per_ms: float
    launch_ms: float


@dataclass(frozen=True)
class Spent:
    """A node as ONNX Runtime ran it.

    Attributes:
        name: of the node in the model that it stands for; its own where it stands for none.
        op: the operator, as it was run.
        ms: of a run.
        share: of the whole run.
        macs, bytes: of a run; 0 where they are not known.
        promised_ms: what these promise.
        cause: why it takes longer, or why there is nothing to win; empty where it takes what was promised.
        help: what would help.
        before_ms: what it took in the other model; None where it was not there.
    """

    name: str
    op: str
    ms: float
    share: float
    macs: float
    bytes: float
    promised_ms: float
    cause: str = ""
    help: str = ""
    before_ms: float | None = None


@dataclass(frozen=True)
class Explained:
    """One model.

    Attributes:
        name: what it is called.
        total_ms: a run.
        machine: what promises rest on.
        nodes: all, the slowest first.
    """

    name: str
    total_ms: float
    machine: Machine
    nodes: Sequence[Spent]

    def beside(self, before: Explained) -> Explained:
        """The same, with what nodes of the same names took in another model."""
        known = {node.name: node.ms for node in before.nodes}
        return replace(self, nodes=[replace(n, before_ms=known.get(n.name)) for n in self.nodes])

    def causes(self) -> list[tuple[str, float, int]]:
        """(cause, ms of all its nodes, how many they are), the largest first."""
        found: dict[str, tuple[float, int]] = {}
        for node in self.nodes:
            if node.cause:
                ms, count = found.get(node.cause, (0.0, 0))
                found[node.cause] = ms + node.ms, count + 1
        return sorted(((c, ms, n) for c, (ms, n) in found.items()), key=lambda row: -row[1])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "causes": [{"cause": c, "ms": ms, "nodes": n} for c, ms, n in self.causes()]}


# ---- causes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """What a cause may look at."""

    node: Spent
    machine: Machine
    behind_layer: bool
    provider: str
    wanted: str
    widths: Callable[[], Sequence[tuple[int, int, float]]]


def _fell_back(s: _Seen) -> str | None:
    where = f"{s.wanted} does not run it, {s.provider} does"
    return f"{where}; export another operator, or leave the whole to {s.provider}" if s.provider != s.wanted else None


def _layout(s: _Seen) -> str | None:
    if s.node.op not in LAYOUT:
        return None
    return "a tensor is copied into another layout; operators in between that know one layout only are the reason"


def _unfused(s: _Seen) -> str | None:
    if s.node.op not in FUSIBLE or not s.behind_layer:
        return None
    return f"{s.node.op} runs on its own behind a layer; fold it (`--lossless` does), or export with fusable nodes"


def _off_the_grid(s: _Seen) -> str | None:
    gains = [(ratio, n, up) for n, up, ratio in s.widths() if ratio < 0.95]
    if not gains:
        return None
    ratio, n, up = min(gains)
    return f"{up} channels instead of {n} take {1 - ratio:.0%} less here, measured; --round-to does that"


def _launch(s: _Seen) -> str | None:
    if s.node.promised_ms > 2 * s.machine.launch_ms or s.node.ms > 4 * s.machine.launch_ms:
        return None
    return "fewer channels win nothing; drop blocks (--methods blocks), merge them, or use larger batches"


def _memory(s: _Seen) -> str | None:
    if s.node.bytes / s.machine.bytes_per_ms <= s.node.macs / s.machine.macs_per_ms or not s.node.bytes:
        return None
    return "it moves more than it multiplies; fewer channels win in proportion, lower ranks nothing"


def _dominates(s: _Seen) -> str | None:
    return "cut here: nothing else can win as much" if s.node.share > HEAVY else None


def _slow(s: _Seen) -> str | None:
    if not s.node.macs or s.node.ms < SLOW * s.node.promised_ms:
        return None
    return (
        f"{s.node.ms / s.node.promised_ms:.1f} times what its arithmetic promises: its shape does not fill the machine"
    )


CAUSES: Mapping[str, Callable[[_Seen], str | None]] = {
    "fell back": _fell_back,
    "layout copy": _layout,
    "not fused": _unfused,
    "width off the grid": _off_the_grid,
    "launch-bound": _launch,
    "dominates": _dominates,
    "memory-bound": _memory,
    "slow kernel": _slow,
}
"""Cause -> what tells what would help, None where it does not apply; in the order in which they are asked."""


# ---- measuring -------------------------------------------------------------------------------------------


def machine(engine: Engine) -> Machine:
    """What promises rest on, measured."""
    x, w = (1, 64, 56, 56), (64, 64, 3, 3)
    conv = _one("Conv", x, {"w": w}, pads=[1, 1, 1, 1])
    idle = idle_ms(engine)
    multiplied = engine.run_ms(conv, {"x": _random(x)}, 200.0, (10, 60)) - idle
    moved = (
        engine.run_ms(_one("Relu", (1, 64, 128, 128), {}), {"x": _random((1, 64, 128, 128))}, 200.0, (10, 60)) - idle
    )
    macs, size = math.prod(w) * 56 * 56, 2 * 4 * 64 * 128 * 128
    return Machine(macs / max(multiplied, 1e-6), size / max(moved, 1e-6), chained_ms(engine))


def explain(graph: Graph, feeds: Feeds, shapes: Shapes, engine: Engine, on: Machine, name: str) -> Explained:
    """What every node takes, and why.

    Args:
        graph: the network.
        feeds: one run's inputs.
        shapes: sizes of its tensors in that run.
        engine: what it runs on.
        on: what promises rest on.
        name: what it is called.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for node in model.graph.node:
        node.name = node_key(node)
    events, total = profiled(model, feeds, engine, PROFILE_MS, (12, 200))
    extra, placed = profiler_ms(engine), _providers(model, engine)
    known, found = {layer.key: layer for layer in layers(graph, shapes)}, []
    for event, (seen, op) in events.items():
        key = owner(graph, event.removesuffix("_nchwc"), op)
        ms, layer = max(seen - extra, seen / 10), known.get(key or "")
        macs = layer.macs if layer else 0.0
        moved = _bytes(graph, key, shapes) if key else 0.0
        promised = max(macs / on.macs_per_ms, moved / on.bytes_per_ms) + on.launch_ms
        spent = Spent(key or event, op, ms, min(1.0, ms / total), macs, moved, promised)
        wanted = provider_name(engine.providers[0])
        widths = _widths(graph, layer, shapes, engine, spent.share)
        behind = _behind_layer(graph, key, known)
        found.append(_caused(_Seen(spent, on, behind, placed.get(event, wanted), wanted, widths)))
    return Explained(name, total, on, sorted(found, key=lambda node: (-node.ms, node.name)))


def _caused(seen: _Seen) -> Spent:
    for cause, applies in CAUSES.items():
        help = applies(seen)
        if help is not None:
            return replace(seen.node, cause=cause, help=help)
    return seen.node


def _widths(
    graph: Graph, layer: Layer | None, shapes: Shapes, engine: Engine, share: float
) -> Callable[[], Sequence[tuple[int, int, float]]]:
    """What measures a layer's next widths, where that is worth it."""
    if layer is None or share < WORTH:
        return tuple
    multiple = 8 if engine.on_cpu else 32
    return lambda: nearest_widths(graph, layer, shapes, engine, multiple)


def _behind_layer(graph: Graph, key: str | None, known: Mapping[str, Layer]) -> bool:
    """Whether a node reads what a layer writes, and nobody else does."""
    if key not in graph.nodes:
        return False
    read = next(iter(graph.nodes[key].input), "")
    return graph.producer.get(read) in known and len(graph.consumers().get(read, ())) == 1


def _bytes(graph: Graph, key: str, shapes: Shapes) -> float:
    """What a node reads and writes."""
    node, size = graph.nodes[key], 0.0
    for name in (*node.input, *node.output):
        value = graph.constant(name)
        if value is not None:
            size += value.nbytes
        elif name in shapes:
            size += 4.0 * math.prod(shapes[name])
    return size


def _providers(model: onnx.ModelProto, engine: Engine) -> dict[str, str]:
    """Node -> the provider that runs it; empty where ONNX Runtime does not tell."""
    if engine.on_cpu:
        return {}
    return {n.node: n.provider for n in engine.open(model).nodes or ()}


def _random(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _one(op: str, x: tuple[int, ...], weights: Mapping[str, tuple[int, ...]], **attributes: Any) -> onnx.ModelProto:
    """A model of one node."""
    node = helper.make_node(op, ["x", *weights], ["y"], name="y", **attributes)
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", x))]
    held = [numpy_helper.from_array(_random(shape), name) for name, shape in weights.items()]
    body = helper.make_graph([node], "one", ports[:1], ports[1:], held)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
