"""Dense linear algebra of pruning: arrays in, arrays out.

This module knows second moments, least squares and channel selection. It does not know graphs, operators,
files or sessions: who calls it has already turned a reader of a channel group into a *design*.

The design of a reader. A conv, gemm or matmul that reads `c` channels with `q` taps each (`q = kh·kw` for a
conv, 1 for a matrix) computes `Y = X̃ W` where

    X̃: (rows, c·q + 1)   one row a sampled output position; channel-major, taps inside, a constant 1 last
    W : (c·q + 1, n)      the kernel transposed, the bias in the last row
    H = X̃ᵀX̃: (c·q + 1, c·q + 1)      G = X̃ᵀT: (c·q + 1, n)      T: (rows, n) the targets

Everything below is a function of `H` and `G`, so activations stream and memory does not grow with samples.
All sums are float64 (the products of one chunk may be formed in float32 by the caller).

Sources: He, Zhang, Sun, ICCV 2017 (LASSO selection, refit with intercept); Hassibi & Stork, NeurIPS 1992, and
its block form in OBC / ZipLM (elimination); Zhang, Zou, He, Sun, TPAMI 2016 (least squares through a ReLU);
De Pierro, IEEE TMI 1995, and Lange, Hunter, Yang, JCGS 2000 (majorise-minimise; the use made of it in
`relu_target` and `propagate_target` is ours).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg as sl
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]

# --------------------------------------------------------------------------------------------- moments


@dataclass(frozen=True)
class Moments:
    """Second moments of a design, `H` (d, d) and `G` (d, n), over `count` rows; they add up.

    The intercept is the last row of both, so `H[-1, -1] == count` and `H[-1, :-1]` is the sum of the inputs.
    """

    H: Array
    G: Array
    count: int
    target_sumsq: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.H + other.H,
            self.G + other.G,
            self.count + other.count,
            self.target_sumsq + other.target_sumsq,
        )

    def error(self, W: Array) -> float:
        """‖T − X̃W‖² = ‖T‖² − 2⟨G, W⟩ + ⟨W, HW⟩, summed over rows and outputs; never below zero."""
        return max(0.0, self.target_sumsq - 2.0 * float(np.vdot(self.G, W)) + float(np.vdot(W, self.H @ W)))


def moments(x: np.ndarray, target: np.ndarray) -> Moments:
    """Moments of one chunk: inputs `x` (rows, d − 1) without the constant, targets `target` (rows, n).

    Products of a chunk are formed in the chunk's own precision (float32 is 2x faster, and exact enough for
    chunks up to some 65,000 rows); the sum over chunks is float64. Sum chunks with `+`.
    """
    rows = len(x)
    if len(target) != rows:
        raise ValueError(f"{rows} rows of inputs but {len(target)} rows of targets")
    d = x.shape[1] + 1
    H, G = np.empty((d, d)), np.empty((d, target.shape[1]))
    H[:-1, :-1] = x.T @ x
    H[:-1, -1] = H[-1, :-1] = x.sum(0, dtype=np.float64)
    H[-1, -1] = rows
    G[:-1] = x.T @ target
    G[-1] = target.sum(0, dtype=np.float64)
    return Moments(H, G, rows, float(np.square(target, dtype=np.float64).sum()))


def patches(
    x: np.ndarray,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """What a conv reads: (images · p, c · taps), channel-major, without the constant, in x's precision.

    Args:
        x: (images, c, *spatial), any number of spatial axes.
        kernel: size on every spatial axis; taps is their product.
        strides, dilations: one a spatial axis; 1 when left out.
        pads: begins, then ends (top, left, bottom, right in two dimensions), the order of ONNX.
        positions: (images, p) flat indices into the conv's outputs, another draw for each image; None for all
            of them. Only the sampled windows are copied.
    """
    n = len(kernel)
    strides, dilations, pads = strides or [1] * n, dilations or [1] * n, pads or [0] * (2 * n)
    if any(pads):
        x = np.pad(x, ((0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)))
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = sliding_window_view(x, span, axis=tuple(range(2, 2 + n)))  # (images, c, *places, *span)
    steps = tuple(slice(None, None, s) for s in (*strides, *dilations))
    view = view[(slice(None), slice(None), *steps)]
    images, c, places, taps = view.shape[0], view.shape[1], view.shape[2 : 2 + n], int(np.prod(kernel))
    if positions is None:
        turned = view.transpose(0, *range(2, 2 + n), 1, *range(2 + n, 2 + 2 * n))
        return turned.reshape(images * int(np.prod(places)), c * taps)
    at: tuple[Any, ...] = (np.arange(images)[:, None], slice(None), *np.unravel_index(positions, places))
    picked = view[at]  # (images, p, c, *kernel)
    return picked.reshape(-1, c * taps)


def sample_positions(images: int, area: int, count: int, rng: np.random.Generator) -> np.ndarray | None:
    """(images, count) distinct flat positions for each image, or None when all `area` of them are wanted."""
    if count >= area:
        return None
    return rng.random((images, area)).argpartition(count, axis=1)[:, :count]


# --------------------------------------------------------------------------------------- least squares


class Ridge:
    """`argmin_W ‖T − X̃W‖² + λ̄‖W − W₀‖²`, factorised once for any number of right-hand sides.

        W = (H + λ̄I)⁻¹ (G + λ̄W₀),   λ̄ = lam · mean diag H (intercept left out, and not penalised)

    `solve` costs two triangular solves, so targets may change (`relu_target`) while `H` stays. When the
    Cholesky factor does not exist (dead channels, fewer rows than inputs, lam = 0) the minimum-norm solution
    by eigenvalues above `1e-12 · largest` is taken; `conditioned` says which.
    """

    def __init__(self, H: Array, lam: float = 1e-4) -> None:
        H = np.asarray(H, dtype=np.float64)
        if H.ndim != 2 or H.shape[0] != H.shape[1]:
            raise ValueError(f"second moments must be square, not {H.shape}")
        self._ridge = penalty(H, lam)
        A = H + np.diag(self._ridge)
        self._eig = None
        try:
            self._cho = sl.cho_factor(A, lower=True, check_finite=True)
            pivots = np.square(np.diag(self._cho[0]))
            self.conditioned = bool((pivots > 1e-13 * np.diag(A)).all())
        except sl.LinAlgError:
            self.conditioned = False
        if not self.conditioned:
            scale = np.sqrt(np.where(np.diag(A) > 0, np.diag(A), 1.0))  # columns of very different size
            values, vectors = sl.eigh(A / np.outer(scale, scale))
            good = values > 1e-12 * max(values[-1], 0.0)
            self._eig = (vectors[:, good] / scale[:, None], values[good])

    def solve(self, G: Array, W0: Array | None = None) -> Array:
        """W (d, n) for `G` (d, n), drawn towards `W0` (d, n), or towards zero."""
        G = np.asarray(G, dtype=np.float64)
        if W0 is not None:
            G = G + self._ridge[:, None] * W0
        if self._eig is None:
            return sl.cho_solve(self._cho, G)
        vectors, values = self._eig
        return vectors @ ((vectors.T @ G) / values[:, None])


FEW = 4
"""Rows per input under which second moments show relations between inputs that other rows would not."""
AMPLE = 40
"""Rows per input from which nothing is shrunk. It is many, as the rows of one sample are alike."""
SHRINKAGES = (0.0, 0.03, 0.1, 0.3, 1.0)
"""Shrinkages that are tried below that."""


def shrunk(H: Array, rho: float) -> Array:
    """Second moments whose correlations between inputs are believed less: `S ← (1 − ρ) S + ρ diag S`, S the covariance.

    With fewer rows than inputs every input is a combination of others, and removing it seems free.
    """
    if rho <= 0:
        return H
    n = H[-1, -1]
    mean, S = H[-1, :-1] / n, covariance(H)
    out = H.copy()
    out[:-1, :-1] = n * ((1 - rho) * S + rho * np.diag(np.diag(S)) + np.outer(mean, mean))
    return out


def covariance(H: Array) -> Array:
    """(d, d) covariance of the inputs, out of second moments (d + 1, d + 1) with the intercept last."""
    n = H[-1, -1]
    mean = H[-1, :-1] / n
    return H[:-1, :-1] / n - np.outer(mean, mean)


def shrinkage(H: Array, W: Array, held: Array | None = None, lam: float = 1e-4) -> float:
    """How much to shrink the second moments `H` of a layer with weights `W` (d + 1, n), the intercept row zero.

    Half of the inputs are given up, those that `H` says are missed least, and the others refit. What predicts the
    layer's output best on `held`, the second moments of other samples, is taken. Where rows < `FEW` · inputs, it is at
    least the intensity of OAS (Chen, Wiesel, Eldar, Hero, IEEE TSP 2010; towards the diagonal is ours),

        ρ = (tr S² + tr² S) / ((n + 1)(tr S² − tr² S / d))
    """
    n, d = H[-1, -1], len(H) - 1
    if n >= AMPLE * d:
        return 0.0
    least = _oas(covariance(H), n) if n < FEW * d else 0.0
    if held is None or d < 2:
        return least
    tried = [rho for rho in SHRINKAGES if rho >= least] or [least]
    errors = []
    for rho in tried:
        A = shrunk(H, rho)
        missed = np.square(W[:-1]).sum(1) / np.diag(inverse(A, lam))[:-1]
        stay = np.append(np.sort(np.argsort(missed, kind="stable")[d // 2 :]), d)
        off = -W
        off[stay] += Ridge(A[np.ix_(stay, stay)], lam).solve(A[stay] @ W, W[stay])
        errors.append(float(np.vdot(off, held @ off)))
    return tried[int(np.argmin(errors))]


def _oas(S: Array, n: float) -> float:
    square, trace = float(np.square(S).sum()), float(np.trace(S))
    spread = (n + 1) * (square - trace**2 / len(S))
    return min(1.0, (square + trace**2) / spread) if spread > 0 else 1.0


def penalty(H: Array, lam: float) -> Array:
    """(d,) diagonal of the ridge: `lam · mean diag H` for each input, nothing for the intercept."""
    diag = np.diag(H)[:-1]
    out = np.full(len(H), lam * (diag.mean() if len(diag) else 0.0))
    out[-1] = 0.0
    return out


def ridge(H: Array, G: Array, lam: float = 1e-4, W0: Array | None = None) -> Array:
    """W (d, n), the least squares of `H` (d, d), `G` (d, n) with intercept last; see `Ridge`."""
    return Ridge(H, lam).solve(G, W0)


def rows_of(channels: np.ndarray, taps: int, inputs: int) -> np.ndarray:
    """Row indices into a design of `inputs` channels that belong to `channels`, the intercept last."""
    channels = np.asarray(channels)
    inside = (channels[:, None] * taps + np.arange(taps)).ravel()
    return np.append(inside, inputs * taps)


# -------------------------------------------------------------------------------------- through a ReLU


def relu_target(wanted: np.ndarray, now: np.ndarray, top: float = np.inf) -> np.ndarray:
    """Targets that make least squares see the ReLU (or the clipping at `top`) behind it.

    `wanted` where it is inside, else `now` as far as it is outside on the same side: a unit that must stay off
    may be off by any amount. `‖p − target‖²` majorises `‖relu(p) − relu(wanted)‖²` and touches it at `p = now`
    (but for units that are off and should be on, which are drawn on), so a refit on these targets, repeated
    with fresh `now`, lowers the error after the ReLU. Both (rows, n) or any shape.
    """
    target = np.where(wanted > 0, wanted, np.minimum(now, 0))
    return target if top == np.inf else np.where(wanted < top, target, np.maximum(now, top))


def hidden_target(pre: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Targets before the ReLU of a hidden layer asked to move by `step` after it.

    Units that are on go to `max(relu(pre) + step, 0)`; units that are off stay where they are: moving them
    changes nothing to first order. Same shape as `pre`.
    """
    return np.where(pre > 0, np.maximum(pre + step, 0), pre)


