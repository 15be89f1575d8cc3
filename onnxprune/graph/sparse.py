"""Sparse tensors of a model file: unpacked for the work, and packed again where that is what they were.

The format stores values and where they stand: in an initializer of its own kind, or in a Constant node. Everything
else here knows dense tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import NodeProto, SparseTensorProto, TensorProto, numpy_helper

from onnxprune.protobuf.serialize import copied, nbytes

ATTRIBUTE = "sparse_value"


def places(tensor: SparseTensorProto) -> np.ndarray:
    """(values,) where the values stand in the flattened tensor.

    Raises:
        ValueError: outside of it, or as many as there are no values.
    """
    dims, count = tuple(tensor.dims), math.prod(tensor.values.dims)
    found = np.asarray(numpy_helper.to_array(tensor.indices))
    if found.dtype.kind not in "iu" or found.shape not in ((count,), (count, len(dims))):
        raise ValueError(f"has indices of shape {list(found.shape)} for {count} values")
    if found.ndim == 2:
        if ((found < 0) | (found >= np.array(dims))).any():
            raise ValueError(f"has an index outside of its shape {list(dims)}")
        return np.ravel_multi_index(tuple(found.T), dims) if count else np.zeros(0, np.int64)
    if count and (found.min() < 0 or found.max() >= math.prod(dims)):
        raise ValueError(f"has an index outside of its shape {list(dims)}")
    return found


def dense(tensor: SparseTensorProto) -> TensorProto:
    """The same tensor, zeros written out."""
    values = numpy_helper.to_array(tensor.values)
    whole = np.zeros(math.prod(tensor.dims), values.dtype)
    whole[places(tensor)] = values.ravel()
    return numpy_helper.from_array(whole.reshape(tuple(tensor.dims)), tensor.values.name)


def sparse(tensor: TensorProto) -> SparseTensorProto:
    """The same tensor, without its zeros."""
    whole = numpy_helper.to_array(tensor).ravel()
    found = np.flatnonzero(whole)
    return SparseTensorProto(
        values=numpy_helper.from_array(whole[found], tensor.name),
        indices=numpy_helper.from_array(found.astype(np.int64)),
        dims=tensor.dims,
    )


def stored(tensor: SparseTensorProto) -> int:
    """Bytes of values and indices."""
    return nbytes(tensor.values) + nbytes(tensor.indices)


def unpacked(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, SparseTensorProto]]:
    """The model with dense tensors in its outermost graph, itself where it has no others; and what was sparse, by name.
    The model must be sound."""
    found = {t.values.name: t for t in model.graph.sparse_initializer}
    found.update({node.output[0]: attribute.sparse_tensor for node, attribute in _constants(model.graph)})
    if not found:
        return model, {}
    out = copied(model)
    out.graph.initializer.extend(dense(t) for t in out.graph.sparse_initializer)
    del out.graph.sparse_initializer[:]
    for _, attribute in _constants(out.graph):
        tensor = dense(attribute.sparse_tensor)
        attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
    return out, found


def pack(model: onnx.ModelProto, were: Mapping[str, SparseTensorProto]) -> None:
    """Write the tensors that were sparse as such again, in place: those that are as they were, and those that take
    less room so."""
    graph = model.graph
    for k in range(len(graph.initializer) - 1, -1, -1):
        tensor = graph.initializer[k]
        if tensor.name in were and (again := _again(tensor, were[tensor.name])) is not None:
            graph.sparse_initializer.insert(0, again)
            del graph.initializer[k]
    for node in graph.node:
        for attribute in node.attribute:
            name = node.output[0] if node.op_type == "Constant" else ""
            if attribute.name == "value" and name in were and (again := _again(attribute.t, were[name])) is not None:
                attribute.CopyFrom(onnx.helper.make_attribute(ATTRIBUTE, again))


def packed(model: onnx.ModelProto, were: Mapping[str, SparseTensorProto]) -> onnx.ModelProto:
    """A model like that; itself where nothing was sparse."""
    if not were:
        return model
    out = copied(model)
    pack(out, were)
    return out


def _again(tensor: TensorProto, was: SparseTensorProto) -> SparseTensorProto | None:
    """The tensor as it was or without its zeros; None where that saves nothing."""
    if list(tensor.dims) == list(was.dims) and tensor.raw_data == dense(was).raw_data:
        return was
    found = sparse(tensor)
    return found if stored(found) < nbytes(tensor) else None


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[NodeProto, onnx.AttributeProto]]:
    """The Constant nodes that hold a sparse tensor, with the attribute that does."""
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            yield from ((node, a) for a in node.attribute if a.name == ATTRIBUTE)
