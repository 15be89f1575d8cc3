"""Multiply-accumulates counted a second time: each file and what is made of it, run node by node.

    python benchmarks/count_macs.py FILE.onnx ... [--fill hydrate.py] [--ratio R] [--input-shape NAME=1,3,8,8]

Every node is run alone in ONNX Runtime on what the nodes before it wrote, bodies of If, Loop and Scan included, and its
multiply-accumulates are worked out from the arrays that went in and came out. Nodes that read nothing but constants do
none in a run: ONNX Runtime works them out once, when it loads the model. Nothing of that knows the tool, whose
figures stand beside it: of the original, of the pruned file and of the share that is gone. The exit code is 1 where the
two differ by more than 0.1%, or where a file fails in any way but by being declined. `--fill` names a file whose
`hydrate(path, out)` writes a copy with weights, for files that are kept without them. `--input-shape` is for the files
whose input of that name takes it.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import api
from onnxprune.errors import PruneError
from onnxprune.samples.user_code import load_function

LIMIT = 1e-3
"""Largest relative difference that passes."""
HEAD = ("file", "MACs", "counted", "pruned", "counted", "removed", "counted", "worst or why not")
CONSTANT_BYTES = 1 << 16
"""Up to which an operand is given as a constant: some kernels want that."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--fill", type=Path, metavar="FILE.py")
    parser.add_argument("--ratio", type=float, default=0.5, metavar="R")
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME=SIZES")
    args = parser.parse_args()
    begin, rows, failed = time.perf_counter(), [], 0
    fill = load_function(f"{args.fill}:hydrate")[0] if args.fill else None
    given = dict(_shape(text) for text in args.input_shape)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        for path in args.files:
            source = path
            if fill:
                source = Path(folder, "model.onnx")
                fill(str(path), str(source))
            try:
                rows.append((path.name, *compare(source, args.ratio, given)))
                failed += rows[-1][-1].startswith("DIFFERS")
            except PruneError as error:
                rows.append((path.name, *[""] * 6, f"declined: {error}"[:120]))
            except Exception as error:
                failed += 1
                rows.append((path.name, *[""] * 6, f"FAILED: {type(error).__name__}: {error}"[:200]))
            common.say(" ".join(filter(None, rows[-1])))
    print(common.table(HEAD, rows))
    print(f"\n{len(rows)} files, {failed} failed or differ. {common.footer(time.perf_counter() - begin)}")
    return 1 if failed else 0


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    return name, tuple(map(int, sizes.split(",")))