def propagate_target(
    residual: np.ndarray,
    kernel: np.ndarray,
    *,
    hidden_hw: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
) -> np.ndarray:
    """Kᵀ(residual): the transposed conv that hands what the reader still lacks back to what it reads.

    With `K` the linear map of the reader and `L ≥ ‖K‖²` (`conv_norm2`), a step of `Kᵀ(r)/L` on the hidden
    activations minimises a majoriser of `‖r − K·step‖²`: the producer can be refit on
    `hidden_target(pre, Kᵀ(r)/L)` in closed form. The reader is linear: no network is differentiated.

    Args:
        residual: (images, n, h_out, w_out), target − output of the reader.
        kernel: (n, c, kh, kw).
        hidden_hw: (h, w) of the reader's input.

    Returns:
        (images, c, h, w).
    """
    top, left, bottom, right = pads
    images, n, ho, wo = residual.shape
    _, c, kh, kw = kernel.shape
    h, w = hidden_hw
    out = np.zeros((images, c, h + top + bottom, w + left + right), residual.dtype)
    flat = residual.transpose(0, 2, 3, 1).reshape(-1, n)
    for i in range(kh):
        for j in range(kw):
            part = (flat @ kernel[:, :, i, j].astype(residual.dtype)).reshape(images, ho, wo, c).transpose(0, 3, 1, 2)
            y, x = i * dilations[0], j * dilations[1]
            out[
                :,
                :,
                y : y + strides[0] * (ho - 1) + 1 : strides[0],
                x : x + strides[1] * (wo - 1) + 1 : strides[1],
            ] += part
    return out[:, :, top : top + h, left : left + w]


