"""Model files, read with suspicion: may the rest of the tool trust this model?

Whatever can be checked by hand is checked by hand (names, order, shapes, data lengths, attributes, external data),
because `onnx.checker` lets some of it pass and may take the process down with it. Where an ONNX library can blow up
(local functions, nested subgraphs, constants that grow) it works in a child process with a clock and a memory cap;
an ordinary model never starts one. Knows nothing of pruning or of channels.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, TensorProto

from onnxprune.files import sandbox
from onnxprune.files.external import load_external
from onnxprune.files.functions import checkable, inline, run_checker
from onnxprune.files.growth import check_growth
from onnxprune.files.names import check_names, reorder
from onnxprune.files.nodes import check_nodes, check_ports, check_references, check_types
from onnxprune.files.parse import parse, read_bytes
from onnxprune.files.refuse import refuse
from onnxprune.files.tensors import check_tensors
from onnxprune.files.walk import walk_model
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS
from onnxprune.protobuf.serialize import copied
from onnxprune.runtime import install

# Every onnxruntime that pyproject allows reads these; above them we ask the installed one.
_SAFE_IR, _SAFE_OPSET = 10, 21


def read_model(path: str | Path) -> ModelProto:
    """The model in the file `path`, sound and self-contained.

    External data is loaded into `raw_data`, local functions are inlined, nodes that are out of order are
    sorted (stably). IR version, opset and metadata stay as they are.

    Args:
        path: an .onnx file; its external data lies beside it.

    Returns:
        A model that passed every check of `check_model`.

    Raises:
        FileError: the file is missing or cannot be read.
        ModelError: it is not a model, or not one to trust; the message names the node or tensor.
    """
    path = Path(path)
    data = read_bytes(path)
    model = parse(data, str(path))
    del data
    return _settle(model, str(path), base=path.parent, owned=True)


def check_model(model: ModelProto, *, name: str = "model", base: str | Path | None = None) -> ModelProto:
    """The same checks for a model that is already in memory.

    Args:
        model: left untouched.
        name: what messages call it.
        base: the folder of its external data, if it has any.

    Returns:
        `model` itself, or a copy with the nodes sorted, functions inlined and external data loaded where one
        of these was needed.

    Raises:
        ModelError: the model is not sound; the message names the node or tensor.
    """
    return _settle(model, name, base=None if base is None else Path(base), owned=False)


def _settle(model: ModelProto, label: str, *, base: Path | None, owned: bool) -> ModelProto:
    """Checks and puts right. Without `owned`, a model that must change is copied first."""
    _check_versions(model, label)
    walk = walk_model(model, label)
    external = any(t.data_location == TensorProto.EXTERNAL for _, t in walk.tensors)
    if not owned and (model.functions or external):
        return _settle(copied(model), label, base=base, owned=True)
    if external:
        load_external(walk.tensors, label, base)
    if model.functions:
        inline(model, label)
        walk = walk_model(model, label)
    orders: list[tuple[GraphProto, list[int]]] = []
    check_names(model.graph, label, orders, top=True)
    if orders and not owned:
        return _settle(copied(model), label, base=base, owned=True)
    for graph, order in orders:
        reorder(graph, order)
    if orders:  # reordering copies nodes: what the walk holds is stale
        walk = walk_model(model, label)
    check_references(model.graph, label)
    check_types(walk, label)
    check_tensors(walk, label)
    check_nodes(walk, label)
    check_growth(model, walk, label)
    check_ports(model.graph, label)
    if len(walk.graphs) > 1:  # nested subgraphs
        sandbox.in_child("check", checkable(model), label)
    else:
        run_checker(model, label)
    return model


def _check_versions(model: ModelProto, label: str) -> None:
    """IR and opset that onnx knows; ONNX Runtime is asked only about those newer than it surely runs."""
    newest_ir, newest_opset = int(onnx.IR_VERSION), onnx.defs.onnx_opset_version()
    if model.ir_version < 1:
        refuse(label, "has no IR version; it is not a complete ONNX model, export it again")
    if model.ir_version > newest_ir:
        refuse(
            label,
            f"IR version {model.ir_version}, but onnx {onnx.__version__} reads up to {newest_ir}"
            "; upgrade onnx or export for an older one",
        )
    if not model.opset_import:
        refuse(label, "declares no opset; it is not a complete ONNX model, export it again")
    opset = 0
    for entry in model.opset_import:
        if entry.domain not in DEFAULT_DOMAINS:
            continue
        opset = entry.version
        if opset < 1:
            refuse(label, f"declares opset {opset}; export it again")
        if opset > newest_opset:
            refuse(
                label,
                f"opset {opset}, but onnx {onnx.__version__} knows up to {newest_opset}"
                "; upgrade onnx or export for an older opset",
            )
    if model.ir_version > _SAFE_IR or opset > _SAFE_OPSET:
        refusal = install.refusal(model.ir_version, max(opset, 1))
        if refusal:
            refuse(
                label,
                f"onnxruntime does not run IR version {model.ir_version}, opset {opset}: {refusal}"
                "; upgrade onnxruntime or export for an older opset",
            )
