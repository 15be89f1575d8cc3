"""Let a network see an input at other sizes: a Resize in front of all that reads it, and nothing else changes.

Work falls with the number of positions in every layer at once, and a network that was made for 224 pixels often loses
less by seeing 160 than by losing half of its channels. What it says then comes out a little weaker or stronger than
before; its last layers get their statistics back (ours).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from onnxprune.channels import Analysed
from onnxprune.errors import ModelError, PlanError
from onnxprune.graph.branches import rename
from onnxprune.graph.model import Graph, all_names, free_name
from onnxprune.graph.shapes import observe
from onnxprune.plan import Edit, Resample
from onnxprune.protobuf.serialize import copied

OPSET = 11
"""The first whose Resize finds positions as they lie in an image."""
KNOWN = 3
"""So many of a network's resampled forms are kept."""


def seen_at(net: Analysed, edits: Iterable[Edit]) -> Analysed:
    """The network as it sees its inputs after the edits, with the same channels; itself where they leave that alone.

    Raises:
        PlanError: it does not run on these sizes, or its outputs have others then.
    """
    for e in (e for e in edits if isinstance(e, Resample)):
        known = net.graph.once("seen", net.channels, dict[Resample, Analysed])
        found = known.get(e)  # once: others may be looked for beside it, and push it out
        if found is None:
            found = _seen(net, e)
            for old in list(known)[: max(0, len(known) - KNOWN + 1)]:
                known.pop(old, None)
            known[e] = found
        net = found
    return net


def _seen(net: Analysed, edit: Resample) -> Analysed:
    said = f"the plan shows the network {edit.in_words()}, and it"
    fed, last = net.feeds.get(edit.input), edit.axis + len(edit.before)
    if fed is None or fed.shape[edit.axis : last] != edit.before or not resizable(net, edit.input):
        raise PlanError(f"{said} has no such input that can be resized")
    try:
        graph = Graph(_resized(net.graph, edit, fed.ndim))
        observed = observe(graph, net.feeds)
    except ModelError as error:
        raise PlanError(f"{said} does not run then: {error}") from error
    if any(observed.shapes.get(o) != net.shapes.get(o) for o in graph.outputs):
        raise PlanError(f"{said} has outputs of other sizes then")
    channels = replace(net.channels, shapes=observed.shapes, derived=observed.derived, ran=observed.ran)
    return replace(net, graph=graph, channels=channels)


def resizable(net: Analysed, name: str) -> bool:
    """Whether a Resize may stand behind an input."""
    fed = net.feeds[name]
    return net.graph.opset >= OPSET and fed.dtype == np.float32 and name not in net.graph.outputs


def _resized(graph: Graph, edit: Resample, rank: int) -> ModelProto:
    """The model with a Resize behind an input. Sizes that it states of what its nodes make are gone."""
    model = copied(graph.model)
    body, names = model.graph, all_names(model.graph)
    seen = free_name(f"{edit.input}_resampled", names)
    scales = free_name(f"{seen}_scales", names | {seen})
    rename(body, {edit.input: seen})
    factors = np.ones(rank, np.float32)
    factors[edit.axis : edit.axis + len(edit.before)] = list(map(_factor, edit.before, edit.after))
    body.initializer.append(numpy_helper.from_array(factors, scales))
    resize = helper.make_node("Resize", [edit.input, "", scales], [seen], seen, mode="linear",
                              coordinate_transformation_mode="half_pixel")  # fmt: skip
    body.node.insert(0, resize)
    del body.value_info[:]
    return model


def _factor(before: int, after: int) -> np.float32:
    """What makes one size of another once the product is rounded down."""
    factor = np.float32(after / before)
    while int(np.float32(before) * factor) < after:
        factor = np.nextafter(factor, np.float32(np.inf))
    return factor
