"""Models in other number formats, made by ONNX Runtime's own libraries: `quantization` and `transformers.float16`.

Whoever calls has a float32 model and gets another with the same inputs and outputs. What is lost on their way (what the
file says of itself, declared sizes) is put back. Knows nothing of pruning.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import version_converter

from onnxprune.errors import UnsupportedError, one_line
from onnxprune.protobuf.nodes import opset
from onnxprune.protobuf.serialize import put
from onnxprune.runtime.install import require_ort
from onnxprune.runtime.ports import Feeds
from onnxprune.runtime.reasons import reason

OPSET, IR = 13, 7
"""The first with one scale a channel, and the format that goes with it."""
LEFT = ("Softmax", "BatchNormalization", "InstanceNormalization", "LayerNormalization")
"""Operators that stay in floats: a softmax over thousands of classes has no 256 levels to spare, and what normalizes
would have its parameters rounded."""
LARGE = 1 << 30
"""Bytes from which weights go into a file of their own on the way."""


def at_least_opset(model: onnx.ModelProto, least: int = OPSET) -> onnx.ModelProto:
    """The model, in a later opset where its own is older.

    Raises:
        UnsupportedError: onnx cannot convert it.
    """
    if opset(model) >= least:
        return model
    try:
        found = version_converter.convert_version(model, least)
    except Exception as error:  # RuntimeError, ConvertError: whatever onnx makes of it
        raise UnsupportedError(
            one_line(f"int8 needs opset {least} and the model has {opset(model)}: {reason(error)}; export it with that")
        ) from error
    found.ir_version = max(model.ir_version, IR)
    del found.metadata_props[:]
    found.metadata_props.extend(model.metadata_props)
    return found


def joined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as the quantizer wants it: batch normalizations in the layers before them, constants folded, and a name
    of its own for every node."""
    quantization = _library("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, ready = Path(folder, "model.onnx"), Path(folder, "joined.onnx")
        _save(model, source)
        try:
            quantization.quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            found = onnx.load(ready)
        except Exception:  # it is only worth something, not needed
            found = onnx.load(source)
    taken: set[str] = set()
    for k, node in enumerate(found.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{k}_{node.output[0]}"
        taken.add(node.name)
    return _as_was(found, model)


def quantized(model: onnx.ModelProto, batches: Sequence[Feeds]) -> onnx.ModelProto:
    """The model in int8, as QuantizeLinear and DequantizeLinear: weights of 7 bits with one scale a channel,
    activations as uint8 between the least and the largest value that they had.

    With 8 bits, sums of two products overflow on x86 processors without VNNI, which saturate them: the same file then
    answers otherwise there.

    Args:
        model: in float32, `joined`.
        batches: samples that say how far activations reach.

    Raises:
        UnsupportedError: ONNX Runtime cannot quantize it.
    """
    library = _library("onnxruntime.quantization")
    tables = _library("onnxruntime.quantization.registry")
    kinds = {*tables.QDQRegistry, *tables.QLinearOpsRegistry}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "model.onnx"), Path(folder, "int8.onnx")
        _save(model, source)
        try:
            library.quantize_static(
                str(source),
                str(target),
                _Reader(batches),
                quant_format=library.QuantFormat.QDQ,
                op_types_to_quantize=sorted(kinds - set(LEFT)),
                per_channel=True,
                reduce_range=True,
                activation_type=library.QuantType.QUInt8,
                weight_type=library.QuantType.QInt8,
            )
            found = onnx.load(target)
        except Exception as error:
            raise UnsupportedError(one_line(f"ONNX Runtime cannot quantize the model: {reason(error)}")) from error
    return _as_was(found, model)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16; inputs and outputs stay as they are.

    Raises:
        UnsupportedError: ONNX Runtime's library cannot convert it.
    """
    library = _library("onnxruntime.transformers.float16")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        try:
            found = library.convert_float_to_float16(copy, keep_io_types=True)
        except Exception as error:
            raise UnsupportedError(one_line(f"the model cannot be had in float16: {reason(error)}")) from error
    return _as_was(found, model)


def _save(model: onnx.ModelProto, path: Path) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves weights out of it
    onnx.save_model(copy, str(path), save_as_external_data=model.ByteSize() > LARGE)


class _Reader:
    """Samples as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Sequence[Feeds]):
        self.left = iter(batches)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        feeds = next(self.left, None)
        return None if feeds is None else dict(feeds)


def _as_was(found: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The converted model with all that the other says of itself: inputs, outputs, metadata, who made it."""
    ports = {name: {v.name: v for v in getattr(model.graph, name)} for name in ("input", "output")}
    for name, known in ports.items():
        for value in getattr(found.graph, name):
            if value.name in known:
                value.CopyFrom(known[value.name])
    for said in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        put(found, said, getattr(model, said))
    found.graph.name = model.graph.name
    del found.metadata_props[:]
    found.metadata_props.extend(model.metadata_props)
    found.ir_version = model.ir_version
    used = {n.domain for n in found.graph.node} | {f.domain for f in found.functions}
    kept = [o for o in found.opset_import if o.domain in ("", "ai.onnx") or o.domain in used]
    del found.opset_import[:]
    found.opset_import.extend(kept)
    return found


def _library(name: str) -> Any:
    """A module of ONNX Runtime's.

    Raises:
        UnsupportedError: this build has none, or what it needs is missing.
    """
    require_ort()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnsupportedError(one_line(f"{name} cannot be imported: {error}; pip install onnxruntime")) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what these libraries log and warn of: it is about their own defaults."""
    before: int = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
