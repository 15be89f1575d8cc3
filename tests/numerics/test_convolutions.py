"""Two convolutions made one compute what the two compute, to the borders; where no convolution does, there is none."""

import itertools

import numpy as np
import pytest

from onnxprune.numerics.convolutions import ConvMap, after, beside, identity, scaled


def computed(m: ConvMap, x: np.ndarray) -> np.ndarray:
    """(outputs, *positions) of x, (inputs, *positions): by the formula, tap by tap."""
    x = np.pad(x, [(0, 0), *zip(m.before, m.behind, strict=True)])
    reach = [s * (t - 1) + 1 for s, t in zip(m.steps, m.taps, strict=True)]
    count = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:], reach, m.strides, strict=True)]
    y = np.zeros((m.outputs, *count)) + m.bias.reshape(-1, *[1] * len(count))
    each, reads = m.outputs // m.groups, m.inputs // m.groups
    for k in itertools.product(*map(range, m.taps)):
        at = [slice(s * j, s * j + t * (n - 1) + 1, t)
              for s, j, t, n in zip(m.steps, k, m.strides, count, strict=True)]  # fmt: skip
        seen = x[(slice(None), *at)]
        for g in range(m.groups):
            W = m.weight[(slice(g * each, (g + 1) * each), slice(None), *k)]
            y[g * each : (g + 1) * each] += np.tensordot(W, seen[g * reads : (g + 1) * reads], 1)
    return y


def conv(i=4, o=4, k=1, *, s=1, d=1, p=0, q=None, g=1, bias=True, seed=0, axes=2) -> ConvMap:
    """Sizes by one number are those of every axis; pads p before and q behind."""
    rng = np.random.default_rng([seed, i, o, g])
    k, s, d, p, q = (v if isinstance(v, tuple) else (v,) * axes for v in (k, s, d, p, p if q is None else q))
    W = rng.standard_normal((o, i // g, *k))
    return ConvMap(o, i, g, k, s, d, p, q, rng.standard_normal(o) * bias, lambda: W)


IN_A_ROW = [
    ("3x3, 1x1", conv(k=3, p=1), conv(o=6), (3, 3)),
    ("3x3 strided, 1x1 strided", conv(k=3, p=1, s=2), conv(s=2), (3, 3)),
    ("3x3 dilated, 1x1", conv(k=3, p=2, d=2), conv(), (3, 3)),
    ("one side padded", conv(k=3, p=0, q=1, s=2), conv(), (3, 3)),
    ("1x1 with a bias, 3x3 without a border", conv(), conv(k=3), (3, 3)),
    ("1x1 without a bias, 3x3 at a border", conv(bias=False), conv(k=3, p=1), (3, 3)),
    ("1x1 strided, 3x3 at a border", conv(bias=False, s=2), conv(k=3, p=1, s=2), (3, 3)),
    ("3x3, 3x3 without a border", conv(k=3, p=1), conv(k=3), (5, 5)),
    ("3x3, 3x3 of twice the step", conv(k=3, p=1), conv(k=3, d=2), (7, 7)),
    ("3x1, 1x3 at its own border", conv(k=(3, 1), p=(1, 0), bias=False), conv(k=(1, 3), p=(0, 1)), (3, 3)),
    ("zeros around, 3x3", identity(4, 2, (1, 2), (0, 3)), conv(k=3, s=2), (3, 3)),
    ("zeros around, 3x3 with more", identity(4, 2, (1, 1), (1, 1)), conv(k=3, p=1), (3, 3)),
    ("groups", conv(k=3, g=2), conv(g=4), (3, 3)),
    ("depthwise twice", conv(k=3, g=4), conv(k=3, g=4), (5, 5)),
    ("depthwise, then across", conv(k=3, g=4), conv(o=8), (3, 3)),
    ("one axis", conv(k=3, p=1, axes=1), conv(axes=1, seed=1), (3,)),
    ("three axes", conv(k=3, p=1, axes=3), conv(axes=3), (3, 3, 3)),
    ("matrices", conv(axes=0), conv(o=5, axes=0), ()),
]


@pytest.mark.parametrize(("name", "first", "second", "taps"), IN_A_ROW, ids=[r[0] for r in IN_A_ROW])
@pytest.mark.parametrize("size", [11, 12, 13])
def test_in_a_row(name, first, second, taps, size):
    x = np.random.default_rng(1).standard_normal((first.inputs, *[size] * len(first.taps)))
    whole = after(first, second)
    assert whole is not None and whole.taps == taps and whole.size == whole.weight.size
    np.testing.assert_allclose(computed(whole, x), computed(second, computed(first, x)), atol=1e-12)


NOT_IN_A_ROW = [
    ("1x1 with a bias, 3x3 at a border", conv(), conv(k=3, p=1)),
    ("3x3, 3x3 at a border", conv(k=3, p=1, bias=False), conv(k=3, p=1)),
    ("zeros around a bias", conv(), identity(4, 2, (1, 1), (1, 1))),
    ("steps that do not meet", conv(k=3, d=2), conv(k=3)),
    ("other channels", conv(o=6), conv()),
]


@pytest.mark.parametrize(("name", "first", "second"), NOT_IN_A_ROW, ids=[r[0] for r in NOT_IN_A_ROW])
def test_not_in_a_row(name, first, second):
    assert after(first, second) is None


BESIDE = [
    ("3x3, 1x1", conv(k=3, p=1), conv(seed=1), 1),
    ("5x5, 3x3, strided", conv(k=5, p=2, s=2), conv(k=3, p=1, s=2), 1),
    ("3x1, 1x3", conv(k=(3, 1), p=(1, 0)), conv(k=(1, 3), p=(0, 1)), 1),
    ("3x3, itself", conv(k=3, p=1), identity(4, 2), 1),
    ("depthwise, itself", conv(k=3, p=1, g=4), identity(4, 2), 4),
    ("dilated, 1x1", conv(k=3, p=2, d=2), conv(), 1),
    ("off centre", conv(k=2, p=1, q=0), conv(k=2, p=0, q=1), 1),
]


@pytest.mark.parametrize(("name", "one", "other", "groups"), BESIDE, ids=[r[0] for r in BESIDE])
@pytest.mark.parametrize("size", [11, 12])
def test_beside(name, one, other, groups, size):
    x = np.random.default_rng(1).standard_normal((4, size, size))
    whole = beside(one, other)
    assert whole is not None and whole.groups == groups and whole.size == whole.weight.size
    np.testing.assert_allclose(computed(whole, x), computed(one, x) + computed(other, x), atol=1e-12)


NOT_BESIDE = [
    ("another size", conv(k=3, p=1), conv(k=3)),
    ("another stride", conv(k=3, p=1, s=2), conv(k=3, p=1)),
    ("another step", conv(k=3, p=1), conv(k=3, p=2, d=2)),
    ("between the steps", conv(k=3, p=2, d=2), conv(k=1, p=1, q=-1)),
    ("other channels", conv(o=6), conv()),
]


@pytest.mark.parametrize(("name", "one", "other"), NOT_BESIDE, ids=[r[0] for r in NOT_BESIDE])
def test_not_beside(name, one, other):
    assert beside(one, other) is None


def test_scaled():
    m, x = conv(k=3, p=1), np.random.default_rng(1).standard_normal((4, 9, 9))
    a, b = np.arange(4.0), np.arange(4.0)[::-1]
    spread = (-1, 1, 1)
    np.testing.assert_allclose(
        computed(scaled(m, a, b), x), computed(m, x) * a.reshape(spread) + b.reshape(spread), atol=1e-12
    )
