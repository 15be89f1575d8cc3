"""Recurrent layers, step by step, and attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.train.operators.registry import Refused, op

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "softsign": F.softsign, "softplus": F.softplus,
}  # fmt: skip
Step = Callable[..., tuple[Tensor, ...]]
"""(what a direction's weights make of an input, the states, R, its bias, functions, peepholes) -> the new states."""


@op("LSTM", host=(4,))
def _lstm(a, x, w, r, b=None, lengths=None, h=None, c=None, p=None):
    if a.get("input_forget"):
        raise Refused("input_forget")
    return _recurrent(a, x, w, r, b, lengths, (h, c), _lstm_step, ("sigmoid", "tanh", "tanh"), p)


def _lstm_step(a, given, states, r, bias, f, p):
    h, c = states
    i, o, forget, cell = (given + F.linear(h, r, bias)).chunk(4, -1)
    pi, po, pf = (0.0, 0.0, 0.0) if p is None else p.chunk(3)
    c = f[0](forget + pf * c) * c + f[0](i + pi * c) * f[1](cell)
    return f[0](o + po * c) * f[2](c), c


@op("GRU", host=(4,))
def _gru(a, x, w, r, b=None, lengths=None, h=None):
    return _recurrent(a, x, w, r, b, lengths, (h,), _gru_step, ("sigmoid", "tanh"))


def _gru_step(a, given, states, r, bias, f, p):
    h, n = states[0], given.shape[-1] // 3
    z, reset = (f[0](given[..., at] + F.linear(h, r[at], bias[at])) for at in (slice(n), slice(n, 2 * n)))
    last = slice(2 * n, None)
    inner = reset * F.linear(h, r[last], bias[last])
    if not a.get("linear_before_reset"):
        inner = F.linear(reset * h, r[last], bias[last])
    return ((1 - z) * f[1](given[..., last] + inner) + z * h,)


@op("RNN", host=(4,))
def _rnn(a, x, w, r, b=None, lengths=None, h=None):
    return _recurrent(a, x, w, r, b, lengths, (h,), _rnn_step, ("tanh",))


def _rnn_step(a, given, states, r, bias, f, p):
    return (f[0](given + F.linear(states[0], r, bias)),)


def _recurrent(a, x, w, r, b, lengths, states, step: Step, usual, peepholes=None):
    """(Y, the last states): every direction, step by step."""
    if "clip" in a:
        raise Refused("clip")
    first = bool(a.get("layout"))  # whether the batch comes first
    x = x.transpose(0, 1) if first else x
    if lengths is not None and (lengths != len(x)).any():
        raise Refused("sequences of several lengths")
    ways = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[a.get("direction", "forward")]
    names = [name.lower() for name in a.get("activations", ())] or list(usual) * len(ways)
    names = [name.decode().lower() if isinstance(name, bytes) else name for name in names]
    if unknown := [name for name in names if name not in ACTIVATIONS] or a.get("activation_alpha"):
        raise Refused(f"activations {unknown}")
    size, outputs, last = r.shape[-1], [], []
    for k, backwards in enumerate(ways):
        f = [ACTIVATIONS[name] for name in names[k * len(usual) : (k + 1) * len(usual)]]
        of_x, of_h = (None, x.new_zeros(r.shape[1])) if b is None else b[k].chunk(2)
        given, now = F.linear(x, w[k], of_x), []
        for state in states:
            held = None if state is None else (state.transpose(0, 1) if first else state)[k]
            now.append(x.new_zeros(x.shape[1], size) if held is None else held)
        made = []
        for t in reversed(range(len(x))) if backwards else range(len(x)):
            now = list(step(a, given[t], now, r[k], of_h, f, None if peepholes is None else peepholes[k]))
            made.append(now[0])
        outputs.append(torch.stack(made[::-1] if backwards else made))
        last.append(now)
    y = torch.stack(outputs, 1)
    ends = [torch.stack([each[s] for each in last]) for s in range(len(states))]
    if first:
        y, ends = y.permute(2, 0, 1, 3), [e.transpose(0, 1) for e in ends]
    return (y, *ends)


@op("Attention")
def _attention(a, q, k, v, mask=None, *past):
    if any(p is not None for p in past) or a["outputs"] > 1:
        raise Refused("a cache, or several outputs")
    flat = q.ndim == 3
    if flat:
        q, k, v = (
            t.reshape(*t.shape[:2], heads, -1).transpose(1, 2)
            for t, heads in ((q, a["q_num_heads"]), (k, a["kv_num_heads"]), (v, a["kv_num_heads"]))
        )
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)) * a.get("scale", q.shape[-1] ** -0.5)
    if cap := a.get("softcap", 0.0):
        scores = cap * torch.tanh(scores / cap)
    if a.get("is_causal"):
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    y = scores.softmax(-1) @ v
    return y.transpose(1, 2).flatten(2) if flat else y
