"""What ONNX Runtime's optimiser has made one of several, and attention in its own operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.graph.operators import MICROSOFT
from onnxprune.train.operators.layers import rms_norm
from onnxprune.train.operators.registry import OPERATORS, Refused, op

ACTIVATIONS: dict[str, Callable[[Tensor, list[float]], Tensor]] = {
    "": lambda x, v: x,
    "Relu": lambda x, v: torch.relu(x),
    "Sigmoid": lambda x, v: torch.sigmoid(x),
    "Tanh": lambda x, v: torch.tanh(x),
    "LeakyRelu": lambda x, v: F.leaky_relu(x, v[0] if v else 0.01),
    "Clip": lambda x, v: torch.clamp(x, *v),
    "HardSigmoid": lambda x, v: torch.clamp(x * v[0] + v[1], 0, 1),
    "HardSwish": lambda x, v: F.hardswish(x),
}
"""What may stand behind a layer; the numbers are its parameters."""


@op("FusedConv", "FusedGemm", domain=MICROSOFT)
def _with_activation(a, x, w, b=None, summand=None):
    """A layer, a sum, an activation."""
    y = OPERATORS["", a["op_type"].removeprefix("Fused")].run(a, x, w, b)
    y = y if summand is None else y + summand
    given = a.get("activation_params") or [v for k in ("alpha", "beta") if (v := a.get(f"activation_{k}")) is not None]
    if a.get("activation", "") not in ACTIVATIONS:
        raise Refused(f"the activation {a['activation']}")
    return ACTIVATIONS[a.get("activation", "")](y, list(given))


@op("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def _scaled_product(a, x, y):
    if a.get("transBatchA") or a.get("transBatchB"):
        raise Refused("turned batches")
    x, y = (t.transpose(-1, -2) if a.get(f"trans{k}") and t.ndim > 1 else t for k, t in (("A", x), ("B", y)))
    return a.get("alpha", 1.0) * torch.matmul(x, y)


@op("SkipLayerNormalization", domain=MICROSOFT)
def _skip_layer_norm(a, x, skip, scale, shift=None, bias=None):
    total = x + skip if bias is None else x + skip + bias
    return F.layer_norm(total, total.shape[-1:], scale, shift, a.get("epsilon", 1e-12)), None, None, total


@op("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _skip_rms_norm(a, x, skip, scale, bias=None):
    total = x + skip if bias is None else x + skip + bias
    return rms_norm({"epsilon": a.get("epsilon", 1e-12)}, total, scale), None, None, total


@op("Attention", domain=MICROSOFT)
def _packed_attention(a, x, w, b=None, mask=None, past=None, bias=None, *rest):
    if past is not None or mask is not None or a["outputs"] > 1 or any(r is not None for r in rest):
        raise Refused("a mask, a cache, or several outputs")
    sizes = a.get("qkv_hidden_sizes") or [w.shape[1] // 3] * 3
    parts = F.linear(x, w.transpose(0, 1), b).split(list(sizes), -1)
    return _attended(a, *(_by_heads(t, a["num_heads"]) for t in parts), bias)


@op("MultiHeadAttention", domain=MICROSOFT)
def _multi_head_attention(a, q, k=None, v=None, b=None, mask=None, bias=None, *rest):
    if k is None or v is None or mask is not None or a["outputs"] > 1 or any(r is not None for r in rest):
        raise Refused("packed tensors, a mask, a cache, or several outputs")
    parts = [q, k, v]
    if b is not None:
        shifts = b.split([q.shape[-1], q.shape[-1], len(b) - 2 * q.shape[-1]])
        parts = [t + shift for t, shift in zip(parts, shifts, strict=True)]
    return _attended(a, *(_by_heads(t, a["num_heads"]) for t in parts), bias)


def _by_heads(x, count):
    """(batch, heads, positions, channels)."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _side_by_side(x):
    """(batch, positions, heads · channels)."""
    return x.transpose(1, 2).flatten(2)


def _attended(a, q, k, v, bias):
    scores = (q @ k.transpose(-1, -2)) * (a.get("scale") or q.shape[-1] ** -0.5)
    scores = scores if bias is None else scores + bias
    if a.get("unidirectional"):
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    return _side_by_side(scores.softmax(-1) @ v)


@op("RotaryEmbedding")
def _rotary(a, x, cosines, sines, positions=None):
    heads = _by_heads(x, a.get("num_heads"))
    angles = [t if positions is None else t[positions] for t in (cosines, sines)]
    y = _turned(a, heads, *angles)
    return _side_by_side(y) if x.ndim == 3 else y


@op("RotaryEmbedding", domain=MICROSOFT)
def _rotary_by_positions(a, x, positions, cosines, sines):
    if positions.numel() == 1:  # where the first stands
        count = x.shape[1] if x.ndim == 3 else x.shape[2]
        positions = positions.reshape(1, 1) + torch.arange(count, device=x.device)
    width = 2 * cosines.shape[-1]
    count = a.get("num_heads") or (x.shape[-1] // width if x.ndim == 3 else 0)
    heads = _by_heads(x, count)
    scale = a.get("scale") or 1.0
    y = scale * _turned(a, heads, cosines[positions], sines[positions])
    return _side_by_side(y) if x.ndim == 3 else y


def _turned(a, x, cosines, sines):
    """Pairs of a head's channels, (batch, heads, positions, channels), turned by (batch, positions, pairs) angles."""
    width = a.get("rotary_embedding_dim") or x.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    c, s = (t[..., : width // 2].unsqueeze(1) for t in (cosines, sines))
    if a.get("interleaved"):
        p, q = turned[..., ::2], turned[..., 1::2]
        y = torch.stack([c * p - s * q, s * p + c * q], -1).flatten(-2)
    else:
        p, q = turned.chunk(2, -1)
        y = torch.cat([c * p - s * q, s * p + c * q], -1)
    return torch.cat([y, rest], -1)
