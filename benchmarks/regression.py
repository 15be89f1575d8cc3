"""L1 + linear regression, as AIMET describes its channel pruning; **ours**, no line of AIMET runs here.

AIMET's documentation, in its own order: a conv's input channels are ranked by the L1 magnitude of its kernel for them
and the least are dropped; what makes a dropped channel is removed too, unless it is shared by a join; the conv's
weights are then fitted by linear regression, from what it reads in the pruned net to what it wrote in the original,
on positions sampled at random (10 an image). Layers in forward order, the same share of channels in each.

The cut itself is made by onnxprune's public `apply_plan`, with a plan that is written here and no repair, so the file
that comes out is a valid one. The regression has an intercept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.api import Subject
from onnxprune.channels import ChannelGroup
from onnxprune.plan import KeepChannels, Origin, PrunePlan
from onnxprune.runtime.sessions import open_session, with_outputs

POSITIONS = 10
"""Sampled output positions an image."""


def candidates(subject: Subject) -> list[ChannelGroup]:
    """Groups with one conv that makes them and one conv that reads them: no join, not the classifier's."""
    convs = {node.output[0]: node for node in subject.model.graph.node if node.op_type == "Conv"}
    by_key = subject.graph.nodes

    def plain(use: tuple[str, int]) -> bool:
        node = by_key[use[0]]
        return node.output[0] in convs

    return [
        g
        for g in subject.channels.groups
        if len(g.weights) == len(g.readers) == 1 and plain(g.weights[0].use) and plain(g.readers[0].use)
    ]


def plan(subject: Subject, share: float) -> PrunePlan:
    """The plan that drops `share` of the channels of every candidate, the least by L1 of their reader's columns."""
    edits = []
    for group in candidates(subject):
        reader = group.readers[0]
        weight = subject.graph.value(reader.use)
        assert weight is not None
        columns = np.abs(np.moveaxis(weight, reader.axis, 0)).reshape(weight.shape[reader.axis], -1).sum(1)
        score = np.bincount(reader.channel, columns, group.width)
        left = max(1, round(group.width * (1 - share)))
        keep = np.sort(np.argsort(-score, kind="stable")[:left])
        edits.append(KeepChannels(group.name, group.width, tuple(int(k) for k in keep)))
    return PrunePlan(subject.digest, tuple(edits), Origin(ratio=share, settings={"criterion": "l1 of the reader"}))


def cut(subject: Subject, share: float) -> onnx.ModelProto:
    """The pruned file before the regression."""
    settings = onnxprune.Settings(repair="none", threads=1)
    return onnxprune.apply_plan(subject, plan(subject, share), settings).model


def prune(path: Path, share: float, calibration: np.ndarray, seed: int) -> onnx.ModelProto:
    """Cut, then fit every reader of a cut channel anew, in forward order."""
    subject = onnxprune.open_model(path)
    read = {subject.graph.nodes[g.readers[0].use[0]].output[0] for g in candidates(subject)}
    model, kept = cut(subject, share), _kept_outputs(subject, share)
    order = [node.output[0] for node in model.graph.node if node.op_type == "Conv" and node.output[0] in read]
    for output in order:
        left = kept.get(output, slice(None))
        _fit(subject.model, model, output, left, calibration, np.random.default_rng(seed))
    return model


def _kept_outputs(subject: Subject, share: float) -> dict[str, np.ndarray]:
    """For every conv that lost outputs, its output's name -> the original's output channels that it still writes."""
    keep = plan(subject, share).keep()
    makers = {subject.graph.nodes[g.weights[0].use[0]].output[0]: g for g in candidates(subject)}
    return {output: np.flatnonzero(np.isin(g.weights[0].channel, keep[g.name])) for output, g in makers.items()}


def _fit(
    original: onnx.ModelProto,
    model: onnx.ModelProto,
    output: str,
    kept: np.ndarray | slice,
    calibration: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Replace weights and bias of the conv that writes `output` by the least-squares ones, in place.

    In a chain the conv's own outputs are cut as well: it aims at the `kept` ones of the original.
    """
    node = next(n for n in model.graph.node if output in n.output)
    values = {t.name: t for t in model.graph.initializer}
    weight = numpy_helper.to_array(values[node.input[1]])
    left, right = [], []
    for x, y in _runs(original, model, node.input[0], output, calibration):
        y = y[:, kept]
        n, _, height, width = y.shape
        at = rng.integers(0, height * width, (n, POSITIONS))
        right.append(y.reshape(n, y.shape[1], -1)[np.arange(n)[:, None], :, at].reshape(n * POSITIONS, -1))
        left.append(_patches(x, node, weight.shape[2:], at, width))
    a, b = np.concatenate(left).astype(np.float64), np.concatenate(right).astype(np.float64)
    fitted = np.linalg.lstsq(a - a.mean(0), b - b.mean(0), rcond=1e-6)[0]
    bias = b.mean(0) - a.mean(0) @ fitted
    _write(model, node, "weight", 1, fitted.T.reshape(weight.shape))
    _write(model, node, "bias", 2, bias)


def _runs(
    original: onnx.ModelProto, model: onnx.ModelProto, read: str, written: str, calibration: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the pruned conv reads, and what the original one wrote, batch by batch."""
    before = open_session(with_outputs(original, [written]), threads=1)
    after = open_session(with_outputs(model, [read]), threads=1)
    for i in range(0, len(calibration), 64):
        feeds = {"x": calibration[i : i + 64]}
        yield after.run(feeds, [read])[0], before.run(feeds, [written])[0]


def _patches(x: np.ndarray, node: onnx.NodeProto, kernel: tuple[int, ...], at: np.ndarray, width: int) -> np.ndarray:
    """(n·positions, c·kh·kw) what the conv multiplies at flat output positions `at` (n, positions)."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    top, side, bottom, other = attributes.get("pads", [0, 0, 0, 0])
    (sh, sw), (kh, kw) = attributes.get("strides", [1, 1]), kernel
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (side, other)))
    rows = (at // width * sh)[:, :, None, None] + np.arange(kh)[:, None]
    columns = (at % width * sw)[:, :, None, None] + np.arange(kw)
    found = padded[np.arange(len(x))[:, None, None, None], :, rows, columns]  # (n, positions, kh, kw, c)
    return np.moveaxis(found, -1, 2).reshape(at.size, -1)


def _write(model: onnx.ModelProto, node: onnx.NodeProto, what: str, position: int, value: np.ndarray) -> None:
    """Give the node a constant of its own."""
    name = f"{node.output[0]}.refitted.{what}"
    model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    while len(node.input) <= position:
        node.input.append("")
    node.input[position] = name
