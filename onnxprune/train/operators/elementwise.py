"""Operators that work element by element, activation functions with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.graph.operators import MICROSOFT
from onnxprune.train.operators.registry import op


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _without_attributes(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda attrs, *xs: function(*xs)


SIMPLE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Add": torch.add, "And": torch.logical_and, "Asin": torch.asin,
    "Atan": torch.atan, "Ceil": torch.ceil, "Cos": torch.cos, "Div": _divide, "Equal": torch.eq, "Erf": torch.erf,
    "Exp": torch.exp, "Floor": torch.floor, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish, "Identity": lambda x: x, "IsNaN": torch.isnan, "Less": torch.lt,
    "LessOrEqual": torch.le, "Log": torch.log, "Mish": F.mish, "Mul": torch.mul, "Neg": torch.neg,
    "Not": torch.logical_not, "Or": torch.logical_or, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Softplus": F.softplus,
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Sub": torch.sub, "Tan": torch.tan, "Tanh": torch.tanh,
    "Where": torch.where, "Xor": torch.logical_xor, "Dropout": lambda x, *_: x,
    "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
    "BitwiseNot": torch.bitwise_not, "CastLike": lambda x, like: x.to(like.dtype),
}  # fmt: skip
for _name, _function in SIMPLE.items():
    op(_name)(_without_attributes(_function))


@op("Pow")
def _pow(a, x, y):
    return torch.pow(x, y).to(x.dtype)


@op("Mod")
def _mod(a, x, y):
    return torch.fmod(x, y) if a.get("fmod") else torch.remainder(x, y)


@op("Sum")
def _sum(a, *xs):
    return sum(xs[1:], xs[0])


@op("Mean")
def _mean(a, *xs):
    return sum(xs[1:], xs[0]) / len(xs)


@op("Max")
def _max(a, *xs):
    out = xs[0]
    for x in xs[1:]:
        out = torch.maximum(out, x)
    return out


@op("Min")
def _min(a, *xs):
    out = xs[0]
    for x in xs[1:]:
        out = torch.minimum(out, x)
    return out


@op("Clip", host=(1, 2))
def _clip(a, x, low=None, high=None):
    low = a.get("min") if low is None else low.item()
    high = a.get("max") if high is None else high.item()
    if low is None and high is None:
        return x
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    # a clamp is differentiated with three comparisons, which take eight times as long
    return F.hardtanh(x, low, high) if x.is_floating_point() and low < high else torch.clamp(x, low, high)


@op("LeakyRelu")
def _leaky(a, x):
    return F.leaky_relu(x, a.get("alpha", 0.01))


@op("PRelu")
def _prelu(a, x, slope):
    return torch.where(x < 0, x * slope, x)


@op("Elu")
def _elu(a, x):
    return F.elu(x, a.get("alpha", 1.0))


@op("Selu")
def _selu(a, x):
    alpha, gamma = a.get("alpha", 1.6732632), a.get("gamma", 1.050701)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


@op("HardSigmoid")
def _hard_sigmoid(a, x):
    return torch.clamp(x * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1)


@op("Swish")
@op("QuickGelu", domain=MICROSOFT)
def _swish(a, x):
    return x * torch.sigmoid(a.get("alpha", 1.702 if a["op_type"] == "QuickGelu" else 1.0) * x)


@op("Gelu")
@op("Gelu", domain=MICROSOFT)
def _gelu(a, x):
    return F.gelu(x, approximate=a.get("approximate", "none"))


@op("BiasGelu", "FastGelu", domain=MICROSOFT)
def _gelu_of_sum(a, x, bias=None):
    x = x if bias is None else x + bias
    return F.gelu(x, approximate="tanh" if a["op_type"] == "FastGelu" else "none")


@op("ThresholdedRelu")
def _thresholded(a, x):
    return torch.where(x > a.get("alpha", 1.0), x, 0.0)


@op("Celu")
def _celu(a, x):
    return F.celu(x, a.get("alpha", 1.0))


@op("Shrink")
def _shrink(a, x):
    edge, bias = a.get("lambd", 0.5), a.get("bias", 0.0)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, 0.0))


@op("IsInf")
def _infinite(a, x):
    return (x == torch.inf) & bool(a.get("detect_positive", 1)) | (x == -torch.inf) & bool(a.get("detect_negative", 1))


@op("Softmax", "LogSoftmax")
def _softmax(a, x):
    function = F.softmax if a["op_type"] == "Softmax" else F.log_softmax
    if a["opset"] >= 13:
        return function(x, a.get("axis", -1))
    axis = a.get("axis", 1) % x.ndim  # before opset 13 all axes from `axis` on are one
    return function(x.reshape(*x.shape[:axis], -1), axis).reshape(x.shape)


@op("Cast")
def _cast(a, x):
    return x.to(DTYPES[a["to"]])


DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
          9: torch.bool, **dict.fromkeys((10, 11, 16), torch.float32)}  # fmt: skip
"""ONNX's types; every floating point is float32 in a network, see `network`."""
