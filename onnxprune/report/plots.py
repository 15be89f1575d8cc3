"""What every plot shares: matplotlib, an extra that is asked for only when a plot is, and bytes for a file.

Knows no result; the same figure gives the same bytes.
"""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.errors import UsageError
from onnxprune.report.terminal import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
BASE, GREY = "#1f6fb2", "#888888"


def require(path: str | Path) -> None:
    """Refuse a plot before the work is done.

    Raises:
        UsageError: the extra is missing, or the name does not end as a plot that we make.
    """
    if Path(path).suffix.lower().lstrip(".") not in FORMATS:
        raise UsageError(f"{path}: a plot is a .svg or a .png; choose such a name")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib - pip install matplotlib")


def new(width: float, height: float) -> Figure:
    """An empty figure, in inches, outside pyplot: nothing global, no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def label_rows(ax: Axes, names: list[str]) -> None:
    """Names of rows, the first on top. A name from a file is shown, not read as a formula."""
    ax.set_yticks(range(len(names)), [shortened(n) for n in names])
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
    ax.set_ylim(len(names) - 0.5, -0.5)


def shortened(name: str, most: int = 40) -> str:
    """Both ends of a long name."""
    text = plain(name)
    return text if len(text) <= most else f"{text[: most // 3]}…{text[-(most - most // 3 - 1) :]}"


def encoded(figure: Figure, path: str | Path) -> bytes:
    """The figure in the format of that name."""
    from matplotlib import rc_context

    suffix = Path(path).suffix.lower().lstrip(".")
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "onnxprune", "svg.fonttype": "none"}):
        figure.savefig(out, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else {})
    return out.getvalue()
