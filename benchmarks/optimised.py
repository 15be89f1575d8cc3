"""What can go from a file as it was exported, and from the same file behind optimisers: all of them should be equal.

    python benchmarks/optimised.py FILE.onnx ... [--fill hydrate.py]

Each file is cut as far as --ratio says, by channels alone and without samples, and again as onnxslim, onnxsim and ONNX
Runtime's basic and extended levels leave it. A cell is the share of the MACs that went. `--fill` as in zoo_times.py.
Exit code 1 where an optimised file gives up less (by more than two points) or is refused. An optimiser that fails, or
is not installed, is said to.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import onnx
import onnxruntime as ort

import onnxprune
from onnxprune.errors import PruneError
from onnxprune.samples.user_code import load_function

LESS = 0.02


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(model)


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.simplify(model)[0]


def by_runtime(level: ort.GraphOptimizationLevel) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = level
            options.optimized_model_filepath = str(Path(folder, "model.onnx"))
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)

    return optimised


OPTIMISERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxslim": slim,
    "onnxsim": simplified,
    "basic": by_runtime(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    "extended": by_runtime(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--fill", type=Path, metavar="FILE.py")
    parser.add_argument("--ratio", type=float, default=0.9, metavar="R")
    args = parser.parse_args()
    begin, rows, worse = time.perf_counter(), [], 0
    fill = load_function(f"{args.fill}:hydrate")[0] if args.fill else None
    for path in args.files:
        model = fill(str(path), None) if fill else onnx.load(path)
        told, less = compared(model, args.ratio)
        worse += less
        rows.append((path.name, *told))
        common.say(" ".join(rows[-1]))
    print(common.table(("file", "as exported", *OPTIMISERS), rows))
    print(f"\n{len(rows)} files, {worse} of them give up less. {common.footer(time.perf_counter() - begin)}")
    return 1 if worse else 0


def compared(model: onnx.ModelProto, ratio: float) -> tuple[list[str], bool]:
    """(what went from the file and from each optimised one, whether any gives up less)."""
    try:
        plain = share(model, ratio)
    except PruneError as error:
        return [f"declined: {error}"[:80], *("" for _ in OPTIMISERS)], False
    told, less = [f"{plain:.1%}"], False
    for optimise in OPTIMISERS.values():
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        try:
            other = optimise(copy)
        except Exception as error:
            told.append(f"none made: {error}"[:60])
            continue
        try:
            found = share(other, ratio)
        except PruneError as error:
            told.append(f"declined: {error}"[:80])
            less = True
        else:
            told.append(f"{found:.1%}")
            less |= found < plain - LESS
    return told, less


def share(model: onnx.ModelProto, ratio: float) -> float:
    """The share of the MACs that goes."""
    found = onnxprune.prune(model, ratio, best_effort=True, methods=("channels",), repair="none", metadata=False)
    return 1 - found.after.macs / found.before.macs


if __name__ == "__main__":
    sys.exit(main())
