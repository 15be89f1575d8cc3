"""What may be wrong with a model: one function a kind, each one entry of `MUTATIONS`.

A mutation changes a ModelProto in place, drawing from a `Random`; the model may be sound still.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

Mutation = Callable[[onnx.ModelProto, Random], None]
MUTATIONS: dict[str, Mutation] = {}
WHOLE = (0, 1, -1, 2, 3, 7, -7, 255, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, -(1 << 63), (1 << 63) - 1)
REALS = (0.0, -1.0, 1e-30, 1e30, -1e30, float("nan"), float("inf"), float("-inf"))
WORDS = ("", "x", "NOTSET", "SAME_UPPER", "linear", "nearest", "\x1b[31m", "<b>", "../y", "名", "a" * 300)
TYPES = tuple(v for v in TensorProto.DataType.values() if v)
NEW = (
    "Identity", "Relu", "Neg", "Softmax", "Transpose", "Flatten", "Shape", "Cast", "Dropout", "Sqrt", "Not", "Size",
    "GlobalAveragePool", "LpNormalization", "MeanVarianceNormalization", "NonZero", "Unique", "ReduceMean", "CumSum",
)  # fmt: skip


def mutation(function: Mutation) -> Mutation:
    """Enter a kind."""
    MUTATIONS[function.__name__] = function
    return function


def mutate(model: onnx.ModelProto, rnd: Random, most: int = 2) -> list[str]:
    """One to `most` mutations, in place. Returns their names."""
    names = rnd.choices(list(MUTATIONS), k=rnd.randint(1, most))
    for name in names:
        MUTATIONS[name](model, rnd)
    return names


def _node(model: onnx.ModelProto, rnd: Random) -> NodeProto:
    return rnd.choice(model.graph.node) if model.graph.node else NodeProto()


def _weight(model: onnx.ModelProto, rnd: Random) -> TensorProto:
    return rnd.choice(model.graph.initializer) if model.graph.initializer else TensorProto()


def _port(model: onnx.ModelProto, rnd: Random) -> onnx.ValueInfoProto:
    ports = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    return rnd.choice(ports) if ports else onnx.ValueInfoProto()


def _tensor(model: onnx.ModelProto, rnd: Random) -> str:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    names += [v.name for v in (*model.graph.input, *model.graph.initializer)] + ["", "nowhere"]
    return rnd.choice(names)


# ---- nodes -----------------------------------------------------------------------------------------------


@mutation
def attribute(model: onnx.ModelProto, rnd: Random) -> None:
    """Another value of an attribute."""
    found = [a for n in model.graph.node for a in n.attribute]
    if not found:
        return
    a = rnd.choice(found)
    if a.type == AttributeProto.INT:
        a.i = rnd.choice((a.i + 1, a.i - 1, -a.i, *WHOLE)) if abs(a.i) < 1 << 62 else 0
    elif a.type == AttributeProto.FLOAT:
        a.f = rnd.choice(REALS)
    elif a.type == AttributeProto.STRING:
        a.s = rnd.choice(WORDS).encode() or b"\xff"
    elif a.type == AttributeProto.INTS and a.ints:
        k = rnd.randrange(len(a.ints))
        a.ints[k] = rnd.choice(WHOLE)
    elif a.type == AttributeProto.TENSOR:
        _damage(a.t, rnd)


@mutation
def attribute_list(model: onnx.ModelProto, rnd: Random) -> None:
    """A list of another length."""
    found = [a for n in model.graph.node for a in n.attribute if a.type == AttributeProto.INTS]
    if found:
        a = rnd.choice(found)
        values = list(a.ints)
        a.ints[:] = rnd.choice((values[:-1], [*values, 1], [], values[::-1], values * 2))


@mutation
def attribute_gone(model: onnx.ModelProto, rnd: Random) -> None:
    node = _node(model, rnd)
    if node.attribute:
        del node.attribute[rnd.randrange(len(node.attribute))]


@mutation
def attribute_of_another(model: onnx.ModelProto, rnd: Random) -> None:
    """Another node's attribute, or one of another type or of a function's."""
    found = [a for n in model.graph.node for a in n.attribute]
    if not found:
        return
    a = _node(model, rnd).attribute.add()
    a.CopyFrom(rnd.choice(found))
    how = rnd.randrange(3)
    if how == 0:
        a.type = rnd.choice(AttributeProto.AttributeType.values())
    elif how == 1:
        a.ref_attr_name = "alpha"


@mutation
def operator(model: onnx.ModelProto, rnd: Random) -> None:
    """Another node's operator, or one that nobody knows."""
    node = _node(model, rnd)
    node.op_type = rnd.choice([n.op_type for n in model.graph.node] + [*NEW, "Nothing", "If", "Loop"])
    if rnd.random() < 0.2:
        node.domain = rnd.choice(("com.microsoft", "ai.onnx", "ai.onnx.ml", "custom", "\x00"))