def conv_norm2(kernel: np.ndarray, size: int = 16) -> float:
    """‖K‖², the largest squared singular value of a stride-1 conv (an upper bound for larger strides).

    Exact for circular borders (Sedghi, Gupta, Long, ICLR 2019: the SVD of the kernel's Fourier transform at
    each frequency), which bounds zero-padded ones up to the sampling of `size` × `size` frequencies.
    `kernel`: (n, c, kh, kw).
    """
    spectrum = np.fft.fft2(np.asarray(kernel, dtype=np.float64), (size, size), axes=(2, 3))
    return float(np.square(np.linalg.norm(spectrum.transpose(2, 3, 0, 1), 2, axis=(2, 3)).max()))


# ----------------------------------------------------------------------------------------- elimination


@dataclass(frozen=True)
class Reader:
    """One reader of a channel group, as `eliminate` sees it: only the rows that the group's channels fill.

    Attributes:
        V: (m, m) those rows and columns of `(H + λ̄I)⁻¹`: what else the layer reads may be refit, but never goes.
        W: (m, n) those rows of the weights. Multiply column j by the square root of output j's importance to
            weigh outputs.
        rows: (c, q) where channel i stands in V and W; q is the number of taps (times its copies, behind a
            flatten).
        scale: what a unit of squared error of this reader counts; 1 / ‖T − mean T‖² makes readers comparable.
    """

    V: Array
    W: Array
    rows: NDArray[np.int64]
    scale: float = 1.0

    @classmethod
    def of(cls, H: Array, W: Array, taps: int = 1, scale: float = 1.0, *, lam: float = 1e-4) -> Reader:
        """A reader that the group fills wholly: `H` (c·taps + 1, c·taps + 1), `W` (c·taps + 1, n)."""
        if (len(H) - 1) % taps or len(W) != len(H):
            raise ValueError(f"H {H.shape} and W {W.shape} do not fit channels of {taps} taps and an intercept")
        rows = np.arange(len(H) - 1).reshape(-1, taps)
        return cls(inverse(H, lam)[:-1, :-1], np.asarray(W)[:-1], rows, scale)

    def narrowed(self) -> Reader:
        """The same errors with no more outputs than rows: `W` enters them as `WWᵀ` alone."""
        if self.W.shape[1] <= len(self.W):
            return self
        values, vectors = sl.eigh(self.W @ self.W.T)
        return replace(self, W=vectors * np.sqrt(np.maximum(values, 0)))


