"""Low-rank factors of a linear layer, by what its data sees: arrays in, arrays out.

A layer `Y = X̃W` with the covariance `S` of what it reads loses `tr (W − Ŵ)ᵀ S (W − Ŵ)` when `Ŵ` stands in for `W`.

    channel  W ≈ A B           A: (c·taps, r), B: (r, n)          a conv of r filters, then 1×1; a matrix as two
    spatial  W ≈ Σ_r V U       V: (c·kh, r),   U: (r, kw, n)      kh×1, then 1×kw

`channel` is exact: with `LLᵀ = S`, the SVD of `LᵀW` has its right vectors from `WᵀSW`, and `A = W V_r, B = V_rᵀ`
(Zhang, Zou, He, Sun, TPAMI 2016). `spatial` takes its first factor from the covariance of what a
column of the kernel sees (the mean over the columns; ours) and the second by least squares under all of `S`; both
then come out for every rank at once. Grouped convs are `parts` of one common rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sl
from numpy.typing import NDArray

from onnxprune.numerics.second_moments import covariance

Array = NDArray[np.float64]
TINY = 1e-7
"""Ridge relative to the mean variance: directions that the samples lack are not given away where rank is to spare."""


@dataclass(frozen=True)
class Split:
    """A layer's factors at any rank up to `most`.

    Attributes:
        left: (parts, d, most) first factor; at rank r its first r columns.
        right: (parts, most, q, n) second factor of the channel kind, q = 1; for the spatial kind it depends on the
            rank and is made from `gram` and `cross`.
        gram, cross: None, or (parts, most·q, most·q) and (parts, most·q, n): normal equations of the second factor.
        errors: (most + 1,) share of the output's variance that is lost at every rank; 1 at rank 0.
        taps: q, kernel columns that the second factor covers.
    """

    left: Array
    right: Array | None
    gram: Array | None
    cross: Array | None
    errors: Array
    taps: int = 1

    @property
    def most(self) -> int:
        return self.left.shape[2]

    def factors(self, rank: int) -> tuple[Array, Array]:
        """(parts, d, rank) and (parts, rank·taps, n), of like size column by column and row by row."""
        parts, q = len(self.left), self.taps
        left = self.left[:, :, :rank]
        if self.right is not None:
            right = self.right[:, :rank]
        else:
            assert self.gram is not None and self.cross is not None
            at = rank * q
            solved = [sl.solve(g[:at, :at], k[:at], assume_a="pos") for g, k in zip(self.gram, self.cross, strict=True)]
            right = np.stack(solved).reshape(parts, rank, -1)
        a, b = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=2)  # (parts, rank)
        scale = np.sqrt(np.where((a > 0) & (b > 0), b / np.where(a > 0, a, 1.0), 1.0))
        left = left * scale[:, None]
        right = right / scale[:, :, None]
        return left, right.reshape(parts, rank * q, -1)

    def product(self, rank: int) -> Array:
        """(parts, inputs, n): the matrix that the factors stand for."""
        left, right = self.factors(rank)
        parts, q = len(left), self.taps
        whole = np.einsum("par,prjn->pajn", left, right.reshape(parts, rank, q, -1), optimize=True)
        return whole.reshape(parts, left.shape[1] * q, -1)


def positive_definite(S: Array) -> Array:
    """The matrices (parts, d, d) with the least of a few ridges that makes them positive definite: sums in float32
    leave small eigenvalues of either sign. Of inputs that hardly vary they leave nothing else, and there eigenvalues
    below the ridge are raised to it."""
    out = np.empty_like(S)
    for k, one in enumerate(S):
        mean = max(float(np.trace(one)) / len(one), 1e-30)
        for lam in (TINY, 1e2 * TINY, 1e4 * TINY, 1.0):
            out[k] = (one + one.T) / 2
            out[k][np.diag_indices(len(one))] += lam * mean
            if not sl.lapack.dpotrf(out[k], lower=1)[1]:
                break
        else:
            values, vectors = sl.eigh((one + one.T) / 2)
            raised = np.maximum(values, TINY * max(float(np.abs(values).max()), 1e-30))
            out[k] = (vectors * raised) @ vectors.T
    return out


def covariances(H: Array) -> Array:
    """(parts, d, d) out of second moments (parts, d + 1, d + 1) with the intercept last."""
    return np.stack([covariance(part) for part in H])


def channel_split(W: Array, S: Array, most: int | None = None) -> Split:
    """Factors of `W` (parts, d, n) under the covariance `S` (parts, d, d)."""
    parts, d, n = W.shape
    most = min(d, n) if most is None else min(d, n, most)
    S = positive_definite(S)
    left, right, lost = np.empty((parts, d, most)), np.empty((parts, most, n)), np.zeros((2, most + 1))
    for k in range(parts):
        values, vectors = _right_vectors(W[k], S[k], most)
        left[k], right[k] = W[k] @ vectors, vectors.T
        lost[0] += np.append(0.0, np.cumsum(values[:most]))
        lost[1] += values.sum()
    return Split(left, right, None, None, _lost(*lost))


def _right_vectors(W: Array, S: Array, most: int) -> tuple[Array, Array]:
    """(all squared singular values of S^½ W, falling; (n, most) right singular vectors), on its smaller side: a
    classifier of thousands of classes reads a hundred inputs."""
    d, n = W.shape
    if n <= d:
        values, vectors = sl.eigh(W.T @ S @ W)
        return np.maximum(values[::-1], 0.0), vectors[:, ::-1][:, :most]
    half = sl.cholesky(S, lower=True).T @ W  # (d, n)
    values, vectors = sl.eigh(half @ half.T)
    values = np.maximum(values[::-1], 0.0)
    return values, sl.qr(half.T @ vectors[:, ::-1][:, :most], mode="economic")[0]


def spatial_split(W: Array, S: Array, kernel: tuple[int, int], most: int | None = None) -> Split:
    """Factors of `W` (parts, c·kh·kw, n) under `S` (parts, c·kh·kw, c·kh·kw)."""
    parts, d, n = W.shape
    kw = kernel[1]
    tall = d // kw  # c·kh
    most = min(tall, kw * n) if most is None else min(tall, kw * n, most)
    S = positive_definite(S)
    left, lost = np.empty((parts, tall, most)), np.zeros((2, most + 1))
    gram, cross = np.empty((parts, most * kw, most * kw)), np.empty((parts, most * kw, n))
    for k in range(parts):
        seen = S[k].reshape(tall, kw, tall, kw)
        column = np.einsum("ajbj->ab", seen) / kw
        M = W[k].reshape(tall, kw * n)
        left[k] = _first(M, column, most)
        half = np.tensordot(seen, left[k], (2, 0))  # (tall, kw, kw, most): a, j, j', s
        G = np.tensordot(left[k], half, (0, 0)).transpose(0, 1, 3, 2)  # r, j, s, j'
        gram[k] = positive_definite(G.reshape(1, most * kw, most * kw))[0]
        SW = S[k] @ W[k]
        cross[k] = np.tensordot(left[k], SW.reshape(tall, kw, n), (0, 0)).reshape(most * kw, n)
        explained = np.square(sl.solve_triangular(sl.cholesky(gram[k], lower=True), cross[k], lower=True)).sum(1)
        lost[0] += np.append(0.0, np.cumsum(explained.reshape(most, kw).sum(1)))
        lost[1] += float(np.vdot(W[k], SW))
    return Split(left, None, gram, cross, _lost(*lost), kw)


def _first(M: Array, S: Array, most: int) -> Array:
    """(tall, most) first factor, columns of unit variance, in falling order of what they explain."""
    half = sl.cholesky(S, lower=True)
    U, _, _ = sl.svd(half.T @ M, full_matrices=False)
    return sl.solve_triangular(half, U[:, :most], lower=True, trans=1)


def _lost(kept: Array, total: Array) -> Array:
    """(most + 1,) share lost at every rank, never rising."""
    share = np.maximum(1.0 - kept / np.maximum(total[-1], 1e-300), 0.0)
    return np.minimum.accumulate(share)
