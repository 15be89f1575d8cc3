"""Distillation without labels: top-1 of the Fashion-MNIST nets after the refit alone and after `--repair distill`.

    python benchmarks/distill.py --nets resnet20 --ratios 0.8,0.9
    python benchmarks/distill.py --nets mbv2 --ratios 0.5 --validate
    python benchmarks/distill.py --nets resnet20 --ratios 0.8 --methods channels,blocks,rank --seeds 3

2,048 unlabelled training images, of which a quarter is held out for the fidelity check and an eighth of the rest
chooses the best parameters. `--validate` scores the last 5,000 training images instead of the test images: for tuning.
Training time is that of the process's one thread (CPU seconds): on a busy machine the wall clock says nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    SAMPLES,
    Cache,
    Fashion,
    baseline,
    code_digest,
    file_digest,
    find_models,
    footer,
    macs,
    numbers,
    options,
    say,
    spread,
    table,
    top1,
    words,
    write_lines,
)

import onnxprune
from onnxprune import api
from onnxprune.pipeline.settings import Settings

IMAGES = 4 * SAMPLES


def main() -> int:
    parser = options(__doc__, "distill.jsonl")
    parser.add_argument("--nets", type=words, default=("resnet20", "mbv2"), metavar="LIST")
    parser.add_argument("--ratios", type=numbers, default=(0.5, 0.8, 0.9), metavar="LIST")
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--epochs", type=int, default=70, metavar="N")
    parser.add_argument("--augment", type=words, default=("flip", "shift=2", "mixup=0.5"), metavar="LIST")
    parser.add_argument("--methods", type=words, metavar="LIST", help="kinds of edits (the tool's default)")
    parser.add_argument("--validate", action="store_true", help="score the last 5,000 training images")
    args = parser.parse_args()
    data, begin = Fashion(), time.perf_counter()
    if args.validate:
        data.validate()
    cache, lines, rows = Cache(args.cache), [], []
    for name, path in find_models(args.nets, args.models).items():
        own = top1(path, data) if args.validate else baseline(path, data, cache)
        for ratio in args.ratios:
            found = [measure(cache, path, data, ratio, seed, args) for seed in range(args.seeds)]
            lines += found
            rows.append(
                (
                    name,
                    f"{100 * own:.2f}",
                    f"−{100 * np.mean([r['removed'] for r in found]):.0f}%",
                    spread([r["refit"] for r in found], 2),
                    spread([r["distill"] for r in found], 2),
                    f"{np.mean([r['cpu_s'] for r in found]):.0f}",
                )
            )
            say(" ".join(rows[-1]))
    print(table(("net", "original", "MACs", "refit", "distill", "CPU s"), rows))
    scored = "the last 5,000 training images" if args.validate else f"{len(data.x):,} test images"
    print(f"\nScored on {scored}; {args.epochs} epochs, {', '.join(args.augment) or 'no augmentation'}.")
    print(footer(time.perf_counter() - begin))
    write_lines(lines, args.json)
    return 0


def measure(cache: Cache, path: Path, data: Fashion, ratio: float, seed: int, args: Any) -> dict[str, Any]:
    """One net, ratio and seed."""
    key = {"benchmark": "distill", "model": file_digest(path), "ratio": ratio, "seed": seed, "epochs": args.epochs,
           "augment": list(args.augment), "scored": len(data.x), "methods": args.methods,
           "code": code_digest()}  # fmt: skip

    def make() -> dict[str, Any]:
        subject = onnxprune.open_model(path, calibration=data.calibration(seed, IMAGES))
        settings = {"seed": seed, "threads": 1, "methods": args.methods}
        plan = api.make_plan(subject, onnxprune.Ratio(ratio), Settings(**settings))
        refitted = api.apply_plan(subject, plan, Settings(**settings, repair="refit")).model
        began = time.process_time()
        how = Settings(**settings, repair="distill", epochs=args.epochs, augment=tuple(args.augment))
        distilled = api.apply_plan(subject, plan, how).model
        took = time.process_time() - began
        return {
            "removed": 1 - macs(distilled) / macs(path),
            "refit": top1(refitted, data),
            "distill": top1(distilled, data),
            "cpu_s": took,
        }

    return cache.get(key, make)


if __name__ == "__main__":
    sys.exit(main())