def inverse(H: Array, lam: float = 1e-4) -> Array:
    """`(H + λ̄I)⁻¹`, the ridge as in `Ridge`; inputs that are always zero get a row of their own.

    Raises:
        ValueError: not second moments.
    """
    A = np.array(H, dtype=np.float64)
    A[np.diag_indices(len(A))] += penalty(A, max(lam, 1e-12))
    diag = np.diag(A).copy()
    if not (diag > 0).all():
        A[diag <= 0, diag <= 0] = 1.0
    for more in (1e-12, 1e-6, 1e-4, 1e-2):  # products formed in float32 may leave H indefinite by so much
        factor, info = sl.lapack.dpotrf(A + np.diag(more * diag), lower=1)
        if not info:
            break
    else:
        raise ValueError("second moments are not positive definite")
    V, _ = sl.lapack.dpotri(factor, lower=1)
    lower = np.tril(V)
    return np.asfortranarray(lower + np.tril(lower, -1).T)


def eliminate(
    readers: Sequence[Reader],
    *,
    order: Sequence[int] | np.ndarray | None = None,
    step: int = 1,
    keep: int = 0,
) -> tuple[NDArray[np.int64], Array]:
    """Order in which channels go, and the error each width costs when all that stays is refit.

    Backward elimination by exact block OBS. With `g` the `q` rows of a channel in `V = (H + λ̄I)⁻¹`,

        score(g) = Σ_readers scale · tr( W_gᵀ [V_gg]⁻¹ W_g )     squared error added by removing g, rest refit
        W ← W − V_:g [V_gg]⁻¹ W_g          V ← V − V_:g [V_gg]⁻¹ V_g:

    the channel with the lowest score goes (first index on ties), and so on. Channels read by several readers
    add up their scores. Cost O(c · (c·q)² · q) a reader, in place, with BLAS.

    Args:
        readers: one or more readers of the same `c` channels. Weights that are optimal for H and the targets
            (`ridge(H, G)`), or the original ones, whose own output is then the target.
        order: go in this order instead of the one found: the curve of any other criterion.
        step: channels removed at a time (their joint error is exact; within a step the curve is shared out by
            their single scores). 1 up to c·q ≈ 2,500; 4 to 8 above.
        keep: stop when so many channels are left.

    Returns:
        order: (c − keep,) channel indices, first removed first. The best `w` channels are `order[c − w:]`
            for `keep = 0`.
        errors: (c + 1,) `errors[w]` = error with `w` channels left, over that of the full width; NaN below
            `keep`. Falls with `w`; `errors[c] = 0`.
    """
    counts = {len(r.rows) for r in readers}
    if len(counts) != 1:
        raise ValueError(f"readers of one group disagree on its width: {sorted(counts)}")
    c = counts.pop()
    states = [_Elimination(r) for r in readers]
    alive = np.arange(c)
    gone: list[int] = []
    errors = np.full(c + 1, np.nan)
    errors[c] = 0.0
    while len(alive) > keep:
        count = min(step, len(alive) - keep)
        scores = np.sum([s.scores() for s in states], axis=0)
        if order is None:
            local = np.argsort(scores, kind="stable")[:count]
        else:
            local = np.searchsorted(alive, np.asarray(order)[len(gone) : len(gone) + count])
        total = sum(s.remove(local) for s in states)
        share = np.cumsum(scores[local])
        share = share / share[-1] if share[-1] > 0 else np.arange(1, count + 1) / count
        left = len(alive)
        errors[left - count : left] = (errors[left] + total * share)[::-1]
        gone += alive[local].tolist()
        alive = np.delete(alive, local)
    return np.array(gone, dtype=np.int64), errors


