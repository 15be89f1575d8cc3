"""Does `bench` claim a change where there is none? A model against itself, and against other weights, again and again.

Every run opens its own sessions, as a run of `onnxprune bench` does. "Other weights" is a copy of the file with every
weight moved by one percent: the same work, so the same time. At least 19 of 20 must say "no measurable change".
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import HERE, say
from onnx import numpy_helper

import onnxprune
from onnxprune.runtime.install import versions

SAME = "no measurable change"
MODEL = HERE / "models" / "resnet20_fmnist.onnx"


def other_weights(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """A copy with every floating-point weight moved by one percent at random: same shapes, same operators."""
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        w = numpy_helper.to_array(tensor)
        if w.dtype.kind == "f":
            moved = w * (1 + 0.01 * rng.standard_normal(w.shape))
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(w.dtype), tensor.name))
    return copy


def measure(path: Path, runs: int, **options: Any) -> list[dict[str, Any]]:
    """One row a run and kind: what `bench` says of the file against itself and against other weights."""
    model, rows = onnx.load(path), []
    for run in range(runs):
        names = ["baseline", "itself", "other weights"]
        models = [model, model, other_weights(model, run)]
        result = onnxprune.bench(models, names=names, seed=run, **options)
        for c in result.comparisons:
            row = {"run": run, "against": c.candidate, "verdict": c.verdict, "speedup": c.speedup}
            rows.append(row | {"low": c.low, "high": c.high, "noise": c.noise, "interrupted": result.interrupted})
            say(f"{run + 1}/{runs} {c.candidate}: {c.speedup:.3f}x [{c.low:.3f}, {c.high:.3f}], {c.verdict}")
    return rows


def table(rows: Sequence[dict[str, Any]], runs: int) -> str:
    """Markdown: how many runs of each kind see no change, and how far the worst of them was from 1."""
    lines = [f'| against | "{SAME}" | median ratio: least–greatest | widest noise floor |', "|---|---|---|---|"]
    for kind in dict.fromkeys(r["against"] for r in rows):
        own = [r for r in rows if r["against"] == kind]
        ratios = [r["speedup"] for r in own]
        right = sum(r["verdict"] == SAME for r in own)
        floor = max((r["noise"] for r in own), key=lambda n: n[1])
        lines.append(
            f"| {kind} | {right} of {runs} | {min(ratios):.3f}–{max(ratios):.3f} | {floor[0]:.3f}–{floor[1]:.3f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every run, a line each")
    args = parser.parse_args(argv)
    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    rows = measure(args.model, args.runs, rounds=args.rounds, batch=args.batch, threads=args.threads)
    after = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    about = versions()
    print(table(rows, args.runs))
    how = f"batch {args.batch}, {args.threads} thread{'s' * (args.threads > 1)}, {args.rounds} rounds"
    print(
        f"\n{args.model.name}, {how}; "
        f"load {before:.1f} before, {after:.1f} after; {about['cpu']}, onnxruntime {about['onnxruntime']}"
    )
    if args.json:
        args.json.write_text("".join(json.dumps(row | about) + "\n" for row in rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
