"""Questions that change nothing: what could be pruned in a model, and does a pruned file keep to its plan?

One floor above `api`: it uses the rooms and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx

from onnxprune.channels import CutSizes
from onnxprune.decide.limits import Limits
from onnxprune.errors import ModelError
from onnxprune.files.metadata import earlier
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import Cost, CostModel, Running, cost_of
from onnxprune.measure.layer_costs import activations, layers, operators
from onnxprune.measure.parts import by_graph, parts_of
from onnxprune.measure.surgery import Surgery, check_equal, check_surgery
from onnxprune.pipeline.apply import PROBED, check_plan
from onnxprune.pipeline.lossless import probing
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.proof import removed_by
from onnxprune.plan import PrunePlan
from onnxprune.protobuf.nodes import opset
from onnxprune.report.terminal import earlier_words, hung, not_counted, plain, si, table
from onnxprune.rewrite.apply import alive_after, apply_edits, edit_exactly
from onnxprune.rewrite.quantized import held
from onnxprune.rewrite.resample import seen_at
from onnxprune.runtime import ports, sessions

LOOKED_AT = 32
"""Samples by which it is told what outputs say."""


def inspection(subject: Subject) -> dict[str, Any]:
    """Totals, groups and pins as plain values, ready for JSON."""
    model, channels = subject.model, subject.channels
    cost, limits = CostModel(subject.graph, channels), Limits()
    running = Running(cost, np.ones(channels.unit_count + 1, bool))
    groups = []
    for g in channels.groups:
        running.set(g.units, np.zeros(g.width, bool))
        gone = cost.total - float(running.terms.sum())
        running.set(g.units, np.ones(g.width, bool))
        groups.append(
            {
                "name": g.name,
                "width": g.width,
                "step": min(limits.step(g), g.width),
                "macs": gone,
                "makers": sorted({s.use[0] for s in g.weights}),
                "readers": sorted({s.use[0] for s in g.readers}),
            }
        )
    reasons: dict[str, list[dict[str, Any]]] = {}
    for p in channels.pinned:
        where = {"node": p.node, "tensor": p.tensor, "axis": p.axis, "channels": p.count}
        reasons.setdefault(p.reason, []).append(where)
    pinned = [
        {"reason": reason, "channels": sum(w["channels"] for w in where), "where": where}
        for reason, where in reasons.items()
    ]
    before, parts, shapes = subject.cost(), _parts(subject), channels.shapes
    return {
        "schema": 1,
        "kind": "onnxprune inspection",
        "model_digest": subject.digest,
        "ir_version": model.ir_version,
        "opset": opset(model),
        "nodes": len(model.graph.node),
        "operators": operators(subject.graph),
        "params": before.params,
        "macs": before.macs,
        "bytes": before.bytes,
        "barriers": [] if subject.barrier is None else subject.barrier.in_words(),
        "uncounted": [asdict(kind) for kind in before.uncounted],
        "uncounted_time": before.uncounted_time,
        "activations": asdict(activations(subject.graph, shapes)),
        "inputs": [
            {
                "name": s.name,
                "dtype": str(s.dtype),
                "shape": list(s.shape),
                "ran": _shape(subject, s.name),
            }
            for s in ports.input_specs(model)
        ],
        "outputs": [
            {"name": o.name, "ran": _shape(subject, o.name), "parts": parts.get(o.name, [])} for o in model.graph.output
        ],
        "layers": [asdict(layer) for layer in layers(subject.graph, shapes, channels.ran)],
        "groups": groups,
        "inexact": list(channels.inexact),
        "earlier": earlier(model),
        "pinned": sorted(pinned, key=lambda p: (-p["channels"], p["reason"])),
    }


def _parts(subject: Subject) -> dict[str, list[dict[str, str]]]:
    """Output -> what its parts say: by values where there are samples, else by the graph alone."""
    net = subject.net
    if subject.calibration is None:
        found = {name: by_graph(net.graph, net.shapes, name, net.said) for name in net.graph.outputs}
        return {k: [{"name": name, "says": says} for name, says in v if says] for k, v in found.items()}
    feeds = next(iter(subject.calibration.spaced(LOOKED_AT).batches(LOOKED_AT)))
    session = sessions.open_session(subject.model, name="original")
    values = dict(zip(session.outputs, map(np.asarray, session.run(dict(feeds))), strict=True))
    count = len(next(iter(feeds.values())))
    told: dict[str, list[dict[str, str]]] = {}
    for part in parts_of(net.graph, net.shapes, values, said=net.said, samples=count):
        beside = {} if part.beside is None else {"beside": part.beside.name}
        told.setdefault(part.output, []).append({"name": part.name, "says": part.says, **beside})
    return told


def part_words(part: Mapping[str, str]) -> str:
    """`y[:, 0:4]: boxes (xywh) beside y[:, 4:14]`."""
    return plain(f"{part['name']}: {part['says']}{' beside ' + part['beside'] if part.get('beside') else ''}")


def _shape(subject: Subject, name: str) -> list[int]:
    return [int(n) for n in subject.channels.shapes.get(name, ())]


def render(found: dict[str, Any], most: int | None, width: int | None) -> str:
    """`inspection` as text; tables stop after `most` rows, and without it every layer is shown too."""
    lines = _head(found)
    text = "\n".join(line if width is None else hung(line, width) for line in lines) + "\n"
    groups = [
        (
            plain(g["name"]),
            str(g["width"]),
            str(g["step"]),
            f"{g['macs'] / found['macs']:.1%}" if found["macs"] else "",
            str(len(g["makers"])),
            str(len(g["readers"])),
        )
        for g in found["groups"]
        if g["width"] > 1
    ]
    count = f"{len(groups)} group{'' if len(groups) == 1 else 's'}"
    text += f"\n{count} of channels can be cut (MACs: the share that depends on them)\n"
    if groups:
        head = ("group", "width", "step", "MACs", "makers", "readers")
        text += table(head, groups, "<>>>>>", most=most, width=width)
    if found["inexact"]:
        text += f"\ncutting them is not exact: {len(found['inexact'])} nodes take statistics over channels\n"
    return text + _whole(found, most) + (_layers(found, width) if most is None else "")


def _head(found: dict[str, Any]) -> list[str]:
    """What the whole is, costs and takes."""
    held = found["activations"]
    at = f", at {plain(held['node'])}" if held["node"] else ""
    lines = [
        f"nodes        {found['nodes']}, opset {found['opset']}, IR version {found['ir_version']}",
        f"operators    {', '.join(f'{plain(op)} {count}' for op, count in found['operators'].items())}",
        f"cost         {si(found['macs'])} MACs, {si(found['params'])} parameters, {si(found['bytes'])}B",
        f"activations  {si(held['bytes'])}B at once at most{at}",
    ]
    lines += [f"{'' if k else 'barrier':<13}{plain(line)}" for k, line in enumerate(found["barriers"])]
    if found["uncounted"]:
        lines.append(f"not counted  {not_counted(found)}")
    if found["earlier"]:
        lines.append(f"before       {earlier_words(found['earlier'])}")
    for one in found["inputs"]:
        declared = ", ".join("?" if n is None else plain(str(n)) for n in one["shape"])
        run = "x".join(map(str, one["ran"]))
        lines.append(f"input        {plain(one['name'])}: {one['dtype']} ({declared}), run with {run}")
    for one in found["outputs"]:
        lines.append(f"output       {plain(one['name'])}: {'x'.join(map(str, one['ran'])) or 'scalar'}")
        lines += [f"{'':<13}{part_words(part)}" for part in one["parts"]]
    return lines


def _whole(found: dict[str, Any], most: int | None) -> str:
    """What stays whole, and why; a few places of each kind where there is a `most`."""
    single = [plain(g["name"]) for g in found["groups"] if g["width"] == 1]
    text = "\nkept whole\n" if found["pinned"] or single else ""
    if single:
        shown = single if most is None else single[:3]
        text += f"  all their channels go together, or they have one ({len(single)} groups)\n"
        text += "".join(f"    {name}\n" for name in shown)
        text += f"    … and {len(single) - len(shown)} more (use -v)\n" if len(shown) < len(single) else ""
    for p in found["pinned"]:
        text += f"  {plain(p['reason'])} ({p['channels']} channels)\n"
        places = [f"{plain(w['tensor'])} axis {w['axis']}, at {plain(w['node'])}" for w in p["where"]]
        shown = places if most is None else places[:3]
        text += "".join(f"    {place}\n" for place in shown)
        if len(shown) < len(places):
            text += f"    … and {len(places) - len(shown)} more (use -v)\n"
    return text


def _layers(found: dict[str, Any], width: int | None) -> str:
    """Every layer: what it makes, and what it costs."""
    rows = [
        (
            plain(one["node"]),
            plain(one["op"]),
            "x".join(map(str, one["writes"])),
            si(one["macs"]),
            f"{one['macs'] / found['macs']:.1%}" if found["macs"] else "",
            si(one["params"]),
        )
        for one in found["layers"]
    ]
    head = ("layer", "op", "output", "MACs", "share", "parameters")
    return "\nlayers\n" + table(head, rows, "<<<>>>", width=width) if rows else ""


def recheck(subject: Subject, plan: PrunePlan, pruned: onnx.ModelProto) -> tuple[Surgery, tuple[str, ...], Cost | None]:
    """(surgery of the plan cut afresh, what in `pruned` has other sizes than the plan says, what `pruned` costs; None
    where it does not run).

    Repair changes weights, so the file itself cannot be compared with the masked original: the plan is cut
    again without repair and that is compared; of the file only the sizes of every tensor are. A lossless plan
    has no repair: there the file's outputs are compared with the original's.

    Raises:
        UsageError: the plan was made for another model.
    """
    check_plan(subject, plan)
    net = subject.net
    probe = subject.feeds if subject.calibration is None else subject.calibration.first(PROBED)
    if plan.lossless:
        surgery = check_equal(subject.model, pruned, [*probing(subject.feeds), probe])
    else:
        cut, shown = edit_exactly(net, plan.edits), seen_at(net, plan.edits)
        kept = CutSizes(shown.channels, alive_after(net, plan.edits)).kept()
        surgery = check_surgery(shown.model, cut.model, removed_by(net, plan), [probe], kept=kept)
    fresh = apply_edits(net, plan.edits)
    planned = observe(fresh, subject.feeds).shapes
    graph = Graph(pruned)
    try:
        seen = observe(graph, subject.feeds)
    except ModelError as error:
        return surgery, (f"it does not run like the original: {error}",), None
    found, trouble = seen.shapes, []
    joined = bool(held(graph)) and not held(subject.graph)  # int8 has its batch normalizations in the layers
    for node in fresh.nodes.values():
        for name in node.output:
            if name in planned and name not in found and not joined:
                trouble.append(f"tensor {name!r} is missing")
            elif name in planned and planned[name] != found.get(name, planned[name]):
                trouble.append(f"tensor {name!r} is {list(found[name])}, the plan says {list(planned[name])}")
    return surgery, tuple(trouble), cost_of(graph, seen.shapes, seen.ran)