@mutation
def node_gone(model: onnx.ModelProto, rnd: Random) -> None:
    if model.graph.node:
        del model.graph.node[rnd.randrange(len(model.graph.node))]


@mutation
def node_between(model: onnx.ModelProto, rnd: Random) -> None:
    """A new node in front of one input of another."""
    node = _node(model, rnd)
    if not node.input:
        return
    k = rnd.randrange(len(node.input))
    made = f"new{rnd.randrange(1 << 30)}"
    given = {"Cast": {"to": rnd.choice(TYPES)}, "ReduceMean": {"keepdims": rnd.randrange(2)}}
    op = rnd.choice(NEW)
    model.graph.node.insert(0, helper.make_node(op, [node.input[k]], [made], **given.get(op, {})))
    node.input[k] = made


@mutation
def node_twice(model: onnx.ModelProto, rnd: Random) -> None:
    """A copy, that writes the same or something new."""
    copied = NodeProto()
    copied.CopyFrom(_node(model, rnd))
    if rnd.random() < 0.7:
        copied.output[:] = [f"{name}_2" for name in copied.output]
    model.graph.node.append(copied)


@mutation
def order(model: onnx.ModelProto, rnd: Random) -> None:
    nodes = list(model.graph.node)
    rnd.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@mutation
def body(model: onnx.ModelProto, rnd: Random) -> None:
    """A node moves into the branches of an If, or into a Loop."""
    node = _node(model, rnd)
    if not node.output or not node.output[0]:
        return
    inner = NodeProto()
    inner.CopyFrom(node)
    inner.output[0] += "_inner"
    port = onnx.ValueInfoProto(name=inner.output[0])
    switch = f"switch{rnd.randrange(1 << 30)}"
    if rnd.random() < 0.7:
        model.graph.initializer.append(numpy_helper.from_array(np.array(rnd.random() < 0.5), switch))
        branch = helper.make_graph([inner], "b", [], [port])
        made = helper.make_node("If", [switch], node.output[:1], then_branch=branch, else_branch=branch)
    else:
        trips = rnd.choice((0, 1, 2, 1 << 40))
        model.graph.initializer.append(numpy_helper.from_array(np.array(trips), switch))
        on, off = f"{switch}_on", f"{switch}_off"
        nodes = [helper.make_node("Identity", [on], [off]), inner]
        ports = [helper.make_tensor_value_info(f"{switch}_k", 7, []), helper.make_tensor_value_info(on, 9, [])]
        loop = helper.make_graph(nodes, "l", ports, [helper.make_tensor_value_info(off, 9, []), port])
        made = helper.make_node("Loop", [switch, ""], node.output[:1], body=loop)
    node.CopyFrom(made)


# ---- edges -----------------------------------------------------------------------------------------------


@mutation
def edge(model: onnx.ModelProto, rnd: Random) -> None:
    """An input reads something else: a cycle perhaps."""
    node = _node(model, rnd)
    if node.input:
        node.input[rnd.randrange(len(node.input))] = _tensor(model, rnd)


