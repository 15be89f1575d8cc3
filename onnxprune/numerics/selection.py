"""Channels all at once: LASSO (He, Zhang, Sun, ICCV 2017) and clusters of similar ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sl
from numpy.typing import NDArray

Array = NDArray[np.float64]


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