class _Elimination:
    """State of one reader: `V` (m, m, Fortran order, updated in place) and `W` (m, n)."""

    def __init__(self, reader: Reader) -> None:
        self.V = np.array(reader.V, dtype=np.float64, order="F")
        self.W = np.array(reader.W, dtype=np.float64)
        self.rows, self.scale = np.array(reader.rows), reader.scale  # alive channel -> its rows in V and W

    def scores(self) -> Array:
        V_gg = self.V[self.rows[:, :, None], self.rows[:, None, :]]  # (alive, q, q)
        W_g = self.W[self.rows]  # (alive, q, n)
        outer = W_g @ W_g.transpose(0, 2, 1)
        return self.scale * np.einsum("gij,gij->g", np.linalg.inv(V_gg), outer)

    def remove(self, local: np.ndarray) -> float:
        rows = self.rows[local].ravel()
        factor, info = sl.lapack.dpotrf(self.V[np.ix_(rows, rows)], lower=1)
        if info:
            raise ValueError("second moments are not positive definite")
        V_r = sl.blas.dtrsm(1.0, factor, self.V[rows], lower=1)  # (r, m), [V_gg]^-1/2 V_g:
        W_r = sl.blas.dtrsm(1.0, factor, self.W[rows], lower=1)  # (r, n)
        self.W -= V_r.T @ W_r
        self.V = sl.blas.dgemm(-1.0, V_r, V_r, beta=1.0, c=self.V, trans_a=1, overwrite_c=1)
        self.rows = np.delete(self.rows, local, axis=0)
        if self.rows.size < 0.85 * len(self.W):  # close the gaps now and then
            at = self.rows.ravel()
            self.V, self.W = np.asfortranarray(self.V[np.ix_(at, at)]), self.W[at]
            self.rows = np.arange(len(at)).reshape(self.rows.shape)
        return self.scale * float(np.square(W_r).sum())


