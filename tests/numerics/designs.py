"""Made-up layers: what they read and what they should write, and least squares by another way."""

import numpy as np


def design(rows=400, c=6, taps=1, n=5, seed=0, mix=True):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, c * taps)) + 0.5
    if mix:
        x = x @ (np.eye(c * taps) + 0.3 * rng.normal(size=(c * taps, c * taps)))
    y = x @ rng.normal(size=(c * taps, n)) + rng.normal(size=n) + 0.1 * rng.normal(size=(rows, n))
    return x, y


def ones(x):
    return np.c_[x, np.ones(len(x))]


def lstsq_error(x, y):
    X = ones(x)
    return float(np.square(y - X @ np.linalg.lstsq(X, y, rcond=None)[0]).sum())
