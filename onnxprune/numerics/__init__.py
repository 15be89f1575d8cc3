"""Dense linear algebra of pruning: arrays in, arrays out.

These modules know second moments, least squares and channel selection. They do not know graphs, operators,
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

from onnxprune.numerics.elimination import Independent, Reader, eliminate
from onnxprune.numerics.feedback import round_with_feedback
from onnxprune.numerics.least_squares import FEW, Ridge, Ridges, inverse, penalty, ridge, shrunk_covariance
from onnxprune.numerics.second_moments import SecondMoments, covariance, patches, sample_positions
from onnxprune.numerics.selection import (
    Contributions,
    cluster,
    contributions,
    lasso_order,
    merge_order,
    select_lasso,
    similarity,
)
from onnxprune.numerics.through_curve import Table
from onnxprune.numerics.through_relu import propagate_target, relu_target

__all__ = [
    "FEW",
    "Contributions",
    "Independent",
    "Reader",
    "Ridge",
    "Ridges",
    "SecondMoments",
    "Table",
    "cluster",
    "contributions",
    "covariance",
    "eliminate",
    "inverse",
    "lasso_order",
    "merge_order",
    "patches",
    "penalty",
    "propagate_target",
    "relu_target",
    "ridge",
    "round_with_feedback",
    "sample_positions",
    "select_lasso",
    "shrunk_covariance",
    "similarity",
]