# ------------------------------------------------------------------------------------ other selections


@dataclass(frozen=True)
class Contributions:
    """What each of `c` channels adds to what its readers write, as second moments; readers add up with `+`.

    Attributes:
        gram: (c, c) `⟨Y_i, Y_j⟩`, `Y_i = √scale · (X_i − mean) W_i`: what channel i adds, side by side for all readers.
        square: (c,) `Σ scale · ‖W_i‖²`.
    """

    gram: Array
    square: Array

    def __add__(self, other: Contributions) -> Contributions:
        return Contributions(self.gram + other.gram, self.square + other.square)


def contributions(H: Array, W: Array, rows: NDArray[np.int64], scale: float = 1.0) -> Contributions:
    """Contributions to one reader, `⟨Y_i, Y_j⟩ = scale · tr(W_iᵀ C_ij W_j)` with `C` the centred moments.

    Args:
        H: (d + 1, d + 1) second moments of what the reader reads, intercept last.
        W: (d or d + 1, n) its weights.
        rows: (c, q) where channel i stands in both, as in `Reader`.
        scale: what a unit of squared error of this reader counts.
    """
    at, (c, q) = np.asarray(rows).ravel(), np.shape(rows)
    centred = H[np.ix_(at, at)] - np.outer(H[at, -1], H[at, -1]) / H[-1, -1]
    own = np.asarray(W, dtype=np.float64)[at]
    gram = scale * (centred * (own @ own.T)).reshape(c, q, c, q).sum((1, 3))
    return Contributions((gram + gram.T) / 2, scale * np.square(own).reshape(c, -1).sum(1))


