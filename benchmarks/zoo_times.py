"""Seconds that each file takes without samples: read, plan, cut, prove, repair by random inputs, write.

    python benchmarks/zoo_times.py FILE.onnx ... [--fill hydrate.py] [--repair none]

`--fill` names a file whose `hydrate(path, out)` writes a copy with weights, for files that are kept without them. A
file that is declined with a reason is listed with it; any other error ends the run with exit code 1, so this is a test
as well. Times are wall-clock seconds in one process, imports left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import common

import onnxprune
from onnxprune import api
from onnxprune.errors import BudgetError, UnsupportedError
from onnxprune.measure.calibration import load_function


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--fill", type=Path, metavar="FILE.py")
    parser.add_argument("--ratio", type=float, default=0.5, metavar="R")
    parser.add_argument(
        "--repair", metavar="NAME", help="none: analysis, cut and proof alone (default: as the tool does)"
    )
    args = parser.parse_args()
    begin, rows, failed = time.perf_counter(), [], 0
    fill = load_function(f"{args.fill}:hydrate")[0] if args.fill else None
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        for path in args.files:
            source, target = path, Path(folder, "pruned.onnx")
            if fill:
                source = Path(folder, "model.onnx")
                fill(str(path), str(source))
            try:
                rows.append((path.name, *measure(source, target, args.ratio, args.repair)))
            except (UnsupportedError, BudgetError) as error:
                rows.append((path.name, "", "", "", "", "", f"declined: {error}"[:120]))
            except Exception as error:
                failed += 1
                rows.append((path.name, "", "", "", "", "", f"CRASHED: {type(error).__name__}: {error}"[:200]))
            common.say(" ".join(filter(None, rows[-1])))
    print(common.table(("file", "GMACs", "M params", "seconds", "read", "prune", "write or why not"), rows))
    print(f"\n{len(rows)} files, {failed} crashed. {common.footer(time.perf_counter() - begin)}")
    return 1 if failed else 0


def measure(source: Path, target: Path, ratio: float, repair: str | None) -> tuple[str, ...]:
    """One file: size and seconds."""
    began = time.perf_counter()
    subject = onnxprune.open_model(source)
    opened = time.perf_counter()
    result = api.plan_and_apply(subject, onnxprune.Settings(ratio=ratio, best_effort=True, repair=repair))
    pruned = time.perf_counter()
    result.save(target, force=True)
    done = time.perf_counter()
    size = (f"{result.before.macs / 1e9:.2f}", f"{result.before.params / 1e6:.1f}")
    parts = (done - began, opened - began, pruned - opened, done - pruned)
    return (*size, *(f"{s:.1f}" for s in parts))


if __name__ == "__main__":
    sys.exit(main())
