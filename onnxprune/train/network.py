"""An ONNX model as a torch module: the same nodes in the same order, its float constants as parameters.

`Network` walks the graph as `graph.model.Graph` shows it, so constants behind Identity, Transpose or Constant nodes
are found, and a constant is a parameter for each use: a vector that an exporter merged between two nodes is learned
twice, while a weight that several layers share stays one. Sizes are computed in numpy, so any batch and any image size
runs. `learned` gives the graph with the parameters in it, `to_onnx` the file; nothing else in it changes.

All floating point is float32 in here, whatever the file stores (float16 has too little range for gradients, and
torch mixes no types): what goes back into the file is rounded to its type. Where a graph takes batches of one size
alone, as one that was exported with a fixed batch may, it is run in such batches, one behind the other.

What it does not know: which channels are coupled, what is trained for, and on what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph import evaluate, operators
from onnxprune.graph.model import Graph, Use
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, attributes
from onnxprune.train.operators import Refused, operator_of

Value: TypeAlias = "Tensor | np.ndarray"
BATCH_NORM = ("frozen", "batch")
"""What BatchNormalization does in `train()`: use the stored statistics, or the batch's (and learn the stored)."""


@dataclass(frozen=True)
class Step:
    """One node, ready to run.

    Attributes:
        node: for messages.
        attrs: its attributes, with `opset`, `op_type` and the number of `outputs`.
        reads: the operands: the name of a value, a `Use` of a constant, or "" where an optional one is left out.
        writes: names of its outputs.
        forget: values that no later node reads.
        norm: the frozen BatchNormalization behind it, which its weight and bias take over; None: there is none.
    """

    node: onnx.NodeProto
    attrs: dict[str, Any]
    reads: tuple[str | Use, ...]
    writes: tuple[str, ...]
    forget: tuple[str, ...]
    norm: Step | None = None


