"""Which nodes ONNX Runtime cannot run: it is asked to load the model, and what it names is left out, until it loads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx

from onnxprune.errors import LoadError
from onnxprune.graph.barrier import Barrier
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS, node_key, subgraphs
from onnxprune.protobuf.serialize import copied, copy_all_but
from onnxprune.runtime import sessions

UNKNOWN = re.compile(r"(?:error: |error: .* )?(\S*):(\w+)\(-?\d+\) is not a registered function/op")
NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\) node with name '([^']*)'")
INVALID = re.compile(r'In Node, \("([^"]*)", (\w+), "", -?\d+\)')
KNOWN = (*DEFAULT_DOMAINS, "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental")
"""Domains of which ONNX Runtime knows most operators."""
MOST = 1000
"""Attempts to load a model."""


def suspicious(model: onnx.ModelProto) -> bool:
    """Whether some node is of a domain that ONNX Runtime hardly knows, or of no operator of ONNX."""
    stack = [model.graph]
    while stack:
        for node in stack.pop().node:
            if node.domain not in KNOWN or (node.domain in DEFAULT_DOMAINS and not onnx.defs.has(node.op_type)):
                return True
            stack += subgraphs(node)
    return False


def stopping(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, str]:
    """The nodes of the outermost graph that ONNX Runtime cannot run: key -> why. Empty where it loads the model, or
    where something else is wrong.

    Args:
        model: left untouched.
        shapes: as for `Barrier.of`.
    """
    found: dict[str, str] = {}
    named = _named(model)
    for _ in range(MOST):
        part = Barrier.of(named, found, shapes, typed=False).part if found else named
        if not part.graph.node:
            break
        more = _refused(part)
        if not more:
            break
        found |= more
    return found


def _refused(model: onnx.ModelProto) -> dict[str, str]:
    """Those that ONNX Runtime names when it does not load the model."""
    said = _complaint(model)
    if (match := UNKNOWN.search(said)) is not None:
        domain, op = match.groups()
        wanted = {""} | set(DEFAULT_DOMAINS) if domain in DEFAULT_DOMAINS else {domain}
        why = f"ONNX Runtime knows no operator {op}" + (f" of the domain {domain!r}" if domain else "")
        return {node_key(n): why for n in model.graph.node if _contains(n, op, wanted)}
    if (match := NO_KERNEL.search(said)) is not None:
        op, name = match.groups()
        why = "ONNX Runtime has no kernel for it and the type of what it reads"
        own = [n for n in model.graph.node if name and name == n.name]
        return {node_key(n): why for n in own} or {key: why for key in _by_halving(model)}
    if (match := INVALID.search(said)) is not None and not onnx.defs.has(match[2]):
        why = f"{match[2]} is no operator of ONNX"
        return {node_key(n): why for n in model.graph.node if n.name == match[1]}
    return {}


def _by_halving(model: onnx.ModelProto) -> list[str]:
    """The first node that stops the model from being loaded, where that is not told."""
    nodes = list(model.graph.node)
    low, high = 0, len(nodes)  # so many load, so many do not
    while high - low > 1:
        middle = (low + high) // 2
        gone = {node_key(n): "" for n in nodes[middle:]}
        fits = NO_KERNEL.search(_complaint(Barrier.of(model, gone, feed=False, typed=False).part)) is None
        low, high = (middle, high) if fits else (low, middle)
    return [node_key(nodes[low])]


def _complaint(model: onnx.ModelProto) -> str:
    """What ONNX Runtime says when it does not load a model; "" where it does."""
    if not model.graph.node:
        return ""
    try:
        sessions.open_session(model, optimise=False, pack=False)
    except LoadError as error:
        return str(error)
    return ""


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a name of its own for every node of the outermost graph, which those inside it have too."""
    named = onnx.ModelProto()
    copy_all_but(model, named, "graph")
    copy_all_but(model.graph, named.graph, "node")
    for k, node in enumerate(model.graph.node):
        new = copied(node)
        stack = [new]
        while stack:
            inner = stack.pop()
            inner.name = f"node{k}"
            stack += [n for body in subgraphs(inner) for n in body.node]
        named.graph.node.append(new)
    return named


def _contains(node: onnx.NodeProto, op: str, domains: set[str]) -> bool:
    """Whether it, or a node in its bodies, is of the operator."""
    stack = [node]
    while stack:
        inner = stack.pop()
        if inner.op_type == op and inner.domain in domains:
            return True
        stack += [n for body in subgraphs(inner) for n in body.node]
    return False