class _Lasso:
    """`min_β ‖Y − Σ β_i Z_i‖² + α‖β‖₁` with `Z_i = Y_i / ‖W_i‖` and `Y = Σ Y_i`, as often as it is asked."""

    def __init__(self, parts: Contributions) -> None:
        norms = np.sqrt(parts.square)
        unit = np.where(norms > 0, norms, 1.0)
        self.width, self.energy = len(norms), np.diag(parts.gram)
        self.cross = parts.gram / np.outer(unit, unit)
        self.gain = parts.gram.sum(1) / unit  # <Z_i, Y>
        self.top = float(np.abs(self.gain).max(initial=0.0))
        # sklearn wants a design too: any X with XᵀX = cross and y with Xᵀy = gain will do
        values, vectors = sl.eigh(self.cross)
        values = np.maximum(values, max(1e-10 * values[-1], 1e-300))
        self.design = np.asfortranarray((np.sqrt(values) * vectors).T)  # (c, c)
        self.y = (vectors.T @ self.gain) / np.sqrt(values)

    def path(self, alphas: Sequence[float] | Array) -> Array:
        """(c, alphas) β; each α a share of the one that kills all, falling."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import lasso_path  # an extra: only this criterion needs it

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what is left of the gap changes no selection
            return lasso_path(
                self.design,
                self.y,
                alphas=np.asarray(alphas) * self.top / self.width,
                precompute=self.cross,
                Xy=self.gain,
                max_iter=2000,
                tol=1e-4,
            )[1]

    def ranked(self, *keys: Array) -> NDArray[np.int64]:
        """Channels, most important first: by the last of the keys, then by those before it, by energy, by index."""
        return np.lexsort((np.arange(self.width), -self.energy, *(-k for k in keys)))


def select_lasso(parts: Contributions, keep: int, *, slack: float = 0.1) -> NDArray[np.int64]:
    """(keep,) channels, sorted, by LASSO on what each contributes (He, Zhang, Sun, ICCV 2017).

        min_β ‖Y − Σ_i β_i Z_i‖² + α‖β‖₁,   Z_i = X_i W_i / ‖W_i‖,   Y = Σ_i X_i W_i  (means removed)

    from moments alone. α doubles from 1e-3 of the α that kills all, until fewer than `keep` are left, then
    bisects until the count lies in [keep, (1 + slack)·keep]; the `keep` largest |β| stay, ties by ⟨Y_i, Y_i⟩.
    Several readers count as one whose outputs stand side by side (ours; the paper has one reader a channel).
    """
    c = len(parts.square)
    if not 0 <= keep <= c:
        raise ValueError(f"cannot keep {keep} of {c} channels")
    lasso = _Lasso(parts) if 0 < keep < c else None
    if lasso is None or lasso.top <= 0:
        return np.arange(keep)
    low, high = 0.0, 1e-3
    best = b = lasso.path([high])[:, 0]
    while np.count_nonzero(b) >= keep and high < 1.0:
        best, low, high = b, high, 2 * high
        b = lasso.path([high])[:, 0]
    for _ in range(30):
        if keep <= np.count_nonzero(best) <= (1 + slack) * keep:
            break
        middle = (low + high) / 2
        b = lasso.path([middle])[:, 0]
        if np.count_nonzero(b) >= keep:
            best, low = b, middle
        else:
            high = middle
    return np.sort(lasso.ranked(np.abs(best))[:keep])


def lasso_order(parts: Contributions, alphas: int = 100) -> NDArray[np.int64]:
    """(c,) channels, first to go first: by the α at which each enters the LASSO path, |β| there on ties.

    One order for all widths, where `select_lasso` is made anew for each; ours.
    """
    lasso = _Lasso(parts)
    if lasso.top <= 0:
        return np.arange(lasso.width)[::-1]
    size = np.abs(lasso.path(np.geomspace(1.0, 1e-4, alphas)))  # (c, alphas)
    first = np.where(size.any(1), (size > 0).argmax(1), alphas)
    there = size[np.arange(lasso.width), np.minimum(first, alphas - 1)]
    return lasso.ranked(there, -first)[::-1]


def similarity(mean: Array, std: Array, corr: Array | None = None) -> Array:
    """(c, c) squared distances of channels modelled as N(mean, std²); the mean over producers is ours to add.

        independent   d²_ij = (β_i − β_j)² + γ_i² + γ_j²
        correlated    d²_ij = (β_i − β_j)² + γ_i² + γ_j² − 2 ρ_ij γ_i γ_j

    After Zhang, Zhao, Ni et al., 2019 (abstract; the metric itself is ours). Zero on the diagonal.

    Args:
        mean, std: (c,) β and |γ| of the BN, or of the pre-activation over the samples.
        corr: (c, c) ρ, measured or the cosine of the kernels; None for the independent form.
    """
    mean, std = np.asarray(mean, float), np.abs(np.asarray(std, float))
    d2 = np.square(mean[:, None] - mean) + np.square(std)[:, None] + np.square(std)
    if corr is not None:
        d2 = d2 - 2 * np.asarray(corr, float) * np.outer(std, std)
    d2 = np.maximum((d2 + d2.T) / 2, 0.0)
    np.fill_diagonal(d2, 0.0)
    return d2


def cluster(
    distance: Array, *, width: int | None = None, height: float | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Average linkage cut at `width` clusters or at `height`; each cluster is kept by its medoid.

    Args:
        distance: (c, c) symmetric, zero diagonal.

    Returns:
        medoids: (w,) sorted channel indices that stay (smallest summed distance; first on ties).
        member_of: (c,) for every channel the position in `medoids` of its cluster.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if (width is None) == (height is None):
        raise ValueError("give either width or height")
    c = len(distance)
    if c == 1:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    tree = linkage(squareform(distance, checks=False), "average")
    if width is not None:
        labels = _cut(tree, c, width)
    else:
        labels = fcluster(tree, height, "distance")
    chosen = []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        chosen.append(inside[distance[np.ix_(inside, inside)].sum(1).argmin()])
    medoids = np.sort(np.array(chosen, dtype=np.int64))
    position = {labels[m]: i for i, m in enumerate(medoids)}
    return medoids, np.array([position[label] for label in labels], dtype=np.int64)


def merge_order(distance: Array) -> tuple[NDArray[np.int64], Array]:
    """One nested order out of the average linkage of `cluster`, and the height at which each channel goes.

    Where two clusters merge, of the two channels that stand for them the one nearer to all members stays.

    Returns:
        order: (c,) channels, first to go first.
        heights: (c,) height at which each channel goes; infinite for the one that never does.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    c = len(distance)
    order, heights = np.zeros(c, np.int64), np.full(c, np.inf)
    members: list[NDArray[np.int64]] = [np.array([i]) for i in range(c)]
    stands = list(range(c))
    tree = linkage(squareform(distance, checks=False), "average") if c > 1 else []
    for k, (a, b, height, _) in enumerate(tree):
        inside = np.concatenate([members[int(a)], members[int(b)]])
        pair = np.sort([stands[int(a)], stands[int(b)]])
        stay = int(distance[np.ix_(pair, inside)].sum(1).argmin())
        members.append(inside)
        stands.append(int(pair[stay]))
        order[k] = pair[1 - stay]
        heights[order[k]] = height
    order[c - 1] = stands[-1]
    return order, heights


