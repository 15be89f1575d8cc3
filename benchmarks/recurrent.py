"""What can go from files with recurrent layers: with the rules of these, and as if they had none.

    python benchmarks/recurrent.py FILE.onnx ... [--input-shape NAME=1,1,64,160]

Each file is cut as far as --ratio says, by channels alone and without samples, twice: the second time the rules of
LSTM, GRU, RNN and DynamicQuantizeLSTM are taken out of the table of rules, so that all that these touch stays whole. A
cell is the share of the MACs that went. Both cuts are proved against the masked original. Exit code 1 where one is not
exact.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import common
import onnx

import onnxprune
from onnxprune.channels.rules.registry import RULES
from onnxprune.errors import PruneError

RECURRENT = [("", "LSTM"), ("", "GRU"), ("", "RNN"), ("com.microsoft", "DynamicQuantizeLSTM")]


def share(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], ratio: float) -> tuple[str, bool]:
    """(the share of the MACs that goes, or why none; whether the cut is exact)."""
    try:
        result = onnxprune.prune(
            model, ratio, input_shapes=shapes or None, methods="channels", repair="none", round_to=1, best_effort=True
        )
    except PruneError as error:
        return str(error)[:80], True
    return f"{result.macs_removed:.1%}", result.surgery is not None and result.surgery.exact


def line(path: Path, shapes: dict[str, tuple[int, ...]], ratio: float) -> tuple[list[str], bool]:
    """(one row of the table, whether both cuts are exact)."""
    model = onnx.load(path)
    count = sum((n.domain, n.op_type) in RECURRENT for n in model.graph.node)
    after, exact = share(model, shapes, ratio)
    kept = {key: RULES.pop(key) for key in RECURRENT}
    try:
        before, also = share(model, shapes, ratio)
    finally:
        RULES.update(kept)
    return [path.stem, str(count), before, after], exact and also


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--ratio", type=float, default=0.99, help="share of the MACs that is to go (0.99)")
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME=D,D,...")
    args = parser.parse_args()
    shapes = {name: tuple(map(int, sizes.split(","))) for name, sizes in (s.split("=") for s in args.input_shape)}
    begin, rows, fine = time.perf_counter(), [], True
    for path in args.files:
        row, exact = line(path, shapes, args.ratio)
        rows.append(row)
        fine &= exact
        common.say(" ".join(row))
    print(common.table(["file", "recurrent layers", "without their rules", "with them"], rows))
    print(common.footer(time.perf_counter() - begin))
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
