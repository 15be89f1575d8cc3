"""Pruning while training: top-1 of a Fashion-MNIST net before and after the cut of each method, on labelled images.

    python benchmarks/training.py --nets resnet20 --ratio 0.5 --steps 800
    python benchmarks/training.py --only trp --validate

`trained` is the network at its full size after training, `cut` the finished file: a method promises that the two
are the same. `change` is the largest change of a logit. `trp plain` is the same training without the method, cut to
the same ranks at the end. The recipe is `fmnist_recipe.py`; sizes are decided on 512 unlabelled images. `--validate`
scores the last 5,000 training images instead of the test images.
Needs torch. Training time is that of one thread, in CPU seconds.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np

import onnxprune
from onnxprune.graph.runtime import open_session
from onnxprune.training import METHODS, TrainSettings, finish, prepare

PLAIN = {"trp": {"project": False}}
"""What turns a method off."""
FIGURES = ("macs", "params", "trained", "cut", "change", "cpu_s")


def main() -> int:
    parser = common.options(__doc__, "training.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=("resnet20",), metavar="LIST")
    add("--ratio", type=float, default=0.5, metavar="R", help="of the MACs; gates: of the parameters (0.5)")
    add("--steps", type=int, default=800, metavar="N", help="of 64 images (800)")
    add("--seeds", type=int, default=1, metavar="N")
    add("--only", type=common.words, default=METHODS, metavar="LIST", help="of csgd,gsm,trp,gates")
    add("--no-plain", action="store_true", help="leave out training without the method")
    add("--validate", action="store_true", help="score the last 5,000 training images")
    args = parser.parse_args()
    data, begin, cache = common.Fashion(), time.perf_counter(), common.Cache(args.cache)
    if args.validate:
        data.validate()
    lines, rows = [], []
    for net, path in common.find_models(args.nets, args.models).items():
        own = common.top1(path, data) if args.validate else common.baseline(path, data, cache)
        for method in args.only:
            ways = ["", "plain"] if method in PLAIN and not args.no_plain else [""]
            for way in ways:
                found = [measure(cache, path, data, method, seed, args, plain=bool(way)) for seed in range(args.seeds)]
                lines += found
                mean = {k: float(np.mean([f[k] for f in found])) for k in FIGURES}
                rows.append((net, f"{100 * own:.2f}", f"{method} {way}".strip(), f"−{100 * mean['macs']:.0f}%",
                             f"−{100 * mean['params']:.0f}%", f"{100 * mean['trained']:.2f}",
                             f"{100 * mean['cut']:.2f}", f"{mean['change']:.1e}", f"{mean['cpu_s']:.0f}"))  # fmt: skip
                common.say(" ".join(rows[-1]) + "; " + found[0]["notes"])
    head = ("net", "original", "method", "MACs", "parameters", "trained", "cut", "change", "CPU s")
    print(common.table(head, rows))
    scored = "the last 5,000 training images" if args.validate else f"{len(data.x):,} test images"
    print(f"\nTop-1 in percent on {scored}; {args.steps} steps of 64 labelled images, seeds: {args.seeds}.")
    print(common.footer(time.perf_counter() - begin))
    common.write_lines(lines, args.json)
    return 0


def measure(
    cache: common.Cache, path: Path, data: common.Fashion, method: str, seed: int, args: Any, *, plain: bool
) -> dict[str, Any]:
    """One net, method and seed."""
    key = {
        "benchmark": "training",
        "model": common.file_digest(path),
        "method": method,
        "ratio": args.ratio,
        "seed": seed,
        "steps": args.steps,
        "plain": plain,
        "scored": len(data.x),
        "code": common.code_digest(),
    }

    def make() -> dict[str, Any]:
        subject = onnxprune.open_model(path, calibration=data.calibration(seed))
        settings = TrainSettings(
            method, ratio=args.ratio, of="params" if method == "gates" else "macs", steps=args.steps,
            recipe=str(common.HERE / "fmnist_recipe.py"), seed=seed, threads=1,
        )  # fmt: skip
        if plain:
            settings = replace(settings, options=PLAIN[method])
        began = time.process_time()
        prepared = prepare(subject, settings)
        cpu = time.process_time() - began
        result = finish(subject, settings, prepared)
        feeds = {"x": data.x[:1000]}
        before, after = (open_session(m, threads=1).run(feeds)[0] for m in (prepared.trained, result.model))
        return {
            "macs": 1 - result.after.macs / result.before.macs,
            "params": 1 - result.after.params / result.before.params,
            "trained": common.top1(prepared.trained, data),
            "cut": common.top1(result.model, data),
            "change": float(np.abs(before - after).max()),
            "cpu_s": cpu,
            "notes": prepared.words,
        }

    return cache.get(key, make)


if __name__ == "__main__":
    sys.exit(main())
