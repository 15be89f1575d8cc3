"""ONNX operators in torch: one table, one function an operator, differentiable where the operator is.

Every module here is a family of them; importing the package fills the table. Arithmetic on sizes never gets here:
`graph.evaluate` does it on numpy. An operator that is not in the table cannot be trained through; `network` says so
with the node's name.
"""

from onnxprune.train.operators import elementwise, fused, layers, layout, quantized, reductions, sampling, sequence
from onnxprune.train.operators.registry import OPERATORS, Operator, Refused, op, operator_of

__all__ = [
    "OPERATORS",
    "Operator",
    "Refused",
    "elementwise",
    "fused",
    "layers",
    "layout",
    "op",
    "operator_of",
    "quantized",
    "reductions",
    "sampling",
    "sequence",
]
