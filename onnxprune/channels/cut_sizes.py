"""What every activation measures once some channels have gone."""

from __future__ import annotations

import numpy as np

from onnxprune.channels.groups import Channels


class CutSizes:
    """The sizes of every activation once the units that are not alive have gone."""

    def __init__(self, channels: Channels, alive: np.ndarray):
        self.channels, self.alive, self.before = channels, alive, channels.derived
        self.lines: dict[str, tuple[int, np.ndarray]] = {}
        self.shapes = dict(channels.shapes)
        for name, kept in zip(channels.lines, self._kept_counts(), strict=True):
            axis, line = channels.lines[name]
            if kept < len(line):
                self.lines[name] = (axis, line)
                shape = list(self.shapes[name])
                shape[axis] = kept
                self.shapes[name] = tuple(shape)

    def _kept_counts(self) -> list[int]:
        """How many channels of every line stay."""
        lines = [line for _, line in self.channels.lines.values()]
        if not lines:
            return []
        ends = np.cumsum([len(line) for line in lines])
        total = np.concatenate([[0], np.cumsum(self.alive[np.concatenate(lines)])])
        return np.diff(total[np.concatenate([[0], ends])]).tolist()  # type: ignore[no-any-return]

    def changed(self, name: str) -> bool:
        return name in self.lines

    def kept(self) -> dict[str, tuple[int, np.ndarray]]:
        """Activation -> (axis, (length,) bool: what stays), for those that lose channels."""
        return {name: (axis, self.alive[line]) for name, (axis, line) in self.lines.items()}
