"""How long each node takes in ONNX Runtime on this machine, and how that changes with its widths.

Two measurements make the model. The whole network is run with ORT's profiler on: that is what each node takes
*where it stands*, fused, in the layout it really gets, caches as they are. And every kind of layer is run alone over
a grid of input and of output channels, because the cost of a width is a staircase (blocks of 16 or 8 channels, a
cliff where a count is no multiple of 4) that no formula knows. A layer's time is then the product

    t(in, out) = t · f(in) · g(out),     f and g read from the grid, 1 at the full widths,

every other node's time is proportional to the channels it works on, and what the run takes beside its nodes is shared
out among them. Grids are kept on disk, one file for a machine, provider and ORT version (`Grids`).

Elsewhere than on the CPU the profile tells how long it took to launch a node, not how long it ran. There a layer's time
is that of a run of it alone, by the clock; a node takes that or its launch, whichever is longer. Where runs are
recorded and replayed (graph capture) nothing is launched: there it takes at least what a node of a chain does.

Ours. Knows nothing of channels' ids or budgets (`measure.cost` does).
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import ProviderError
from onnxprune.graph import operators
from onnxprune.graph.layers import Layer, layers, products, signature_of, weight_axes
from onnxprune.graph.model import Graph
from onnxprune.graph.refusals import Refusal, refuse
from onnxprune.protobuf.nodes import attr, node_key
from onnxprune.runtime.ports import Feeds
from onnxprune.timing.bound_run import BoundRun
from onnxprune.timing.engine import CHAIN, IDLE, ON_CPU, Engine, chained_ms, idle_chain
from onnxprune.timing.grids import ALONE, MIXED, Grids
from onnxprune.timing.profile_device import beside_profile, clock_of

FUSED = 6
"""Nodes that ORT may have fused behind a layer, at most."""
POINTS, POINTS_BY_CLOCK = 16, 8
"""Most widths of one axis that are timed; in between, times are interpolated."""
POINT_MS = 12.0
"""Time spent on one point of a grid, at least 6 and at most 40 runs."""
COPIES = 4
"""A layer is timed that many times in a row: the first, after everything else, is colder than it is in a network."""
PROFILE_MS = 600.0
"""Time spent on the profile of the whole network, at least 12 and at most 200 runs."""


@dataclass(frozen=True)
class Stairs:
    """Relative time against the share of an axis that is left.

    Attributes:
        share: (points,) ascending, the last is 1.
        time: (points,) relative to the full axis, so the last is 1.
    """

    share: tuple[float, ...]
    time: tuple[float, ...]


@dataclass(frozen=True)
class NodeTimes:
    """What the nodes of one network take.

    Attributes:
        nodes: node key -> ms of one run, for the nodes that ORT runs on their own or that others were fused into.
        stairs: layer key -> its weight's axis -> relative time over the share of that axis.
        mixed: layer key -> κ, for the layers with two such axes.
        total_ms: one run of the whole network; its time on the core where there is one thread.
        loose_ms: what of it no node accounts for.
        seen_ms: what the nodes were seen to take together, before that was made to fit into the whole.
    """

    nodes: Mapping[str, float]
    stairs: Mapping[str, Mapping[int, Stairs]]
    mixed: Mapping[str, float]
    total_ms: float
    loose_ms: float
    seen_ms: float = 0.0


def node_times(
    graph: Graph,
    feeds: Feeds,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    engine: Engine = ON_CPU,
    grids: Grids | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NodeTimes:
    """Measure a network.

    Args:
        graph: the network.
        feeds: one run's inputs.
        shapes: sizes of its tensors in that run.
        engine: what it runs on.
        grids: where what is known of layers is kept; None: the user's cache.
        progress: called with (layers timed, layers).
    """
    grids = grids or Grids.of_user(engine)
    stairs: dict[str, dict[int, Stairs]] = {}
    mixed: dict[str, float] = {}
    alone: dict[str, float] = {}
    found = layers(graph, shapes)
    for k, layer in enumerate(found):
        if progress:
            progress(k, len(found))
        probe = _Probe.of(graph, layer, shapes)
        if not isinstance(probe, Refusal):
            known = grids.get(probe.signature, probe.entries(engine))
            if known is None:
                try:
                    known = probe.sweeps(engine)
                except ProviderError:  # it runs other layers, not this one
                    continue
                grids.put(probe.signature, known)
            swept = {a: v for a, v in known.items() if a not in (MIXED, ALONE)}
            stairs[layer.key] = {int(a): Stairs(tuple(x), tuple(y)) for a, (x, y) in swept.items()}
            if MIXED in known:
                mixed[layer.key] = known[MIXED][1][0]
            if ALONE in known:
                alone[layer.key] = known[ALONE][1][0]
    grids.save()
    nodes, total, seen = in_place(graph, feeds, engine, alone)
    return NodeTimes(nodes, stairs, mixed, total, max(0.0, total - seen), seen)


def refusals(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Layer -> why its widths are not timed, in words, for the layers whose time is taken to go with their channels."""
    found = ((layer.key, _Probe.of(graph, layer, shapes)) for layer in products(graph, shapes))
    return {key: str(why) for key, why in found if isinstance(why, Refusal)}


