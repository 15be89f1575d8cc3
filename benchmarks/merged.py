"""Blocks that become one convolution each, by closed form from unlabelled images: accuracy, nodes and time.

    python benchmarks/merged.py --nets resnet20_fmnist --ratios 0.36
    python benchmarks/merged.py --nets resnet56_fmnist --speedups 1.9
    python benchmarks/merged.py --nets resnet56_fmnist --rows 2-3,4-5,6-7,8-9,11-14,15-18
    python benchmarks/merged.py --nets cifar_resnet56 --ratios 0.15,0.225 --data ../shared/data
    python benchmarks/merged.py --nets resnet20_fmnist --ratios 0.36 --samples 2048 --minutes 3

`--methods merge` alone, so that a ratio says how many blocks go; channels and ranks stay out of it. `stride` counts the
merged blocks whose shortcut has a layer of its own. "blocks" counts what became one: of blocks in a row all of them.
Images: 512 of the training set, no labels; with `--minutes` what was merged is trained on them (`--repair distill`), on
all cores. Time: ONNX Runtime on this machine's CPU, one thread, batch 1, in turns.
CIFAR nets (`cifar_*.onnx`) need Pillow and the folder of `--data`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import common
import onnx

import onnxprune
from onnxprune.channels import Analysed
from onnxprune.decide.runs import find_runs, made_of, together
from onnxprune.graph.layers import is_add
from onnxprune.plan import MergeBlock, PrunePlan

NETS = ("resnet20_fmnist", "resnet56_fmnist", "mbv2_fmnist", "cifar_resnet20", "cifar_resnet56")
COLUMNS = ("net", "asked", "MACs", "merged", "blocks", "stride", "nodes", "top-1 before", "top-1", "time")

SPELLED = {"ratio": lambda x: f"−{x:.0%}", "speedup": lambda x: f"{x:g}x", "rows": str}
"""How what was asked for is written."""


def main() -> int:
    parser = common.options(__doc__, "merged.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=NETS, metavar="LIST", help="file names in --models, without .onnx")
    add("--ratios", type=common.numbers, default=(0.15, 0.3), metavar="LIST")
    add("--speedups", type=common.numbers, default=(), metavar="LIST", help="what to ask for instead")
    add("--rows", metavar="LIST", help="these blocks, counted from 1, in place of a choice: 2-3,4-7,9x1 (x1: 1x1)")
    add("--data", type=Path, default=common.ROOT.parent / "shared" / "data", metavar="DIR", help="for the CIFAR nets")
    add("--samples", type=int, default=common.SAMPLES, metavar="N", help="unlabelled images (512)")
    add("--minutes", type=float, metavar="M", help="of training without labels (none)")
    add("--seed", type=int, default=0, metavar="N", help="of the images that are drawn (0)")
    args = parser.parse_args()
    begin, cache, lines = time.perf_counter(), common.Cache(args.cache), []
    for net in args.nets:
        path = args.models / f"{net}.onnx"
        if not path.is_file():
            common.say(f"skipped: {path} is not there")
            continue
        data = common.Cifar(args.data) if net.startswith("cifar") else common.Fashion()
        goals = [("speedup", x) for x in args.speedups] or [("ratio", x) for x in args.ratios]
        goals = [("rows", args.rows)] if args.rows else goals
        for goal in goals:
            key = {
                "benchmark": "merged", "model": common.file_digest(path), goal[0]: goal[1], "seed": args.seed,
                "samples": args.samples, "minutes": args.minutes, "code": common.code_digest(),
            }  # fmt: skip
            line = cache.get(key, lambda path=path, goal=goal, data=data: measure(path, goal, data, args))
            lines.append({"net": net, "asked": SPELLED[goal[0]](goal[1]), **line})
            common.say(str(lines[-1]))
    rows = [
        (
            x["net"], x["asked"], f"{x['macs']:.0%}", str(x["merged"]), str(x["blocks"]), str(x["strided"]),
            f"{x['nodes'][0]} → {x['nodes'][1]}", f"{100 * x['before']:.2f}", f"{100 * x['after']:.2f}",
            f"{x['speedup']:.2f}x",
        )
        for x in lines
    ]  # fmt: skip
    print(common.table(COLUMNS, rows))
    print(f"\n{common.footer(time.perf_counter() - begin)}")
    common.write_lines(lines, args.json)
    return 0


def measure(
    path: Path, goal: tuple[str, float | str], data: common.Fashion | common.Cifar, args: argparse.Namespace
) -> dict[str, object]:
    """One net and share of MACs, or speed-up, or blocks that were chosen by hand."""
    kind, value = goal
    given = data.calibration(args.seed, args.samples)
    how = {"threads": 1} if args.minutes is None else {"repair": "distill", "minutes": args.minutes}
    if kind == "rows":
        subject = onnxprune.open_model(path, calibration=given)
        plan = PrunePlan(subject.digest, by_hand(subject.net, str(value)), seed=args.seed)
        found = onnxprune.apply_plan(subject, plan, onnxprune.Settings(**how), bench=True)
    else:
        aim = {"ratio": value, "bench": True} if kind == "ratio" else {"target": onnxprune.Target(kind, value)}
        found = onnxprune.prune(path, calibration=given, methods=("merge",), best_effort=True, **how, **aim)
    merged = [edit for edit in found.plan.edits if isinstance(edit, MergeBlock)]
    return {
        "macs": found.after.macs / found.before.macs,
        "merged": len(merged),
        "blocks": sum(map(blocks_of(path), merged)),
        "strided": sum(edit.stride > 1 for edit in merged),
        "nodes": [len(onnx.load(path).graph.node), len(found.model.graph.node)],
        "before": common.top1(path, data),
        "after": common.top1(found.model, data),
        "speedup": found.before.latency_ms / found.after.latency_ms,
    }


def by_hand(net: Analysed, rows: str) -> tuple[MergeBlock, ...]:
    """The edits that make one convolution of each of these rows of blocks, counted from 1: 2-5,6 or 2-5x3,6x1."""
    runs, found = find_runs(net), []
    for row in rows.split(","):
        numbers, _, kernel = row.partition("x")
        first, _, last = numbers.partition("-")
        some = runs[int(first) - 1 : int(last or first)]
        run = some[0] if len(some) == 1 else together(net, some)
        assert run is not None, f"others read what lies between the blocks {numbers}"
        found.append(replace(run.edit, kernel=int(kernel or run.edit.kernel)))
    return tuple(found)


def blocks_of(path: Path) -> Callable[[MergeBlock], int]:
    """Tells of how many blocks an edit makes one layer."""
    net = onnxprune.open_model(path).net

    def count(edit: MergeBlock) -> int:
        run = made_of(net, edit)
        return 0 if run is None else sum(is_add(net.graph, key) for key in run.nodes)

    return count


if __name__ == "__main__":
    sys.exit(main())