def _cut(tree: Array, c: int, width: int) -> NDArray[np.int64]:
    """(c,) labels after exactly c − width merges (ties in height do not merge more than asked for)."""
    parent = np.arange(2 * c - 1)
    for i, (a, b, *_rest) in enumerate(tree[: c - width]):
        parent[int(a)] = parent[int(b)] = c + i
    labels = np.arange(c)
    while (parent[labels] != labels).any():
        labels = parent[labels]
    return labels


def merge_columns(W: np.ndarray, member_of: np.ndarray, medoids: np.ndarray) -> np.ndarray:
    """(n, w, …) reader weights (n, c, …), each cluster's columns added onto its medoid: exact for twins."""
    out = np.zeros((len(medoids), W.shape[0], *W.shape[2:]), W.dtype)
    np.add.at(out, member_of, W.swapaxes(0, 1))
    return out.swapaxes(0, 1)


# ------------------------------------------------------------------------------------------ statistics


def statistics(x: np.ndarray, axes: Iterable[int] = (0, 2, 3)) -> tuple[Array, Array]:
    """Mean and standard deviation over `axes`, float64."""
    axes = tuple(axes)
    x = np.asarray(x, dtype=np.float64)
    return x.mean(axes), x.std(axes)


def match_statistics(
    mean_o: Array, std_o: Array, mean_p: Array, std_p: Array, eps: float = 1e-8
) -> tuple[Array, Array]:
    """Per channel `a = σ_o/σ_p`, `b = μ_o − a μ_p`, (c,) each: `a·y + b` has the original's statistics.

    A channel that has died in the pruned net (σ_p below `eps` of σ_o) keeps a = 1 and only its mean is set.
    """
    alive = std_p > eps * np.maximum(std_o, 1e-30)
    a = np.where(alive, std_o / np.where(alive, std_p, 1.0), 1.0)
    return a, mean_o - a * mean_p