def by_node(
    graph: Graph,
    feeds: Feeds,
    shapes: Mapping[str, tuple[int, ...]],
    engine: Engine,
    *,
    budget_ms: float,
    least_most: tuple[int, int],
) -> dict[str, float]:
    """Node key -> ms of a run, of a network as it is; no widths are tried.

    Elsewhere than on the CPU every layer is also run alone, by the clock: quick, but without what fusions save.

    Args:
        graph, feeds, shapes, engine: as for `node_times`.
        budget_ms, least_most: how long the whole network is run, see `profiled`.
    """
    alone = {} if engine.on_cpu else _alone(graph, shapes, engine)
    return in_place(graph, feeds, engine, alone, budget_ms=budget_ms, least_most=least_most)[0]


def _alone(graph: Graph, shapes: Mapping[str, tuple[int, ...]], engine: Engine) -> dict[str, float]:
    """Layer -> ms of a run of it alone, by the clock; like layers are timed once, and what the provider does not take
    is not."""
    known: dict[str, float | None] = {}
    found = {}
    for layer in layers(graph, shapes):
        probe = _Probe.of(graph, layer, shapes)
        if isinstance(probe, Refusal):
            continue
        if probe.signature not in known:
            try:
                known[probe.signature] = probe.time({}, engine)
            except ProviderError:
                known[probe.signature] = None
        ms = known[probe.signature]
        if ms is not None:
            found[layer.key] = ms
    return found


# ---- where they stand ------------------------------------------------------------------------------------


def in_place(
    graph: Graph,
    feeds: Feeds,
    engine: Engine,
    alone: Mapping[str, float],
    *,
    budget_ms: float = PROFILE_MS,
    least_most: tuple[int, int] = (12, 200),
) -> tuple[dict[str, float], float, float]:
    """(node key -> ms, ms of a run, ms of all nodes as they were seen), from ORT's profile and a clock.

    Args:
        graph, feeds, engine: what is run.
        alone: what layers take by the clock.
        budget_ms, least_most: how long, see `profiled`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for node in model.graph.node:
        node.name = node_key(node)
    events, total = profiled(model, feeds, engine, budget_ms, least_most)
    extra = profiler_ms(engine)
    times: dict[str, float] = {}
    for name, (ms, op) in events.items():
        key = owner(graph, name.removesuffix("_nchwc"), op)
        if key is not None:
            launched = chained_ms(engine) if engine.replays else max(ms - extra, ms / 10)
            times[key] = times.get(key, 0.0) + launched
    # a provider that runs whole subgraphs names none of their nodes
    times = {key: max(times.get(key, 0.0), alone.get(key, 0.0)) for key in {**times, **alone}}
    spent = sum(times.values())
    if spent > total:
        times = {key: ms * total / spent for key, ms in times.items()}
    return times, total, spent


@functools.cache
def profiler_ms(engine: Engine) -> float:
    """What the profiler itself adds to every node: a chain of nodes that do nothing, with it and without."""
    events, wall = profiled(idle_chain(CHAIN), IDLE, engine, 60.0, (40, 200))
    return max(0.0, (sum(ms for ms, _ in events.values()) - wall) / max(1, len(events)))


def owner(graph: Graph, name: str, op: str) -> str | None:
    """The node that an event's name stands for: a fused layer goes by the last output that was fused into it."""
    key = name if name in graph.nodes else graph.producer.get(name)
    layer = operators.named(op.removeprefix("Fused"))
    if not layer.layer:
        return key
    at = key
    for _ in range(FUSED):
        if at is None or operators.of(graph.nodes[at]).name == layer.name:
            return at
        at = next((graph.producer[i] for i in graph.nodes[at].input if i in graph.producer), None)
    return key


