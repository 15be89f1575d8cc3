"""Models in memory, as other libraries hold them: one entry a library. None of them is imported unless it is used.

graphsurgeon   onnx_graphsurgeon.Graph
ir             onnx_ir.Model
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, TensorProto

from onnxprune.errors import ModelError, UsageError, one_line
from onnxprune.files.parse import parse
from onnxprune.files.refuse import first_line
from onnxprune.protobuf.serialize import copied

NAME = "model"
"""What messages call a model without a file."""


@dataclass(frozen=True)
class Form:
    """How a library holds a model.

    Attributes:
        package: what is imported.
        kind: its class of models.
        to_proto: (package, model) -> ModelProto; the model stays as it is.
        from_proto: (package, ModelProto) -> model.
    """

    package: str
    kind: str
    to_proto: Callable[[Any, Any], ModelProto]
    from_proto: Callable[[Any, ModelProto], Any]

    def is_one(self, model: object) -> bool:
        """Whether it is one of that library, or made of one."""
        return any(c.__name__ == self.kind and c.__module__.split(".")[0] == self.package for c in type(model).__mro__)

    def load(self) -> Any:
        """The package.

        Raises:
            UsageError: it is not installed.
        """
        try:
            return importlib.import_module(self.package)
        except ImportError as error:
            name = self.package.replace("_", "-")
            raise UsageError(one_line(f"{name} cannot be imported: {error}; pip install {name}")) from error


def _from_ir(package: Any, model: Any) -> ModelProto:
    proto: ModelProto = package.to_proto(model)
    for tensor in proto.graph.initializer:  # which lie beside a file that only the library knows
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = model.graph.initializers[tensor.name].const_value.tobytes()
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return proto


FORMS = {
    "graphsurgeon": Form(
        "onnx_graphsurgeon", "Graph", lambda gs, graph: gs.export_onnx(graph), lambda gs, proto: gs.import_onnx(proto)
    ),
    "ir": Form("onnx_ir", "Model", _from_ir, lambda ir, proto: ir.from_proto(proto)),
}


def proto_of(model: object) -> ModelProto | None:
    """The model, if it is one in memory: a ModelProto, its bytes, or one of `FORMS`; None for what may be a path.

    Raises:
        ModelError: bytes that are no model, or a library's model that cannot be written as one.
    """
    if isinstance(model, ModelProto):
        return model
    if isinstance(model, (bytes, bytearray, memoryview)):
        return parse(bytes(model), NAME)
    form = next((f for f in FORMS.values() if f.is_one(model)), None)
    if form is None:
        return None
    try:
        return form.to_proto(form.load(), model)
    except Exception as error:  # of that library's making
        kind = f"{form.package}.{form.kind}"
        words = f"the {kind} cannot be written as a model: {first_line(error)}; mend it first"
        raise ModelError(one_line(f"{NAME}: {words}")) from error


def held_by(name: str, proto: ModelProto) -> Any:
    """A model as one of `FORMS` holds it; a copy, since a library may write into what it has read.

    Raises:
        UsageError: that library is not installed.
    """
    form = FORMS[name]
    return form.from_proto(form.load(), copied(proto))
