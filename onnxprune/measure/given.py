"""Sessions that take tensors from within a model as further inputs, and return others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from onnxprune.protobuf.serialize import copied
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.weights import ModelAndWeights


def open_given(
    source: ModelAndWeights, given: Mapping[str, np.ndarray], outputs: Sequence[str], *, name: str = "model"
) -> sessions.Session:
    """A session that takes the tensors `given` as further inputs and returns `outputs`.

    Not optimised: a run or two each, and the same kernels for both models. The written file is run as users will.
    """
    model = source.model
    if given or list(outputs) != [o.name for o in model.graph.output]:
        model = _with_given(model, given, outputs)
    return sessions.open_session(model, optimise=False, name=name, weights=source.weights, feed=True)


def values_of(model: ModelAndWeights, names: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray]:
    """The values of inner tensors in one run."""
    if not names:
        return {}
    session = open_given(model, {}, names)
    return dict(zip(names, map(np.asarray, session.run(feeds)), strict=True))


def _with_given(model: onnx.ModelProto, given: Mapping[str, np.ndarray], outputs: Sequence[str]) -> onnx.ModelProto:
    """A copy in which nothing makes the tensors given: they are inputs."""
    changed = copied(model)
    graph = changed.graph
    nodes = [n for n in graph.node if not any(o in given for o in n.output if o)]
    body = list(map(copied, nodes))
    del graph.node[:]
    graph.node.extend(body)
    for own, value in given.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        graph.input.append(helper.make_tensor_value_info(own, kind, value.shape))
    stale = [k for k, v in enumerate(graph.value_info) if v.name in given]
    for k in reversed(stale):
        del graph.value_info[k]
    declared = {o.name: o for o in model.graph.output}
    del graph.output[:]
    graph.output.extend(declared.get(n, helper.make_empty_tensor_value_info(n)) for n in outputs)
    return changed