@mutation
def edges_swapped(model: onnx.ModelProto, rnd: Random) -> None:
    node = _node(model, rnd)
    values = list(node.input)
    rnd.shuffle(values)
    node.input[:] = rnd.choice((values, values[:-1], [*values, _tensor(model, rnd)]))


@mutation
def written(model: onnx.ModelProto, rnd: Random) -> None:
    """An output of another name: one that is there, or none."""
    node = _node(model, rnd)
    if node.output:
        node.output[rnd.randrange(len(node.output))] = _tensor(model, rnd)


# ---- weights ---------------------------------------------------------------------------------------------


def _damage(t: TensorProto, rnd: Random) -> None:
    how = rnd.randrange(7)
    if how == 0 and t.dims:
        t.dims[rnd.randrange(len(t.dims))] = rnd.choice(WHOLE)
    elif how == 1:
        t.data_type = rnd.choice(TYPES)
    elif how == 2:
        t.raw_data = t.raw_data[: rnd.randrange(len(t.raw_data) + 1)]
    elif how == 3:
        t.dims[:] = list(t.dims)[::-1]
    elif how == 4:
        t.data_location = TensorProto.EXTERNAL
        entry = t.external_data.add()
        entry.key, entry.value = "location", rnd.choice(("../up", "/etc/passwd", "gone.bin", "", "m.onnx"))
    elif how == 5:
        t.dims[:] = [*t.dims, 1] if rnd.random() < 0.5 else list(t.dims)[1:]
    else:
        values(t, rnd)


def values(t: TensorProto, rnd: Random) -> None:
    """Other numbers, as many as before."""
    size = int(np.prod(t.dims)) if all(0 <= d < 1 << 20 for d in t.dims) else 0
    if t.data_type == TensorProto.FLOAT and len(t.raw_data) == 4 * size > 0:
        numbers = np.frombuffer(t.raw_data, np.float32).copy()
        at = rnd.randrange(size) if rnd.random() < 0.5 else slice(None)
        numbers[at] = rnd.choice((*REALS, 0.0, 0.0))
        t.raw_data = numbers.tobytes()
    elif t.data_type == TensorProto.INT64 and len(t.raw_data) == 8 * size > 0:
        whole = np.frombuffer(t.raw_data, np.int64).copy()
        whole[rnd.randrange(size)] = rnd.choice(WHOLE)
        t.raw_data = whole.tobytes()


@mutation
def weight(model: onnx.ModelProto, rnd: Random) -> None:
    _damage(_weight(model, rnd), rnd)


@mutation
def weight_values(model: onnx.ModelProto, rnd: Random) -> None:
    values(_weight(model, rnd), rnd)


