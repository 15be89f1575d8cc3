"""Channels one by one: exact block elimination, the whole curve of errors.

Hassibi & Stork, NeurIPS 1992, and its block form in OBC / ZipLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.numerics import lapack
from onnxprune.numerics.least_squares import inverse

Array = NDArray[np.float64]

AT_ONCE = 1 << 21
"""Numbers of the weights that are copied at a time where channels are compared."""


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
        """A reader that the group fills wholly.

        Args:
            H: (c·taps + 1, c·taps + 1) second moments of what it reads, intercept last.
            W: (c·taps + 1, n) its weights.
            taps: rows of a channel.
            scale: what a unit of its squared error counts.
            lam: ridge, relative to the mean of the diagonal.
        """
        if (len(H) - 1) % taps or len(W) != len(H):
            raise ValueError(f"H {H.shape} and W {W.shape} do not fit channels of {taps} taps and an intercept")
        rows = np.arange(len(H) - 1).reshape(-1, taps)
        return cls(inverse(H, lam)[:-1, :-1], np.asarray(W)[:-1], rows, scale)

    def narrowed(self) -> Reader:
        """The same errors with no more outputs than rows: `W` enters them as `WWᵀ` alone."""
        if self.W.shape[1] <= len(self.W):
            return self
        if not np.isfinite(self.W).all():
            raise ValueError("weights must be finite")
        values, vectors = np.linalg.eigh(self.W @ self.W.T)
        return replace(self, W=vectors * np.sqrt(np.maximum(values, 0)))


@dataclass(frozen=True)
class Independent:
    """A reader of which only is known what each channel is worth, whatever else stays.

    Attributes:
        energies: (c,) the squared error that each adds by going.
    """

    energies: Array

    @property
    def rows(self) -> NDArray[np.int64]:
        """(c, 1)"""
        return np.arange(len(self.energies))[:, None]


def eliminate(
    readers: Sequence[Reader | Independent],
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
    states = [_Elimination(r) if isinstance(r, Reader) else _Sum(r) for r in readers]
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
    """State of one reader: `V` (m, m, Fortran order, its lower triangle updated in place) and `W` (m, n)."""

    def __init__(self, reader: Reader) -> None:
        self.V, self.W = np.array(reader.V, dtype=np.float64, order="F"), np.array(reader.W, dtype=np.float64)
        self.rows, self.scale = np.array(reader.rows), reader.scale  # alive channel -> its rows in V and W

    def scores(self) -> Array:
        step = max(1, AT_ONCE // (self.rows.shape[1] * self.W.shape[1]))
        return np.concatenate([self._scores(self.rows[at : at + step]) for at in range(0, len(self.rows), step)])

    def _scores(self, rows: NDArray[np.int64]) -> Array:
        i, j = rows[:, :, None], rows[:, None, :]
        V_gg = self.V[np.maximum(i, j), np.minimum(i, j)]  # (channels, q, q)
        W_g = self.W[rows]  # (channels, q, n)
        outer = W_g @ W_g.transpose(0, 2, 1)
        return self.scale * np.einsum("gij,gij->g", np.linalg.inv(V_gg), outer)

    def remove(self, local: np.ndarray) -> float:
        rows = self.rows[local].ravel()
        V_r = np.where(np.arange(len(self.V)) <= rows[:, None], self.V[rows], self.V[:, rows].T)  # (r, m)
        V_r, W_r = np.asfortranarray(V_r), np.asfortranarray(self.W[rows])
        factor = np.asfortranarray(V_r[:, rows])
        if not lapack.potrf(factor):
            raise ValueError("second moments are not positive definite")
        lapack.trsm(factor, V_r)  # [V_gg]^-1/2 V_g:
        lapack.trsm(factor, W_r)
        self.W -= V_r.T @ W_r
        lapack.syrk(V_r, self.V)
        self.rows = np.delete(self.rows, local, axis=0)
        if self.rows.size < 0.85 * len(self.W):  # close the gaps now and then
            at = np.sort(self.rows.ravel())
            self.V, self.W = self.V.T[np.ix_(at, at)].T, self.W[at]  # in Fortran order without another copy
            self.rows = np.searchsorted(at, self.rows)
        return self.scale * float(np.square(W_r).sum())


class _Sum:
    """State of a reader whose channels are independent."""

    def __init__(self, reader: Independent) -> None:
        self.energies = np.array(reader.energies, dtype=np.float64)

    def scores(self) -> Array:
        return self.energies

    def remove(self, local: np.ndarray) -> float:
        gone = float(self.energies[local].sum())
        self.energies = np.delete(self.energies, local)
        return gone