def compare(source: Path, ratio: float, given: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """What the tool says of one file, beside what is counted here; the original alone where nothing can be pruned."""
    ports = onnx.load(source, load_external_data=False).graph.input
    shapes = {port.name: given[port.name] for port in ports if port.name in given and _fits(port, given[port.name])}
    subject = onnxprune.open_model(source, input_shapes=shapes or None)
    said, counted = [subject.cost().macs], [count(onnx.load(source), subject.feeds)]
    why = ""
    try:
        settings = onnxprune.Settings(best_effort=True, repair="none")
        result = api.plan_and_apply(subject, onnxprune.Ratio(ratio), settings)
        said += [result.after.macs, result.macs_removed]
        counted.append(count(result.model, subject.feeds))
        counted.append(1 - counted[1] / counted[0])
    except PruneError as error:
        why = f", not pruned: {error}"
    worst = max(abs(a - b) / max(abs(b), 1e-12) if max(a, b) else 0.0 for a, b in zip(said, counted, strict=True))
    words = f"{'DIFFERS by ' if worst > LIMIT else ''}{worst:.4%}{why}"[:120]
    cells = [text for k, pair in enumerate(zip(said, counted, strict=True)) for text in _cells(k, pair)]
    return (*cells, *[""] * (6 - len(cells)), words)


def _fits(port: onnx.ValueInfoProto, sizes: Sequence[int]) -> bool:
    dims = port.type.tensor_type.shape.dim
    return len(dims) == len(sizes) and all(d.dim_value in (0, n) for d, n in zip(dims, sizes, strict=True))


def _cells(k: int, pair: tuple[float, float]) -> list[str]:
    return [f"{v:.3%}" if k == 2 else f"{v:.0f}" for v in pair]


# ---- a network, node by node -------------------------------------------------------------------------------------


def count(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> float:
    """Multiply-accumulates of one run."""
    return Run(model).graph(model.graph, dict(feeds), set(feeds))[1]


class Run:
    """Runs graphs and bodies of one model."""

    def __init__(self, model: onnx.ModelProto):
        self.model = model

    def graph(
        self, graph: onnx.GraphProto, values: dict[str, Any], fed: set[str] | None = None
    ) -> tuple[list[Any], float]:
        """(its outputs, multiply-accumulates); `values`: what its nodes can read, which is added to; `fed`: what of
        that is no constant, where not all counts."""
        values |= {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for t in graph.sparse_initializer:
            values[t.values.name] = _dense(t)
        last = {name: k for k, node in enumerate(graph.node) for name in _read(node)}
        kept, total = {o.name for o in graph.output}, 0.0
        for k, node in enumerate(graph.node):
            made, macs = self.node(node, values)
            if fed is None or not fed.isdisjoint(_read(node)):
                total += macs
                if fed is not None:
                    fed |= set(node.output)
            values |= {name: value for name, value in zip(node.output, made, strict=False) if name}
            for name in _read(node):
                if last[name] == k and name not in kept:
                    values.pop(name, None)
        return [values[o.name] for o in graph.output], total

    def node(self, node: onnx.NodeProto, values: dict[str, Any]) -> tuple[list[Any], float]:
        """(the outputs of one node, its multiply-accumulates)."""
        a = {x.name: helper.get_attribute_value(x) for x in node.attribute}
        if node.op_type in BODIES and node.domain in ("", "ai.onnx"):
            return BODIES[node.op_type](self, node, a, [values[i] if i else None for i in node.input], values)
        xs = [values[i] if i else None for i in node.input]
        ys = self._alone(node, xs)
        rule = MACS.get(node.op_type)
        return ys, 0.0 if rule is None else float(rule(a, xs, ys))

    def _alone(self, node: onnx.NodeProto, xs: Sequence[Any]) -> list[Any]:
        given = {i: x for i, x in zip(node.input, xs, strict=True) if i}
        small = {i: x for i, x in given.items() if isinstance(x, np.ndarray) and 0 < x.nbytes <= CONSTANT_BYTES}
        if len(small) == len(given) and small and node.op_type not in ("Range",):
            small.pop(next(iter(small)))  # a graph of constants alone is folded away
        fed = {i: x for i, x in given.items() if i not in small}
        model = helper.make_model(
            helper.make_graph(
                [node], "node", [_port(i, x) for i, x in fed.items()],
                [helper.make_empty_tensor_value_info(o) for o in node.output if o],
                [numpy_helper.from_array(x, i) for i, x in small.items()],
            ),
            opset_imports=self.model.opset_import, ir_version=self.model.ir_version, functions=self.model.functions,
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = iter(session.run(None, fed))
        return [next(made) if o else None for o in node.output]


def _read(node: onnx.NodeProto) -> Iterator[str]:
    yield from (i for i in node.input if i)
    for a in node.attribute:
        for body in (a.g, *a.graphs) if a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) else ():
            for inner in body.node:
                yield from _read(inner)
            yield from (o.name for o in body.output)


def _port(name: str, x: Any) -> onnx.ValueInfoProto:
    if isinstance(x, list):
        kind = helper.np_dtype_to_tensor_dtype(x[0].dtype) if x else onnx.TensorProto.FLOAT
        return helper.make_tensor_sequence_value_info(name, kind, None)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), np.shape(x))


def _dense(tensor: onnx.SparseTensorProto) -> np.ndarray:
    values, at = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    whole = np.zeros(tuple(tensor.dims), values.dtype)
    whole[tuple(at.T) if at.ndim == 2 else np.unravel_index(at, whole.shape)] = values
    return whole


def _if(run: Run, node: onnx.NodeProto, a: dict, xs: list, values: dict) -> tuple[list[Any], float]:
    return run.graph(a["then_branch" if bool(np.ravel(xs[0])[0]) else "else_branch"], dict(values))


def _loop(run: Run, node: onnx.NodeProto, a: dict, xs: list, values: dict) -> tuple[list[Any], float]:
    body, most, go, state = a["body"], xs[0], xs[1], list(xs[2:])
    scanned: list[list[Any]] = [[] for _ in body.output[1 + len(state) :]]
    total, k = 0.0, 0
    go = True if go is None else bool(np.ravel(go)[0])
    while go and (most is None or k < int(np.ravel(most)[0])):
        fed = (np.asarray(np.int64(k)), np.asarray(np.bool_(go)), *state)
        made, macs = run.graph(body, {**values, **dict(zip((i.name for i in body.input), fed, strict=True))})
        total, k, go, state = total + macs, k + 1, bool(np.ravel(made[0])[0]), made[1 : 1 + len(state)]
        for kept, value in zip(scanned, made[1 + len(state) :], strict=True):
            kept.append(value)
    return [*state, *(np.stack(v) if v else np.zeros((0,), np.float32) for v in scanned)], total


def _scan(run: Run, node: onnx.NodeProto, a: dict, xs: list, values: dict) -> tuple[list[Any], float]:
    body, count = a["body"], a["num_scan_inputs"]
    state, read = list(xs[: len(xs) - count]), xs[len(xs) - count :]
    axes = a.get("scan_input_axes", [0] * count)
    out_axes = a.get("scan_output_axes", [0] * (len(body.output) - len(state)))
    back, out_back = a.get("scan_input_directions", [0] * count), a.get("scan_output_directions", [0] * len(out_axes))
    steps, total = read[0].shape[axes[0]], 0.0
    scanned: list[list[Any]] = [[] for _ in out_axes]
    for k in range(steps):
        now = [x.take(steps - 1 - k if b else k, axis) for x, axis, b in zip(read, axes, back, strict=True)]
        made, macs = run.graph(body, {**values, **dict(zip((i.name for i in body.input), (*state, *now), strict=True))})
        total, state = total + macs, made[: len(state)]
        for kept, value in zip(scanned, made[len(state) :], strict=True):
            kept.append(value)
    found = [np.stack(v[::-1] if b else v, axis) for v, axis, b in zip(scanned, out_axes, out_back, strict=True)]
    return [*state, *found], total


BODIES: dict[str, Callable[..., tuple[list[Any], float]]] = {"If": _if, "Loop": _loop, "Scan": _scan}


# ---- what a node multiplies, by its arrays -----------------------------------------------------------------------


def _conv(weight: int) -> Callable[..., float]:
    return lambda a, xs, ys: ys[0].size * math.prod(xs[weight].shape[1:])


def _matmul(a: dict, xs: list, ys: list) -> float:
    axis = -2 if a.get("transA") else -1
    return np.size(ys[0]) * xs[0].shape[0 if a.get("transA") and a.get("transBatchA") else axis]


def _einsum(a: dict, xs: list, ys: list) -> float:
    terms = a["equation"].decode().replace(" ", "").partition("->")[0].split(",")
    sizes: dict[Any, int] = {}
    for term, x in zip(terms, xs, strict=True):
        head, dots, tail = term.partition("...")
        names: list[Any] = [*head, *tail]
        if dots:
            free = x.ndim - len(head) - len(tail)
            names = [*head, *(k - free for k in range(free)), *tail]
        for name, size in zip(names, x.shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return math.prod(sizes.values()) if len(xs) > 1 else 0.0


def _recurrent(a: dict, xs: list, ys: list) -> float:
    steps = xs[0].shape[0] * xs[0].shape[1] if len(xs) < 5 or xs[4] is None else int(xs[4].sum())
    return steps * (xs[1].size + xs[2].size)


def _attention(a: dict, xs: list, ys: list) -> float:
    if len(xs) > 1 and xs[1] is not None and xs[1].ndim == 2:  # Microsoft's: the weight of all three
        batch, length, _ = xs[0].shape
        past = next((x.shape[3] for x in xs[3:] if x is not None and x.ndim == 5), 0)
        heads = a.get("qkv_hidden_sizes", [xs[1].shape[1] // 3] * 3)
        return batch * length * (xs[1].size + (length + past) * (heads[0] + heads[2]))
    past = xs[4].shape[-2] if len(xs) > 4 and xs[4] is not None else 0
    return (xs[1].shape[-2] + past) * (xs[0].size + ys[0].size)


def _heads(a: dict, xs: list, ys: list) -> float:
    keys = xs[1].shape[2] if xs[1].ndim == 4 else xs[1].shape[1]
    past = xs[6].shape[2] if len(xs) > 6 and xs[6] is not None else 0
    return (keys + past) * (xs[0].size + ys[0].size)


def _sampled(a: dict, xs: list, ys: list) -> float:
    taps = {b"nearest": 0, b"bicubic": 4, b"cubic": 4}.get(a.get("mode", b"linear"), 2)
    return ys[0].size * taps ** (xs[0].ndim - 2)


MACS: dict[str, Callable[..., float]] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcConv", "ConvInteger", "DeformConv"), _conv(1)),
    "QLinearConv": _conv(3),
    "ConvTranspose": lambda a, xs, ys: xs[0].size * math.prod(xs[1].shape[1:]),
    **dict.fromkeys(("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "TransposeMatMul", "MatMulInteger"), _matmul),
    **dict.fromkeys(("QLinearMatMul", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"), _matmul),
    "MatMulNBits": _matmul,
    "Einsum": _einsum,
    **dict.fromkeys(("RNN", "GRU", "LSTM", "DynamicQuantizeLSTM"), _recurrent),
    **dict.fromkeys(("Attention", "QAttention"), _attention),
    "MultiHeadAttention": _heads,
    "GridSample": _sampled,
}
"""Operator -> multiply-accumulates, of its attributes and the arrays that went in and came out. The others do none."""


if __name__ == "__main__":
    sys.exit(main())