@mutation
def weight_zero(model: onnx.ModelProto, rnd: Random) -> None:
    """All of a layer is zero, or all channels are alike."""
    t = _weight(model, rnd)
    if t.data_type == TensorProto.FLOAT and t.raw_data:
        t.raw_data = rnd.choice((bytes(len(t.raw_data)), t.raw_data[:4] * (len(t.raw_data) // 4)))


@mutation
def weight_gone(model: onnx.ModelProto, rnd: Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[rnd.randrange(len(model.graph.initializer))]


@mutation
def weight_twice(model: onnx.ModelProto, rnd: Random) -> None:
    t = TensorProto()
    t.CopyFrom(_weight(model, rnd))
    model.graph.initializer.append(t)


@mutation
def weight_is_port(model: onnx.ModelProto, rnd: Random) -> None:
    """A weight that may be given as an input, or is an output."""
    t = _weight(model, rnd)
    ports = model.graph.input if rnd.random() < 0.7 else model.graph.output
    ports.append(helper.make_tensor_value_info(t.name, t.data_type, [d if abs(d) < 1 << 40 else 1 for d in t.dims]))


@mutation
def sparse(model: onnx.ModelProto, rnd: Random) -> None:
    t = _weight(model, rnd)
    if t.data_type == TensorProto.FLOAT and len(t.raw_data) >= 8:
        s = model.graph.sparse_initializer.add()
        s.dims[:] = list(t.dims)
        s.values.CopyFrom(numpy_helper.from_array(np.frombuffer(t.raw_data[:8], np.float32), t.name))
        s.indices.CopyFrom(numpy_helper.from_array(np.array([0, rnd.choice((1, -1, 1 << 40))]), ""))
        model.graph.initializer.remove(t)


# ---- ports and the rest ----------------------------------------------------------------------------------


@mutation
def port_size(model: onnx.ModelProto, rnd: Random) -> None:
    shape = _port(model, rnd).type.tensor_type.shape
    if not shape.dim:
        return
    d = rnd.choice(shape.dim)
    if rnd.random() < 0.5:
        d.dim_param = rnd.choice(("n", "N", "", "h"))
    else:
        d.dim_value = rnd.choice(WHOLE)


@mutation
def port_rank(model: onnx.ModelProto, rnd: Random) -> None:
    tensor = _port(model, rnd).type.tensor_type
    if rnd.random() < 0.4 or not tensor.shape.dim:
        tensor.ClearField("shape")
    elif rnd.random() < 0.5:
        tensor.shape.dim.add(dim_value=1)
    else:
        del tensor.shape.dim[rnd.randrange(len(tensor.shape.dim))]


@mutation
def port_type(model: onnx.ModelProto, rnd: Random) -> None:
    port = _port(model, rnd)
    if rnd.random() < 0.8:
        port.type.tensor_type.elem_type = rnd.choice(TYPES)
    else:
        port.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


@mutation
def port_added(model: onnx.ModelProto, rnd: Random) -> None:
    ports = rnd.choice((model.graph.input, model.graph.output, model.graph.value_info))
    ports.append(helper.make_tensor_value_info(_tensor(model, rnd), rnd.choice((1, 7)), rnd.choice(([], [1, 3], None))))


@mutation
def port_gone(model: onnx.ModelProto, rnd: Random) -> None:
    ports = rnd.choice((model.graph.input, model.graph.output))
    if ports:
        del ports[rnd.randrange(len(ports))]


@mutation
def name(model: onnx.ModelProto, rnd: Random) -> None:
    """A name that is hard to print, everywhere that it stands."""
    old, new = _tensor(model, rnd), rnd.choice(WORDS)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if n == old else n for n in names]
        if rnd.random() < 0.1:
            node.name = new
    for found in (*model.graph.input, *model.graph.output, *model.graph.initializer, *model.graph.value_info):
        if found.name == old:
            found.name = new


@mutation
def version(model: onnx.ModelProto, rnd: Random) -> None:
    if rnd.random() < 0.5 and model.opset_import:
        model.opset_import[0].version = rnd.choice((1, 7, 11, 13, 17, 20, 22, 99, -1, 1 << 40))
    elif rnd.random() < 0.5:
        model.ir_version = rnd.choice((0, 3, 4, 8, 10, 99))
    else:
        del model.opset_import[:]


@mutation
def function(model: onnx.ModelProto, rnd: Random) -> None:
    """A node becomes a function of its own, that may call itself."""
    node = _node(model, rnd)
    inputs, outputs = [n for n in node.input if n], list(node.output)
    inner = NodeProto()
    inner.CopyFrom(node)
    if rnd.random() < 0.2:
        inner.op_type, inner.domain = "Own", "own"
    model.functions.append(helper.make_function("own", "Own", inputs, outputs, [inner], list(model.opset_import)))
    if rnd.random() < 0.8:
        model.opset_import.append(helper.make_opsetid("own", 1))
    node.CopyFrom(helper.make_node("Own", inputs, outputs, domain="own"))


@mutation
def metadata(model: onnx.ModelProto, rnd: Random) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = rnd.choice(("onnxprune.cuts", "onnxprune.version", "x")), rnd.choice(WORDS)
    model.graph.name, model.graph.doc_string = rnd.choice(WORDS), rnd.choice(WORDS)