class Network(nn.Module):
    """The model as a module.

    Args:
        graph: the model's, without edits; left so.
        batch_norm: one of `BATCH_NORM`.
        takes: samples that the graph takes at a time, where it takes no others, see `only_batch`; None: any number.

    Attributes:
        names: use -> name of its parameter.
        moving: use -> name of its buffer: the statistics of BatchNormalization, which are written back too.
        graph: the model's graph.

    Raises:
        UnsupportedError: an operator that torch has no table entry for.
    """

    def __init__(self, graph: Graph, *, batch_norm: str = "frozen", takes: int | None = None):
        super().__init__()
        self.graph = graph
        self.batch_norm = batch_norm
        self.takes = takes
        self.names: dict[Use, str] = {}
        self.moving: dict[Use, str] = {}
        self._constants: dict[Use, np.ndarray] = {}
        self._tensors: dict[tuple[Use, str], Tensor] = {}
        self._steps: dict[tuple[str, ...], list[Step]] = {}
        owners: dict[tuple, str] = {}
        for key, node in self.graph.nodes.items():
            if self.graph.constant(node.output[0]) is not None:
                continue
            for i, name in enumerate(node.input):
                value = self.graph.constant(name) if name else None
                if value is None:
                    continue
                use = (key, i)
                if _is_learned(node, i, value):
                    self.names[use] = self._enter(use, value, owners, learned=True)
                elif operators.of(node).stored_statistics and i in (3, 4):
                    self.moving[use] = self._enter(use, value, owners, learned=False)
                else:
                    self._constants[use] = value

    def _enter(self, use: Use, value: np.ndarray, owners: dict[tuple, str], *, learned: bool) -> str:
        """The name of the parameter or buffer for a use, made where it is the first."""
        tensor = self.graph.nodes[use[0]].input[use[1]]
        owner = self._owner(use, value)
        if owner in owners:
            return owners[owner]
        stem = tensor.replace(".", "/")  # torch takes a dot for a submodule
        taken = {*self._parameters, *self._buffers, *self.__dict__, *dir(type(self))}
        name = stem if stem not in taken else f"{stem}@{use[0].replace('.', '/')}:{use[1]}"
        held = torch.from_numpy(np.array(value, np.float32))
        if learned:
            self.register_parameter(name, nn.Parameter(held))
        else:
            self.register_buffer(name, held)
        owners[owner] = name
        return name

    def _owner(self, use: Use, value: np.ndarray) -> tuple:
        """What a parameter belongs to: a weight to its name; a vector to its node, or to the weight beside it."""
        key, i = use
        node = self.graph.nodes[key]
        if value.ndim > 1:
            return (node.input[i],)
        beside = node.input[1] if i == 2 and len(node.input) > 1 else ""
        weight = self.graph.constant(beside) if beside else None
        return (node.input[i], i, key if weight is None or weight.ndim < 2 else beside)

    # -- running -----------------------------------------------------------------------------------------------

    def forward(self, feeds: Mapping[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The wanted tensors (default: the outputs) by name, for the inputs by name.

        Raises:
            UnsupportedError: a node that cannot be run in torch; the message names it.
            UsageError: so many samples are not a number of whole batches, where the graph takes those alone.
        """
        targets = tuple(self.graph.outputs if wanted is None else wanted)
        count, takes = len(next(iter(feeds.values()))), self.takes
        if takes is None or count == takes:
            return self._walk(feeds, targets)
        if count % takes:
            raise UsageError(f"the model takes batches of {takes} alone, and was given {count} samples to train on")
        starts = range(0, count, takes)
        parts = [self._walk({k: v[i : i + takes] for k, v in feeds.items()}, targets) for i in starts]
        return {name: torch.cat([torch.atleast_1d(part[name]) for part in parts]) for name in targets}

    def _walk(self, feeds: Mapping[str, Tensor], targets: tuple[str, ...]) -> dict[str, Tensor]:
        """The tensors of one batch."""
        values: dict[str, Value] = dict(feeds)
        device = next(iter(feeds.values())).device
        found: dict[str, Value] = {}
        for step in self._plan(targets):
            try:
                results = self._run(step, values, device)
            except Refused as error:
                raise UnsupportedError(
                    f"{_named(step.node)} with {error} cannot be trained through; {REMEDY}"
                ) from error
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
                if "memory" in str(error):
                    raise
                line = str(error).split("\n")[0][:160]
                raise UnsupportedError(f"{_named(step.node)} does not run in torch: {line}; {REMEDY}") from error
            values.update(zip(step.writes, results, strict=False))
            for name in step.forget:
                if name in values:
                    if name in targets:
                        found[name] = values[name]
                    del values[name]
        return {name: _tensor(found.get(name, values.get(name)), device) for name in targets}  # type: ignore[arg-type]

    def _run(self, step: Step, values: Mapping[str, Value], device: torch.device) -> Sequence[Value]:
        operands = [self._operand(r, values) for r in step.reads]
        if all(v is None or isinstance(v, np.ndarray) for v in operands) and evaluate.foldable(step.node):
            done = evaluate.evaluate(step.node, operands, self.graph.opset)  # type: ignore[arg-type]
            if done is not None:
                return done
        if operators.of(step.node).measures:
            assert operands[0] is not None
            shape = np.array(operands[0].shape, np.int64)
            whole = step.node.op_type == "Size"
            return [shape.prod() if whole else shape[slice(step.attrs.get("start"), step.attrs.get("end"))]]
        operator = operator_of(step.node)
        assert operator is not None
        args: list[Value | None] = []
        for i, (value, read) in enumerate(zip(operands, step.reads, strict=True)):
            if value is None:
                args.append(None)
            elif i in operator.host:
                args.append(value if isinstance(value, np.ndarray) else value.detach().cpu().numpy())
            elif isinstance(value, np.ndarray):
                args.append(self._moved(read, value, device))
            else:
                args.append(value)
        attrs = step.attrs
        if operators.of(step.node).stored_statistics:
            attrs = {**attrs, "training": self.training and self.batch_norm == "batch"}
        if step.norm is not None:
            args = self._normalized(step.norm, args, device)
        result = operator.run(attrs, *args)
        return result if isinstance(result, tuple) else (result,)

    def _normalized(self, norm: Step, args: Sequence[Any], device: torch.device) -> list[Any]:
        """A convolution's operands, with what stands behind it in weight and bias: one pass over the maps less."""
        scale, shift, mean, var = (_tensor(self._operand(r, {}), device) for r in norm.reads[1:5])  # type: ignore[arg-type]
        slope = scale * torch.rsqrt(var + norm.attrs.get("epsilon", 1e-5))
        x, w, b = *args[:2], args[2] if len(args) > 2 else None
        shift = shift - slope * (mean if b is None else mean - b)
        return [x, w * slope.reshape(-1, *[1] * (w.ndim - 1)), shift]

    def _operand(self, read: str | Use, values: Mapping[str, Value]) -> Value | None:
        if isinstance(read, str):
            return values[read] if read else None
        name = self.names.get(read) or self.moving.get(read)
        return self._constants[read] if name is None else getattr(self, name)

    def _moved(self, read: str | Use, value: np.ndarray, device: torch.device) -> Tensor:
        """A constant on the device, moved once."""
        if isinstance(read, str):
            return _tensor(value, device)
        at = (read, str(device))
        if at not in self._tensors:
            self._tensors[at] = _tensor(value, device)
        return self._tensors[at]

    def _plan(self, targets: tuple[str, ...]) -> list[Step]:
        """The nodes that the targets need, in order."""
        if targets in self._steps:
            return self._steps[targets]
        needed, chosen = set(targets), []
        for key, node in reversed(self.graph.nodes.items()):
            if needed.isdisjoint(node.output) or self.graph.constant(node.output[0]) is not None:
                continue
            chosen.append((key, node))
            needed.update(i for i in node.input if i)
        steps: list[Step] = []
        seen: set[str] = set()
        for key, node in chosen:  # from the last to the first: what is seen first is read last
            if operator_of(node) is None and not (node.domain in DEFAULT_DOMAINS and evaluate.foldable(node)):
                raise UnsupportedError(f"{_named(node)} cannot be trained through: no such operator; {REMEDY}")
            reads: list[str | Use] = []
            for i, name in enumerate(node.input):
                constant = bool(name) and self.graph.constant(name) is not None
                reads.append((key, i) if constant else name)
            attrs = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes(node).items()}
            attrs |= {"opset": self.graph.opset, "op_type": node.op_type, "outputs": len(node.output)}
            own = {*filter(None, node.output), *(r for r in reads if isinstance(r, str) and r)}
            steps.append(Step(node, attrs, tuple(reads), tuple(node.output), tuple(own - seen)))
            seen |= own
        self._steps[targets] = _folded(steps[::-1], targets) if self.batch_norm == "frozen" else steps[::-1]
        return self._steps[targets]

    # -- the way back --------------------------------------------------------------------------------------------

    def learned(self) -> Graph:
        """The graph with the parameters (and learned BN statistics) as its edits."""
        graph = self.graph.fork()
        for use, name in (*self.names.items(), *self.moving.items()):
            old = graph.value(use)
            assert old is not None
            new = _stored(getattr(self, name).detach().to("cpu", torch.float32).contiguous().numpy(), old.dtype)
            if new.tobytes() != old.tobytes():
                graph.set_constant(use, new.copy())
        return graph

    def to_onnx(self) -> onnx.ModelProto:
        """A clone of the model with the parameters (and learned BN statistics) in it."""
        return self.learned().export()


def _folded(steps: Sequence[Step], targets: Collection[str]) -> list[Step]:
    """The steps, with every BatchNormalization taken over by the convolution that it alone reads."""
    readers = Counter(r for step in steps for r in step.reads if isinstance(r, str))
    made = {step.writes[0]: k for k, step in enumerate(steps)}
    out: list[Step | None] = list(steps)
    for k, norm in enumerate(steps):
        between = norm.reads[0] if operators.of(norm.node).stored_statistics else None
        at = made.get(between) if isinstance(between, str) else None
        if at is None or between in targets or readers[between] > 1:  # type: ignore[index]
            continue
        conv = steps[at]
        constants = [*(r for r in conv.reads[1:] if r), *norm.reads[1:]]
        if conv.node.op_type == "Conv" and not any(isinstance(r, str) for r in constants):
            forget = tuple({*conv.forget, *norm.forget} - {between})
            out[at], out[k] = replace(conv, writes=norm.writes[:1], forget=forget, norm=norm), None
    return [step for step in out if step is not None]


REMEDY = "train another part, or leave this model to --repair refit"


def _named(node: onnx.NodeProto) -> str:
    domain = f"{node.domain}." if node.domain not in DEFAULT_DOMAINS else ""
    return f"node {node.name or node.output[0]!r} ({domain}{node.op_type})"


def is_float(dtype: np.dtype) -> bool:
    """Whether it is a type of floating point, bfloat16 (which numpy does not know) among them."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _stored(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values in float32 in the type of the file; what is beyond its range becomes its largest number."""
    if dtype == np.float16:
        most = float(np.finfo(np.float16).max)
        value = np.clip(value, -most, most)
    return value.astype(dtype)


def _tensor(value: Value, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value
    kind = np.float32 if is_float(value.dtype) else value.dtype
    return torch.from_numpy(np.array(value, kind, order="C")).to(device)  # a copy: folded constants are read-only


def _is_learned(node: onnx.NodeProto, i: int, value: np.ndarray) -> bool:
    line = operators.of(node)
    if i not in line.learned or not is_float(value.dtype):
        return False
    if not line.arithmetic:
        return True
    # only a vector along one axis is learned (a bias, a scale): a scalar spells an activation function
    return value.size > 1 and value.size == max(value.shape)


def as_feeds(feeds: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Samples as tensors, floating point in float32; images in channels-last, the layout that convolutions like."""
    found = {}
    for name, value in feeds.items():
        held = np.asarray(value, np.float32 if is_float(value.dtype) else value.dtype)
        tensor = torch.from_numpy(np.ascontiguousarray(held)).to(device)
        found[name] = tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
    return found


def channels_last(network: Network) -> Network:
    """The network with its kernels in channels-last, in place."""
    for p in network.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return network


ALIKE = 1e-3
"""Difference of outputs, relative to the largest, up to which two runs say the same."""


@torch.no_grad()
def only_batch(network: Network, feeds: Mapping[str, np.ndarray]) -> int | None:
    """How many samples a network takes at a time, where it takes no others; None: any number.

    It is run on two batches, and on both as one: a graph that spells its batch (a Reshape to `1, -1`, for one) then
    fails, or mixes the samples, which no size of a tensor shows.

    Args:
        network: the original, on the CPU or a GPU.
        feeds: one batch that the model takes.
    """
    own = len(next(iter(feeds.values())))
    if any(v.ndim == 0 or len(v) != own for v in feeds.values()):
        return own
    other = {name: np.roll(value, 1, axis=-1) for name, value in feeds.items()}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    first, second = (network(as_feeds(f, device)) for f in (feeds, other))
    try:
        both = network(as_feeds({k: np.concatenate([feeds[k], other[k]]) for k in feeds}, device))
    except UnsupportedError:
        return own
    same = all(_alike(both[k], torch.cat([first[k], second[k]])) for k in first if first[k].ndim)
    return None if same and all(v.ndim for v in first.values()) else own


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not b.numel():
        return True
    a, b = a.double(), b.double()
    return torch.allclose(a, b, rtol=0, atol=ALIKE * float(b.abs().nan_to_num().max()), equal_nan=True)
