"""Two networks, run side by side in pieces: the original and the one being repaired.

Forward repairs look at layer k of the pruned network after layers 1..k-1 were repaired. Running the whole
network once per layer would cost depth² ; here each network is executed once, segment by segment, and what a
later segment needs is kept for all samples (in memory up to a limit, on disk beyond it). Weights may change
between segments, which is the point.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator, Sequence
from copy import copy

import numpy as np
import onnx
from onnx import helper

from onnxprune.graph.model import Graph
from onnxprune.numerics import on_disk
from onnxprune.protobuf.nodes import captured
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.weights import add_external_weights

MEMORY = 1 << 30
"""Bytes of live activations kept in memory per network at most; the rest is memory-mapped."""
AHEAD = 1 << 25
"""Bytes of tensors that are wanted later, fetched along with the one that is wanted now."""
SMALL = 1 << 18
"""Bytes that a segment reads at once, up to which it runs on one thread unless told otherwise."""


FEW_RUNS = 2
"""Batches up to which packing a segment's weights takes longer than it saves."""


class Runner:
    """Executes a graph piece by piece on all samples.

    Args:
        graph: the network; its constants are read when a segment runs, edits included.
        batches: the samples, as lists of feeds.
        threads: ORT threads.
        ahead: the tensors that will be asked for, in order: longer pieces are run where no edit comes in between.
        edits: the nodes whose constants will be edited right before they run.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[Feeds],
        *,
        threads: int | None = None,
        ahead: Sequence[str] = (),
        edits: Sequence[str] = (),
    ):
        self.graph, self.threads = graph, threads
        self.keys = [k for k, n in graph.nodes.items() if any(graph.constant(o) is None for o in n.output if o)]
        self.index = {k: i for i, k in enumerate(self.keys)}
        self.position = 0
        self.live: dict[str, list[np.ndarray]] = {name: [np.asarray(b[name]) for b in batches] for name in graph.inputs}
        self.count = len(batches)
        self.last_use: dict[str, int] = {}
        for i, key in enumerate(self.keys):
            node = graph.nodes[key]
            for name in (*node.input, *captured(node)):
                self.last_use[name] = i
        for name in graph.outputs:
            self.last_use[name] = len(self.keys)
        self.made_at = {o: i for i, k in enumerate(self.keys) for o in graph.nodes[k].output if o}
        self.held, self.most = 0, min(MEMORY, on_disk.share_of_room())
        self.ahead = sorted({t for t in ahead if t in self.made_at}, key=self.made_at.__getitem__)
        self.edits = sorted(self.index[key] for key in edits)
        self.stride = 1

    def until(self, tensor: str) -> list[np.ndarray]:
        """Run up to the node that makes `tensor`. Returns its values, one array a batch."""
        if tensor not in self.live:
            wanted = self._together(tensor)
            self._run(self.made_at[wanted[-1]] + 1, wanted)
            fetched = sum(_bytes(v) for name in wanted for v in self.live[name])
            self.stride = max(1, min(2 * len(wanted), int(len(wanted) * AHEAD / max(1, fetched))))
        return self.live[tensor]

    def _together(self, tensor: str) -> list[str]:
        """`tensor` and those that will be asked for next, as many as the last ones left room for."""
        at = self.made_at.__getitem__
        first, after = (side(self.ahead, at(tensor), key=at) for side in (bisect.bisect_left, bisect.bisect_right))
        following = bisect.bisect_right(self.edits, at(tensor))
        edit = self.edits[following : following + 1]
        until = bisect.bisect_left(self.ahead, edit[0], key=at) if edit else len(self.ahead)
        last = [tensor, *self.ahead[after : min(until, after + self.stride - 1)]][-1]
        stop = bisect.bisect_right(self.ahead, at(last), key=at)
        # From `first` on: another output of the same node would be gone later.
        return [tensor, *(t for t in self.ahead[first:stop] if t != tensor)]

    def before(self, key: str) -> None:
        """Run everything that comes before a node, in order."""
        if self.index[key] > self.position:
            self._run(self.index[key], [])

    def join(self, batches: Sequence[Feeds]) -> None:
        """More samples take part from here on: what comes before is run on them at once, and of what it makes only what
        is read later is kept."""
        names = [name for name in self.live if name in self.made_at]
        fed = {name: [np.asarray(b[name]) for b in batches] for name in self.graph.inputs}
        joined = copy(self)
        joined.live, joined.count = fed, len(batches)
        results: dict[str, list[np.ndarray]] = {name: [] for name in names}
        if names:
            for values in joined._results(self.keys[: self.position], names):
                for name, value in zip(names, values, strict=True):
                    results[name].append(self._keep(value))
        for name, values in self.live.items():
            values.extend(results[name] if name in results else fed[name])
        self.count += len(batches)

    def fork(self, graph: Graph | None = None) -> Runner:
        """A runner that goes on from here, while this one stays, or the other way round; of a graph that is the same as
        far as this one has run (None: of the same graph)."""
        if graph is None:
            other = copy(self)
            other.last_use = dict(self.last_use)
        else:
            other = Runner(graph, [], threads=self.threads)
        assert other.keys[: self.position] == self.keys[: self.position]
        other.live, other.count = {name: list(values) for name, values in self.live.items()}, self.count
        other.position, other.held = self.position, self.held
        return other

    def outputs(self, names: Sequence[str] | None = None) -> list[list[np.ndarray]]:
        """Run to the end. Returns the graph's outputs, a list a batch; or the tensors `names`, of which those that this
        one has passed already must be kept (`keep`)."""
        names = self.graph.outputs if names is None else names
        self.keep(names)
        if self.position < len(self.keys):
            self._run(len(self.keys), names)
        fixed = {name: self.graph.constant(name) for name in names if name not in self.live}
        return [
            [value if (value := fixed.get(name)) is not None else self.live[name][b] for name in names]
            for b in range(self.count)
        ]

    def keep(self, names: Sequence[str]) -> None:
        """Keep these tensors to the end."""
        self.last_use |= dict.fromkeys(names, len(self.keys))

    def hold(self, tensor: str, key: str) -> None:
        """Keep a tensor until the node `key` has run."""
        self.last_use[tensor] = max(self.last_use.get(tensor, -1), self.index[key] + 1)

    def hold_for(self, tensors: Sequence[str]) -> None:
        """Keep each of some tensors, which will be asked for in that order, until its turn comes: one before it may
        reach further."""
        furthest = -1
        for tensor in tensors:
            furthest = max(furthest, self.made_at.get(tensor, -1))
            if furthest >= 0:
                self.hold(tensor, self.keys[furthest])

    def refresh(self, key: str, tensor: str) -> None:
        """Make `tensor` anew, from the inputs of the node `key` on, after its weights have changed."""
        first, stop = self.index[key], self.made_at[tensor] + 1
        keys = [k for k in self._between(first, stop, tensor)]
        for b, values in enumerate(self._results(keys, [tensor])):
            self.live[tensor][b][...] = values[0]
            on_disk.release((self.live[tensor][b],))

    def _between(self, first: int, stop: int, tensor: str) -> list[str]:
        """The nodes among first..stop that `tensor` is made by, from what is live on."""
        needed, found = {tensor}, []
        for key in reversed(self.keys[first:stop]):
            if needed & set(self.graph.nodes[key].output):
                found.append(key)
                needed |= {i for i in self.graph.nodes[key].input if key != self.keys[first]}
        return found[::-1]

    def _results(self, keys: Sequence[str], outputs: Sequence[str]) -> Iterator[list[np.ndarray]]:
        """Run some nodes on every batch."""
        inside = {o for k in keys for o in self.graph.nodes[k].output if o}
        model, inputs, weights = self._segment(keys, inside, outputs)
        # making the threads of a session, or improving its graph, takes longer than a small segment
        small = sum(_bytes(self.live[i][0]) for i in inputs) <= SMALL
        threads = 1 if small and self.threads is None else self.threads
        session = sessions.open_session(
            model,
            threads=threads,
            optimise=not small,
            pack=False if small or self.count <= FEW_RUNS else None,
            name="segment",
            weights=weights,
        )
        for b in range(self.count):
            feeds = {i: self.live[i][b] for i in inputs}
            yield session.run(feeds, outputs)
            on_disk.release(feeds.values())

    def _run(self, stop: int, wanted: Sequence[str]) -> None:
        keys, asked = self.keys[self.position : stop], set(wanted)
        inside = {o for k in keys for o in self.graph.nodes[k].output if o}
        outputs = [o for o in inside if self.last_use.get(o, -1) >= stop or o in asked]
        order = {name: i for i, name in enumerate(o for k in keys for o in self.graph.nodes[k].output)}
        outputs.sort(key=order.__getitem__)
        results: dict[str, list[np.ndarray]] = {o: [] for o in outputs}
        for values in self._results(keys, outputs) if outputs else ():  # none: nobody reads what they make
            for o, v in zip(outputs, values, strict=True):
                results[o].append(self._keep(v))
        self.live.update(results)
        self.position = stop
        for name in [n for n in self.live if self.last_use.get(n, -1) < stop and n not in asked]:
            for v in self.live.pop(name):
                self.held -= 0 if isinstance(v, np.memmap) or name not in self.made_at else _bytes(v)

    def _keep(self, value: np.ndarray) -> np.ndarray:
        if isinstance(value, list) or self.held + value.nbytes <= self.most or value.nbytes < on_disk.SMALL:
            self.held += _bytes(value)
            return value
        return on_disk.copied(value)

    def _segment(
        self, keys: Sequence[str], inside: set[str], outputs: Sequence[str]
    ) -> tuple[onnx.ModelProto, list[str], dict[str, np.ndarray]]:
        """A model of these nodes alone, with the constants as they are now; its inputs, and the weights beside it."""
        graph, nodes, constants = self.graph, [], {}
        inputs: list[str] = []
        for key in keys:
            node = onnx.NodeProto()
            node.CopyFrom(graph.nodes[key])
            for i, name in enumerate(graph.nodes[key].input):
                value = graph.value((key, i)) if name else None
                if value is not None:
                    own = name if not graph.edited((key, i)) else f"{key}::{i}"
                    constants[own] = value
                    node.input[i] = own
                elif name and name not in inside and name not in inputs:
                    inputs.append(name)
            for name in captured(node):
                value = graph.constant(name)
                if value is not None:
                    constants[name] = value
                elif name not in inside and name not in inputs:
                    inputs.append(name)
            nodes.append(node)
        ports = [_port(name, self.live[name]) for name in inputs]
        body = helper.make_graph(nodes, "segment", ports, [helper.make_empty_tensor_value_info(o) for o in outputs])
        source = graph.model
        model = helper.make_model(body, opset_imports=source.opset_import, ir_version=source.ir_version)
        return model, inputs, add_external_weights(model, constants)  # last: every message put into another is copied


class Stops:
    """A network run up to places in it, by way of the same stops whatever was asked for before: what ONNX Runtime
    makes one of depends on where a piece ends, and with that the last bits of what comes out.

    Args:
        graph: the network, without edits.
        batches: the samples, as lists of feeds.
        stops: the nodes before which it stops, in any order.
        kept: tensors that are asked for at the end.
        threads: ORT threads.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[Feeds],
        stops: Collection[str],
        kept: Sequence[str] = (),
        *,
        threads: int | None = None,
    ) -> None:
        self.graph, self.batches, self.kept, self.threads = graph, batches, kept, threads
        self._runner = self._start()
        self._order = self._runner.index
        self.stops = sorted((key for key in set(stops) if key in self._order), key=self._order.__getitem__)

    def at(self, key: str) -> Runner:
        """A runner that stands before a node. To be called in one thread at a time; quickest in the order in which the
        nodes run."""
        ahead = [stop for stop in self.stops if self._order[stop] <= self._order[key]]
        if self._runner.position > (self._order[ahead[-1]] if ahead else 0):
            self._runner = self._start()
        for stop in ahead:
            self._runner.before(stop)
        found = self._runner.fork()
        found.before(key)
        return found

    def _start(self) -> Runner:
        runner = Runner(self.graph, self.batches, threads=self.threads)
        runner.keep(self.kept)
        return runner


def _bytes(value: np.ndarray | list[np.ndarray]) -> int:
    """The size of a tensor or of a sequence of some."""
    return sum(v.nbytes for v in value) if isinstance(value, list) else value.nbytes


def _port(name: str, batches: Sequence[np.ndarray]) -> onnx.ValueInfoProto:
    """A graph input as it is fed; a size that differs between batches has a name, the same for the same sizes.

    With sizes left open, ONNX Runtime up to 1.31 compares every tensor with every other when it plans memory.
    """
    first: np.ndarray | list[np.ndarray] = batches[0]
    if isinstance(first, list):
        return helper.make_tensor_sequence_value_info(name, helper.np_dtype_to_tensor_dtype(first[0].dtype), None)
    dims: list[int | str] = []
    for sizes in zip(*(value.shape for value in batches), strict=True):
        dims.append(sizes[0] if len(set(sizes)) == 1 else "_".join(map(str, sizes)))
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(batches[0].dtype), dims)
