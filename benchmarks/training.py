"""Pruning while training: top-1 of a small net before and after the cut of each method, on labelled images.

    python benchmarks/training.py --nets resnet20 --ratio 0.5 --seeds 3
    python benchmarks/training.py --only "trp,trp plain" --validate

`trained` is the network at its full size after training, `cut` the finished file: csgd, gsm and trp promise that the
two are the same. `change` is the largest change of a logit. `trp plain` is the same training without the method, cut to
the same ranks at the end. `tune` cuts and refits first and trains then, with the plan that `onnxprune prune` makes:
plain fine-tuning, for as many steps. `gates` learns widths and blocks for half of the parameters; `gates uniform` and
`gates adaptive` are plain fine-tuning with equal shares of every layer, and with our plan, for the same.

The recipe is `fmnist_recipe.py`, or `cifar_recipe.py` of the CIFAR nets; sizes are decided on 512 unlabelled images.
`--validate` scores the last 5,000 of the training images instead of the test images. Needs torch. Training time is that
of one thread, in CPU seconds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

import onnxprune
from onnxprune.pipeline.training import finish, prepare, start
from onnxprune.pipeline.training_methods import METHODS
from onnxprune.pipeline.training_settings import TrainSettings
from onnxprune.runtime.sessions import open_session

WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "csgd": ("csgd", "macs", {}),
    "tune": ("tune", "macs", {}),
    "gsm": ("gsm", "macs", {}),
    "trp": ("trp", "macs", {}),
    "trp plain": ("trp", "macs", {"project": False}),
    "gates": ("gates", "params", {}),
    "gates uniform": ("tune", "params", {"allocation": "uniform"}),
    "gates adaptive": ("tune", "params", {}),
}
"""Row of the table -> method, what counts, options."""
RECIPES = {**dict.fromkeys(common.FMNIST, "fmnist_recipe.py"), **dict.fromkeys(common.CIFAR, "cifar_recipe.py")}
FIGURES = ("macs", "params", "trained", "cut", "change", "cpu_s")


def main() -> int:
    parser = common.options(__doc__, "training.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=("resnet20",), metavar="LIST", help=f"of {common.NETS}")
    common.add_cifar(parser)
    add("--ratio", type=float, default=0.5, metavar="R", help="of the MACs; gates: of the parameters (0.5)")
    add("--steps", type=int, default=1600, metavar="N", help="of 64 images (1600)")
    add("--seeds", type=int, default=1, metavar="N")
    add("--only", type=common.words, default=tuple(WAYS), metavar="LIST", help="rows of the table, such as csgd,tune")
    add("--validate", action="store_true", help="score the last 5,000 training images")
    args = parser.parse_args()
    begin, cache = time.perf_counter(), common.Cache(args.cache)
    os.environ["CIFAR_IMAGES"] = str(args.cifar)
    nets = common.find_models(args.nets, args.models, args.cifar)
    read = {net: common.data_of(net, packed=args.cifar) for net in nets}
    for data in set(read.values()) if args.validate else ():
        data.validate()
    lines, rows = [], []
    for net, path in nets.items():
        data = read[net]
        own = common.top1(path, data) if args.validate else common.baseline(path, data, cache)
        for way in args.only:
            found = [measure(cache, net, path, data, way, seed, args) for seed in range(args.seeds)]
            lines += found
            mean = {k: float(np.mean([f[k] for f in found])) for k in FIGURES}
            change = "" if METHODS[WAYS[way][0]].cuts_first else f"{mean['change']:.1e}"
            rows.append((net, f"{100 * own:.2f}", way, f"−{100 * mean['macs']:.0f}%",
                         f"−{100 * mean['params']:.0f}%", f"{100 * mean['trained']:.2f}",
                         common.spread([f["cut"] for f in found], 2), change,
                         f"{mean['cpu_s']:.0f}"))  # fmt: skip
            common.say(" ".join(rows[-1]) + "; " + found[0]["notes"])
    head = ("net", "original", "method", "MACs", "parameters", "trained", "cut", "change", "CPU s")
    print(common.table(head, rows))
    scored = "the last 5,000 training images" if args.validate else f"{common.amount(read.values())} test images"
    print(f"\nTop-1 in percent on {scored}; {args.steps} steps of 64 labelled images, seeds: {args.seeds}.")
    print(common.footer(time.perf_counter() - begin))
    common.write_lines(lines, args.json)
    return 0


def measure(
    cache: common.Cache, net: str, path: Path, data: common.Data, way: str, seed: int, args: Any
) -> dict[str, Any]:
    """One net, row and seed."""
    key = {
        "benchmark": "training",
        "model": common.file_digest(path),
        "way": way,
        "ratio": args.ratio,
        "seed": seed,
        "steps": args.steps,
        "scored": len(data.x),
        "validate": args.validate,
        "code": common.code_digest(),
    }

    def make() -> dict[str, Any]:
        subject = onnxprune.open_model(path, calibration=data.calibration(seed))
        method, of, options = WAYS[way]
        settings = TrainSettings(
            method, ratio=args.ratio, of=of, steps=args.steps, options=options,
            recipe=str(common.HERE / RECIPES[net]), seed=seed, threads=1,
        )  # fmt: skip
        began = time.process_time()
        run = start(subject, settings)
        prepared = prepare(run)
        result = finish(run, prepared, on_trial=False)
        cpu = time.process_time() - began
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
