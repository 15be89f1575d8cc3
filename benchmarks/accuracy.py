"""Accuracy after pruning, without labels and without training: the small nets, by ratio and method.

    python benchmarks/accuracy.py                     the default, all nets and ratios, three seeds
    python benchmarks/accuracy.py --ablation          criterion x repair x allocation

Each figure is the top-1 on the test images (10,000 of Fashion-MNIST where the Debian package's files are there, 5,000
of CIFAR-10) of a net pruned with 512 unlabelled training images; the seed draws these images. Mean, and least and
greatest, over the seeds. A figure is measured once for each state of the package's code, then read from the cache.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common

import onnxprune
from onnxprune.errors import PruneError, UsageError

RATIOS = (0.5, 0.65, 0.8, 0.9)
Methods = dict[str, dict[str, Any]]

DEFAULT: Methods = {"onnxprune (default)": {}}
CRITERIA = ("random", "l1", "l2", "activation", "similarity", "lasso", "elimination")
REPAIRS = ("none", "statistics", "refit")
ALLOCATIONS = ("uniform", "global", "adaptive")
"""What an ablation combines; a name that the installed version does not know is skipped with a line."""


def ablation() -> Methods:
    """One row for each combination, and the default beside them."""
    found = dict(DEFAULT)
    for allocation, criterion, repair in itertools.product(ALLOCATIONS, CRITERIA, REPAIRS):
        name = f"{criterion} + {repair}, {allocation}"
        found[name] = {"criterion": criterion, "repair": repair, "allocation": allocation}
    return found


def method(text: str) -> tuple[str, dict[str, Any]]:
    """`criterion=l1,repair=refit`, with or without a `name:` before it."""
    name, _, settings = text.rpartition(":")
    pairs = dict(part.split("=", 1) for part in common.words(settings))
    return name or settings, {k: _value(v) for k, v in pairs.items()}


def _value(text: str) -> Any:
    return {"true": True, "false": False}.get(text, int(text) if text.isdecimal() else text)


def measure(
    path: Path, ratio: float, settings: Mapping[str, Any], seed: int, samples: int, data: common.Data, bench: bool
) -> dict[str, Any]:
    """Prune once and score once.

    A ratio that cannot be reached is a result too: its reason, and no figure.
    """
    begin = time.perf_counter()
    calibration = data.calibration(seed, samples)
    try:
        result = onnxprune.prune(path, ratio, calibration=calibration, seed=seed, threads=1, **settings)
    except UsageError:
        raise
    except PruneError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - begin
    row: dict[str, Any] = {
        "seconds": seconds,
        "macs_removed": result.macs_removed,
        "params_removed": 1 - result.after.params / result.before.params,
        "top1": common.top1(result.model, data),
        "agreement_held_out": result.fidelity.top1 if result.fidelity else None,
        "cosine_held_out": result.fidelity.cosine if result.fidelity else None,
    }
    if bench:
        c = onnxprune.bench([path, result.model], names=["original", "pruned"], time_budget_s=30).comparisons[0]
        row |= {"speedup": [c.speedup, c.low, c.high], "verdict": c.verdict}
    return row


def known(settings: Mapping[str, Any]) -> str | None:
    """Why the installed version cannot run a method, or None."""
    try:
        onnxprune.Settings(**settings)
    except (UsageError, TypeError) as error:
        return str(error)
    return None


def run(args: Any, methods: Methods, data: Mapping[str, common.Data], cache: common.Cache) -> list[dict[str, Any]]:
    """All results, one after the other; those that the cache knows at once. `data`: of each net."""
    rows = []
    for name, settings in list(methods.items()):
        if reason := known(settings):
            common.say(f"skipped: {name}: {reason}")
            del methods[name]
    for model, path in args.found.items():
        for ratio, (name, settings), seed in itertools.product(args.ratios, methods.items(), range(args.seeds)):
            timed = args.bench and seed == 0
            key = {
                "benchmark": "accuracy",
                "model": common.file_digest(path),
                "ratio": ratio,
                "settings": settings,
                "seed": seed,
                "samples": args.samples,
                "test_images": len(data[model].x),
                "bench": timed,
                "code": common.code_digest(),
            }
            row = cache.get(
                key,
                lambda p=path, r=ratio, s=settings, n=seed, t=timed, d=data[model]: measure(
                    p, r, s, n, args.samples, d, t
                ),
            )
            rows.append({**row, "net": model, "method": name, "ratio": ratio, "seed": seed})
            got = f"{row['top1']:.2%} at {row['macs_removed']:.1%}" if "top1" in row else row["refused"]
            common.say(f"{model} {ratio:g} {name}, seed {seed}: {got}, {row['wall_s']:.0f} s")
    return rows


def cell(rows: list[dict[str, Any]]) -> str:
    """Mean top-1 over the seeds with its spread, the MACs that really went, the speed-up if it was measured."""
    done = [r for r in rows if "top1" in r]
    if not done:
        return "refused" if rows else ""
    text = common.spread([r["top1"] for r in done], 2)
    removed = [r["macs_removed"] for r in done]
    if any(abs(m - r["ratio"]) > 0.01 for m, r in zip(removed, done, strict=True)):
        text += f" at {sum(removed) / len(removed):.1%}"
    if len(done) < len(rows):
        text += f", {len(rows) - len(done)} of {len(rows)} refused"
    for r in done:
        if "speedup" in r:
            text += f", {r['speedup'][0]:.2f}x"
    return text


def tables(rows: list[dict[str, Any]], args: Any, methods: Methods, bases: Mapping[str, float]) -> str:
    """One table a net: methods down, ratios across."""
    parts = []
    for model, base in bases.items():
        head = [f"{model} ({base:.2%})", *(f"−{r:.0%} MACs" for r in args.ratios)]
        lines = []
        for name in methods:
            own = [r for r in rows if r["net"] == model and r["method"] == name]
            lines.append([name, *(cell([r for r in own if r["ratio"] == ratio]) for ratio in args.ratios)])
        parts.append(common.table(head, lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = common.options(__doc__, "accuracy.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=common.FMNIST[:3], help=f"of {common.NETS} (the first three)")
    add("--ratios", type=common.numbers, default=RATIOS, help="shares of the MACs (0.5,0.65,0.8,0.9)")
    add("--seeds", type=int, default=3, help="calibration sets (3)")
    add("--samples", type=int, default=common.SAMPLES, help="images in each (512)")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    common.add_cifar(parser)
    add("--ablation", action="store_true", help="criterion x repair x allocation, beside the default")
    add("--only", metavar="WORD", help="of the methods, those whose name has this in it")
    add("--method", type=method, action="append", help="a row of your own: [NAME:]criterion=l1,repair=refit")
    add("--bench", action="store_true", help="measure the speed-up too (first seed, one thread)")
    args = parser.parse_args()
    methods = dict(args.method) if args.method else ablation() if args.ablation else dict(DEFAULT)
    methods = {name: s for name, s in methods.items() if not args.only or args.only in name}
    begin, cache = time.perf_counter(), common.Cache(args.cache)
    args.found = common.find_models(args.nets, args.models, args.cifar)
    data = {net: common.data_of(net, args.data, args.cifar) for net in args.found}
    rows = run(args, methods, data, cache)
    bases = {name: common.baseline(path, data[name], cache) for name, path in args.found.items()}
    print(tables(rows, args, methods, bases))
    calibrated = f"{args.samples} unlabelled training images, {args.seeds} seeds: mean (least–greatest)"
    print(f"\nTop-1 in percent on {common.amount(data.values())} test images; {calibrated}.")
    print(common.footer(time.perf_counter() - begin))
    common.write_lines(rows, args.json)


if __name__ == "__main__":
    main()
