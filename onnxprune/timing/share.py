"""The share of a run's time that some nodes take, from a short profile of ONNX Runtime."""

from __future__ import annotations

import contextlib
import json
import tempfile
from bisect import bisect_right
from collections.abc import Collection, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from onnxprune.errors import PruneError
from onnxprune.protobuf.nodes import node_key, subgraphs
from onnxprune.runtime.ports import Feeds
from onnxprune.timing.engine import ON_CPU, Engine
from onnxprune.timing.profile_device import WARM, repeats

PROFILE_MS = 300.0
"""Time spent on it, at least 5 and at most 50 runs."""
MARK = "onnxprune::marked::"


def time_share(model: onnx.ModelProto, feeds: Feeds, keys: Collection[str], engine: Engine = ON_CPU) -> float | None:
    """Between 0 and 1; None where it cannot be measured.

    Args:
        model: the network.
        feeds: one run's inputs.
        keys: the nodes, also those inside of bodies.
        engine: what it runs on.
    """
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    for k, node in enumerate(n for n in _all_nodes(marked.graph) if node_key(n) in keys):
        node.name = f"{MARK}{k}"
    with (
        contextlib.suppress(PruneError, OSError, ValueError),
        tempfile.TemporaryDirectory(prefix="onnxprune-") as folder,
    ):
        session = engine.open(marked, profile=Path(folder, "p"))
        for _ in repeats(PROFILE_MS, (5, 50)):
            session.run(dict(feeds))
        events = json.loads(Path(session.raw.end_profiling()).read_text(encoding="utf-8"))
        return _share(events)
    return None


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from _all_nodes(body)


def _share(events: Collection[dict[str, Any]]) -> float | None:
    """The marked nodes' share of a run, the median of all but the first."""
    runs = sorted((e["ts"], e["dur"]) for e in events if e.get("name") == "model_run" and e["dur"])[WARM:]
    if not runs:
        return None
    began, spent = [ts for ts, _ in runs], [0.0] * len(runs)
    for e in events:
        if e["name"].startswith(MARK) and e["name"].endswith("_kernel_time") and e["ts"] >= began[0]:
            spent[bisect_right(began, e["ts"]) - 1] += e["dur"]
    return min(1.0, median(part / whole for part, (_, whole) in zip(spent, runs, strict=True)))
