"""Producer repair: the layer in front of a refitted one learns what its reader still lacks.

A refit of `R` in `x → P → ReLU → R → y` can only mix the channels that `P` happens to make. So the two take turns:
what `R` still lacks is handed back through `R`, which is linear, to the hidden activations; `P` is refit by least
squares to the hidden activations so moved, where they are on; then `R` is refit again. No network is
differentiated: every move is one linear solve. A round that does not lower the error of the pair is not kept.

Ours; after the alternating reconstruction of Zhang, Zou, He, Sun (TPAMI 2016). Majorise-minimise would divide the
move by ‖R‖² for all channels; here it is divided by R's Gram matrix over channels, with the length of the move
halved until the error falls, which takes a few rounds instead of dozens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune import numerics, parallel
from onnxprune.measure.designs import Design, rows_of

Clip = tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """A producer and its reader on some whole samples, all float32.

    Attributes:
        producer, reader: the layers; both with one part.
        x: what the producer reads, a list of batches.
        hidden_shape: (channels, *spatial) between the two.
        clip: bounds of the activation in between.
        goal: gives, for what the reader writes now (rows, n), the targets of its next solve (rows, n).
        anchor: (inputs + 1, outputs) of the producer as it is.
    """

    producer: Design
    reader: Design
    x: Sequence[np.ndarray]
    hidden_shape: tuple[int, ...]
    clip: Clip
    goal: Callable[[np.ndarray], np.ndarray]
    error: Callable[[np.ndarray], float]

    def repair(self, A: np.ndarray, B: np.ndarray, *, rounds: int, lam: float) -> tuple[np.ndarray, np.ndarray]:
        """Better weights (inputs + 1, outputs) of the producer and of the reader, starting from `A` and `B`."""
        read = np.concatenate([self.producer.rows_read(x, None) for x in self.x])
        solver = numerics.Ridge(_second(read), lam)
        pre = _write(read, A)
        rows = self._reader_rows(pre)
        out = _write(rows, B)
        best, length = self.error(out), 1.0
        for _ in range(rounds):
            step = self._lacking(self.goal(out) - out, B)
            while True:
                target = self._moved(pre, length * step)
                A_new = solver.solve(_products(read, target), A)
                pre_new = _write(read, A_new)
                rows_new = self._reader_rows(pre_new)
                B_new = numerics.Ridge(_second(rows_new), lam).solve(_products(rows_new, self.goal(out)), B)
                out_new = _write(rows_new, B_new)
                error = self.error(out_new)
                if error < best or length < 0.1:
                    break
                length /= 2
            if error >= best:
                break
            gain, best = best - error, error
            A, B, pre, rows, out = A_new, B_new, pre_new, rows_new, out_new
            if gain < 3e-3 * best:
                break
        return A, B

    def _moved(self, pre: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Targets of the producer: units that are inside the bounds move, the others stay where they are."""
        (low, high), out = self.clip, np.empty_like(pre)

        def piece(at: slice) -> None:
            inside = (pre[at] > low) & (pre[at] < high)
            out[at] = np.where(inside, np.clip(pre[at] + step[at], low, high), pre[at])

        parallel.pieces(piece, len(pre))
        return out

    def _reader_rows(self, pre: np.ndarray) -> np.ndarray:
        hidden = np.clip(pre, *self.clip)
        return self.reader.rows_read(self._as_map(hidden), None)

    def _as_map(self, rows: np.ndarray) -> np.ndarray:
        """(images, channels, *spatial) from (rows, channels)."""
        channels, *spatial = self.hidden_shape
        return np.moveaxis(rows.reshape(-1, *spatial, channels), -1, 1)

    def _lacking(self, residual: np.ndarray, B: np.ndarray) -> np.ndarray:
        """(rows of the producer, channels): the residual handed back through the reader, over its Gram matrix."""
        taps, channels = self.reader.taps, self.hidden_shape[0]
        kernel = B[:-1].reshape(channels, taps, -1)
        gram = np.einsum("ctn,dtn->cd", kernel, kernel)
        gram[np.diag_indices(channels)] += 0.05 * np.trace(gram) / channels + 1e-12
        if self.reader.conv is None:
            back = parallel.product(residual, B[:-1].T.astype(np.float32))
        else:
            back = rows_of(self._transposed(residual, B), 1, None)
        return parallel.product(back, np.linalg.inv(gram).astype(np.float32))

    def _transposed(self, residual: np.ndarray, B: np.ndarray) -> np.ndarray:
        given = self.reader.conv
        assert given is not None
        spatial = self.hidden_shape[1:]
        out = [
            (s + a + b - ((k - 1) * d + 1)) // step + 1
            for s, a, b, k, d, step in zip(
                spatial, given["pads"][:2], given["pads"][2:], given["kernel"], given["dilations"], given["strides"],
                strict=True,
            )
        ]  # fmt: skip
        maps = np.moveaxis(residual.reshape(-1, *out, residual.shape[1]), -1, 1)
        kernel = B[:-1].T.reshape(-1, self.hidden_shape[0], *given["kernel"])
        return numerics.propagate_target(
            maps, kernel, hidden_hw=spatial, strides=given["strides"], pads=given["pads"], dilations=given["dilations"]
        )


def _second(x: np.ndarray) -> np.ndarray:
    """XᵀX with the intercept last, float64."""
    return numerics.SecondMoments.of(x, x[:, :0]).H


def _products(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.vstack([parallel.product(x.T, target), target.sum(axis=0, dtype=np.float64)])


def _write(x: np.ndarray, W: np.ndarray) -> np.ndarray:
    W = W.astype(np.float32)
    out = parallel.product(x, W[:-1])
    out += W[-1]
    return out