def nearest_widths(
    graph: Graph, layer: Layer, shapes: Mapping[str, tuple[int, ...]], engine: Engine, multiple: int
) -> list[tuple[int, int, float]]:
    """(width, the next multiple above it, the time with that over the time as it is) for either width of a layer that
    is none; measured.

    Args:
        graph, layer, shapes: which layer, and sizes of tensors.
        engine: what it runs on.
        multiple: that widths are to be of.
    """
    probe = _Probe.of(graph, layer, shapes)
    if isinstance(probe, Refusal):
        return []
    off = {axis: n for axis, n in probe.widths.items() if n > multiple and n % multiple}
    own = probe.time({}, engine) if off else 1.0
    return [(n, up := -(-n // multiple) * multiple, probe.time({axis: up}, engine) / own) for axis, n in off.items()]


def profiled(
    model: onnx.ModelProto, feeds: Feeds, engine: Engine, budget_ms: float, least_most: tuple[int, int]
) -> tuple[dict[str, tuple[float, str]], float]:
    """(event name -> (ms of a run, operator), ms of a whole run without the profiler), run in turns.

    Args:
        model, feeds, engine: what is run; the nodes' names are the events'.
        budget_ms: time for each of the two.
        least_most: fewest and most runs.
    """
    told = engine.told("nodes", [model], feeds, budget_ms, least_most)
    if told is not None:
        return {name: (ms, op) for name, (ms, op) in told[0].items()}, told[1]
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        plain, session = engine.open(model), engine.open(model, profile=Path(folder, "p"))
        run: Callable[[], object] = BoundRun(plain, feeds) if not engine.on_cpu else lambda: plain.run(dict(feeds))
        return beside_profile(
            lambda: session.run(dict(feeds)),
            session.raw.end_profiling,
            run,
            budget_ms,
            least_most,
            clock_of(engine.threads, engine.on_cpu),
        )


# ---- alone, over a grid of widths ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Probe:
    """One layer by itself, at any widths.

    Attributes:
        node: the layer's node.
        x, w: full sizes of what it reads and of its weight.
        widths: weight axis -> full width, for the axes that are swept.
        tied: whether input and output channels are the same (depthwise).
        dtype: of both.
        opset: of the model.
    """

    node: onnx.NodeProto
    x: tuple[int, ...]
    w: tuple[int, ...]
    widths: Mapping[int, int]
    tied: bool
    dtype: np.dtype
    opset: int

    @classmethod
    def of(cls, graph: Graph, layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> _Probe | Refusal:
        """A refusal for what is taken to be linear: grouped convs, weights on the left, products of activations."""
        node, product, op = graph.nodes[layer.key], layer.operator.product, layer.op
        if product is None or not layer.operator.layer:
            return refuse(layer.key, "unfit", why=layer.operator.unfit)
        if layer.weight is None:
            return refuse(layer.key, "two activations" if product.either else "computed", op=op)
        if layer.weight[1] != product.weight or product.data:
            return refuse(layer.key, "on the left", op=op)
        weight = graph.value(layer.weight)
        if weight is None or weight.dtype not in (np.float32, np.float16):
            return refuse(layer.key, "integers", op=op, dtype=None if weight is None else weight.dtype)
        if node.input[0] not in shapes or 0 in shapes[node.input[0]]:
            return refuse(layer.key, "unseen", op=op)
        x, w = shapes[node.input[0]], weight.shape
        group = attr(node, "group", 1)
        tied = group > 1 and not product.transposed and w[1] == 1 and group == x[1] == w[0]
        if group > 1 and not tied:
            return refuse(layer.key, "grouped", op=op, groups=group)
        if product.transposed:
            return refuse(layer.key, "transposed", op=op)
        if not product.kernel and len(w) != 2:
            return refuse(layer.key, "stacked", op=op, rank=len(w))
        out, _ = weight_axes(node)
        axes = {0: w[0]} if tied else {out: w[out], 1 - out: w[1 - out]}
        return cls(node, x, w, {a: n for a, n in axes.items() if n > 1}, tied, weight.dtype, graph.opset)

    @property
    def signature(self) -> str:
        """What layers that take the same time have in common."""
        return f"{signature_of(self.node, self.x, self.w, self.dtype, but=('group',))} {self.tied}"

    def entries(self, engine: Engine) -> set[str]:
        """What `sweeps` finds."""
        extra = {MIXED: len(self.widths) == 2, ALONE: self.widths and not engine.on_cpu}
        return {*map(str, self.widths), *(name for name, there in extra.items() if there)}

    def sweeps(self, engine: Engine) -> dict[str, list[list[float]]]:
        """Axis -> [shares, relative times] with the other axis full; κ; by the clock also what the full layer takes."""
        found, full = {}, {}
        for axis, width in self.widths.items():
            counts = grid(width, POINTS if engine.on_cpu else POINTS_BY_CLOCK)
            times = np.array([self.time({axis: n}, engine) for n in counts])
            full[axis] = float(times[-1])
            # a width slower than a larger one may be noise, or a cliff: both are kept as they were seen
            found[str(axis)] = [[n / width for n in counts], [float(t) for t in times / times[-1]]]
        if len(self.widths) == 2:
            found[MIXED] = self._mixed(found, full, engine)
        if full and not engine.on_cpu:
            found[ALONE] = [[1.0], [float(np.mean(list(full.values())))]]
        return found

    def _mixed(
        self, found: Mapping[str, list[list[float]]], full: Mapping[int, float], engine: Engine
    ) -> list[list[float]]:
        """[shares of both axes, [κ]], from a point where both are about a third."""
        at = {axis: _third(found[str(axis)][0]) for axis in self.widths}
        shares = [found[str(axis)][0][k] for axis, k in at.items()]
        f, g = (found[str(axis)][1][k] for axis, k in at.items())
        counts = {axis: round(self.widths[axis] * share) for (axis, _), share in zip(at.items(), shares, strict=True)}
        if min(1 - f, 1 - g) < 0.1:
            return [shares, [1.0]]  # one of the axes hardly counts: nothing to mix
        here = self.time(counts, engine) / float(np.mean(list(full.values())))
        return [shares, [float(np.clip((here - f - g + 1) / ((1 - f) * (1 - g)), 0.0, 2.0))]]

    def time(self, counts: Mapping[int, int], engine: Engine) -> float:
        """What the layer takes at these widths, in ms; axes that are not named have their full ones."""
        model, feeds = self._model(counts)
        if not engine.on_cpu:
            return engine.each_ms(model, feeds, COPIES, POINT_MS, (6, 40))
        events, _ = profiled(model, feeds, engine, POINT_MS, (6, 40))
        line = operators.of(self.node)
        own = [ms for ms, op in events.values() if operators.named(op.removeprefix("Fused")).name == line.name]
        ms = float(np.median(own)) if own else sum(ms for ms, _ in events.values()) / COPIES
        return max(ms - profiler_ms(engine), ms / 10, 1e-4)

    def _model(self, counts: Mapping[int, int]) -> tuple[onnx.ModelProto, Feeds]:
        x, w = list(self.x), list(self.w)
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        del node.input[:]
        for axis, count in counts.items():
            w[axis] = count
            if self.tied:
                x[1] = count
                for a in node.attribute:
                    if a.name == "group":
                        a.i = count
            elif axis != weight_axes(self.node)[0]:
                x[self._contracted()] = count
        rng = np.random.default_rng(0)
        value = rng.standard_normal(w).astype(self.dtype)
        read = rng.standard_normal(x).astype(self.dtype)
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        nodes, outputs = [], []
        for k in range(COPIES):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input.extend(["x", f"w{k}"])
            copy.output[0] = copy.name = f"y{k}"
            nodes.append(copy)
            outputs.append(helper.make_tensor_value_info(f"y{k}", kind, None))
        body = helper.make_graph(
            nodes,
            "probe",
            [helper.make_tensor_value_info("x", kind, x)],
            outputs,
            [numpy_helper.from_array(value, f"w{k}") for k in range(COPIES)],
        )
        return helper.make_model(body, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8), {"x": read}

    def _contracted(self) -> int:
        """The axis of what is read that the weight contracts."""
        channels = operators.of(self.node).channels or 0
        return 0 if attr(self.node, "transA", 0) else channels % len(self.x)


def _third(shares: list[float]) -> int:
    """The point nearest to a third."""
    return int(np.argmin(np.abs(np.array(shares) - 1 / 3)))


def grid(full: int, points: int = POINTS) -> list[int]:
    """Widths to time: multiples of 4, 8 or 16, thinned to so many, and the full width."""
    step = 4 if full < 128 else 8 if full < 256 else 16
    while full / step > points:
        step *= 2
    return sorted({*range(step, full, step), full, *([1, 2] if full < 8 else [])} & set(range(1, full + 1)))
