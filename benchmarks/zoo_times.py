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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import common

import onnxprune
from onnxprune import api
from onnxprune.errors import BudgetError, UnsupportedError
from onnxprune.pipeline import opened as opening
from onnxprune.pipeline import proof as surgery
from onnxprune.samples.user_code import load_function


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
                rows.append((path.name, *[""] * 7, f"declined: {error}"[:120]))
            except Exception as error:
                failed += 1
                rows.append((path.name, *[""] * 7, f"CRASHED: {type(error).__name__}: {error}"[:200]))
            common.say(" ".join(filter(None, rows[-1])))
    print(common.table(HEAD, rows))
    print(f"\n{len(rows)} files, {failed} crashed. {common.footer(time.perf_counter() - begin)}")
    return 1 if failed else 0


HEAD = ("file", "GMACs", "M params", "seconds", "read", "analyse", "cut", "prove", "write or why not")


def measure(source: Path, target: Path, ratio: float, repair: str | None) -> tuple[str, ...]:
    """One file: size and seconds. "read" is parsing, checks and a first run for sizes; "analyse" finds the groups;
    "cut" plans, cuts and repairs; "prove" compares with the masked original; "write" has a run of the file written."""
    began = time.perf_counter()
    with clocked(opening, "find_channels") as analysing, clocked(surgery, "check_surgery") as proving:
        subject = onnxprune.open_model(source)
        opened = time.perf_counter()
        result = api.plan_and_apply(
            subject, onnxprune.Ratio(ratio), onnxprune.Settings(best_effort=True, repair=repair)
        )
        pruned = time.perf_counter()
    result.save(target, force=True)
    done = time.perf_counter()
    size = (f"{result.before.macs / 1e9:.2f}", f"{result.before.params / 1e6:.1f}")
    analysed, proved = sum(analysing), sum(proving)
    read, cut = opened - began - analysed, pruned - opened - proved
    return (*size, *(f"{s:.1f}" for s in (done - began, read, analysed, cut, proved, done - pruned)))


@contextmanager
def clocked(module: ModuleType, name: str) -> Iterator[list[float]]:
    """Seconds of every call of a module's function while the block runs."""
    function, spent = getattr(module, name), list[float]()

    def timed(*args: Any, **rest: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **rest)
        finally:
            spent.append(time.perf_counter() - began)

    setattr(module, name, timed)
    try:
        yield spent
    finally:
        setattr(module, name, function)


if __name__ == "__main__":
    sys.exit(main())
