"""A node of constants, run once in ONNX Runtime: for parameter paths that `evaluate` has no table entry for.

Some exporters compute weights from weights (weight standardisation is a BatchNormalization of a constant).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import PruneError
from onnxprune.runtime import sessions

LIMIT = 1 << 27
"""Bytes of operands beyond which a node is left alone."""


def run_node(
    node: onnx.NodeProto, operands: Sequence[np.ndarray | None], model: onnx.ModelProto
) -> list[np.ndarray] | None:
    """The node's outputs, or None when ORT cannot run it alone."""
    feeds = {name: v for name, v in zip(node.input, operands, strict=True) if v is not None}
    if sum(v.nbytes for v in feeds.values()) > LIMIT:
        return None
    outputs = [o for o in node.output if o]
    try:
        ports = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in feeds.items()
        ]
        graph = helper.make_graph([node], "constant", ports, [helper.make_empty_tensor_value_info(o) for o in outputs])
        single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        values = dict(
            zip(outputs, sessions.open_session(single, threads=1, optimise=False).run(feeds, outputs), strict=True)
        )
    except (PruneError, ValueError, KeyError, TypeError):
        return None
    return [values.get(o) for o in node.output]  # type: ignore[misc]
