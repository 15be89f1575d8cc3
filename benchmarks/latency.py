"""Speed-ups asked for and speed-ups got: `--speedup 2` on each net, timed again by a separate process.

    python benchmarks/latency.py                      the default, by time, on all nets
    python benchmarks/latency.py --speedup 2,3,4      several goals: a column each
    python benchmarks/latency.py --ways               also by MACs, by channels and blocks, by either alone
    python benchmarks/latency.py --ratios             no target: every ratio from 0.1 to 0.9, is any file slower?
    python benchmarks/latency.py --model-error        the latency model against networks of random widths

Each file is pruned with 512 unlabelled training images until the paired ratio measured by the tool is what was asked
for. Then `onnxprune bench` runs in a process of its own, on the files alone; its ratio is what the table shows. Top-1
is of the test images. Every way of spending has the same goal, so the rows of a net compare accuracy at equal measured
latency. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import real_files

import onnxprune
from onnxprune.errors import PruneError

REAL = ("efficientnet_lite0", "ch_PP-OCRv4_rec_infer")
WAYS: dict[str, dict[str, Any]] = {
    "by time, channels, blocks and ranks (default)": {},
    "by time, channels and blocks": {"methods": ("channels", "blocks")},
    "by time, channels": {"methods": ("channels",)},
    "by time, blocks": {"methods": ("blocks",)},
    "by MACs, channels and blocks": {"of": "macs"},
    "by MACs, channels": {"of": "macs", "methods": ("channels",)},
}
MARKS = ("o", "s", "^", "v", "D", "x")
HIDDEN = ("seconds", "macs_removed", "blocks", "own", "speedup", "low", "high", "verdict", "key", "wall_s",
          "environment", "net", "way", "goal")  # fmt: skip
"""What of a row is no score."""
GRID = tuple(k / 10 for k in range(1, 10))


def timed_apart(
    original: Path, pruned: Path, shapes: list[str], rounds: int = 60, more: Sequence[str] = ()
) -> dict[str, Any]:
    """The verdict of `onnxprune bench` in a process of its own."""
    command = [sys.executable, "-m", "onnxprune.cli", "bench", str(original), str(pruned), "--json"]
    command += ["--rounds", str(rounds), *more, *(word for shape in shapes for word in ("--input-shape", shape))]
    out = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    out = out["results"][0] if "results" in out else out
    c = out["comparisons"][0]
    return {"speedup": c["speedup"], "low": c["low"], "high": c["high"], "verdict": c["verdict"]}


class Net:
    """A model to prune: samples for calibration, a score, and the sizes to time it at."""

    def __init__(self, path: Path, args: Any, data: common.Fashion | None):
        self.path, self.data, self.samples = path, data, args.samples
        self.shapes: list[str] = []
        if data is None:
            args.images = min(args.samples, 128)
            args.words = 200
            subject = (real_files.efficientnet if "efficientnet" in path.name else real_files.recogniser)(args)
            self.calibrated, self.scored = subject.calibration, subject.score
            if "rec" in path.name:
                self.shapes = [f"x={','.join(map(str, (1, *subject.calibration.shape[1:])))}"]

    def calibration(self, seed: int) -> np.ndarray:
        return self.calibrated if self.data is None else self.data.calibration(seed, self.samples)

    def score(self, path: Path) -> dict[str, Any]:
        if self.data is None:
            return dict(self.scored(self.path, path))
        return {"top-1": f"{common.top1(path, self.data):.2%}"}


def measure(net: Net, goal: float | None, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Prune until the goal is measured (or by `ratio` in the settings), and time the file apart."""
    begin = time.perf_counter()
    target = None if goal is None else onnxprune.Target("speedup", goal)
    try:
        result = onnxprune.prune(net.path, calibration=net.calibration(seed), target=target, seed=seed, **settings)
    except PruneError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        path = result.save(Path(folder, "pruned.onnx"))
        apart = timed_apart(net.path, path, net.shapes)
        score = net.score(path)
    blocks = len(result.plan.blocks())
    own = result.latency.comparisons[0].speedup if result.latency else None
    return {"seconds": seconds, "macs_removed": result.macs_removed, "blocks": blocks, "own": own, **apart, **score}


def model_error(net: Net, count: int, seed: int) -> dict[str, Any]:
    """How far the latency model is from whole networks of random widths: |predicted / measured - 1|."""
    from onnxprune.channels import Analysed
    from onnxprune.decide.limits import Ladder, Limits
    from onnxprune.measure.cost import CostModel
    from onnxprune.rewrite.cut import cut_channels
    from onnxprune.timing.node_times import Grids, node_times

    subject = onnxprune.open_model(net.path, calibration=net.calibration(seed)[:1])
    graph, channels = subject.graph, subject.channels
    begin = time.perf_counter()
    times = node_times(graph, subject.timed(), channels.shapes, grids=Grids(None))
    seconds = time.perf_counter() - begin
    cost, macs = CostModel(graph, channels, "latency", times=times), CostModel(graph, channels)
    rng, errors, by_macs = np.random.default_rng(seed), [], []
    for _ in range(count):
        share, keep = rng.uniform(0.15, 0.9), {}
        for group in channels.groups:
            ladder = Ladder(group, rng.random(group.width), Limits())
            width = ladder.nearest(group.width * float(np.clip(share + rng.uniform(-0.3, 0.3), 0.05, 1)))
            keep[group.name] = np.sort(ladder.order[:width])
        alive = channels.alive(keep)
        model = cut_channels(Analysed(graph, channels, subject.feeds), alive).model
        got = onnxprune.bench([subject.model, model], names=["original", "cut"], feeds=subject.timed(), rounds=30)
        gain = got.comparisons[0].speedup
        errors.append(cost.total / cost(alive) / gain - 1)
        by_macs.append(1 / (1 - macs.removed(alive)) / gain - 1)
    error, plain = np.abs(errors), np.abs(by_macs)
    return {
        "networks": count,
        "median": float(np.median(error)),
        "worst": float(error.max()),
        "macs_median": float(np.median(plain)),
        "macs_worst": float(plain.max()),
        "seconds": seconds,
    }


def nets(args: Any, data: common.Fashion) -> dict[str, Net]:
    """Name -> net, of those that are there and asked for."""
    found = {name: Net(path, args, data) for name, path in common.find_models(common.FMNIST, args.models).items()}
    for name in REAL:
        path = args.models / f"{name}.onnx"
        if path.exists() and (not args.nets or any(n in name for n in args.nets)):
            try:
                found[name] = Net(path, args, None)
            except ImportError as error:
                common.say(f"skipped: {name}: {error}")
    return {n: net for n, net in found.items() if not args.nets or any(w in n for w in args.nets)}


def speed_of(row: Mapping[str, Any]) -> str:
    """A measured ratio with its interval."""
    return f"{row['speedup']:.2f}x [{row['low']:.2f}, {row['high']:.2f}]"


def by_goal(rows: Sequence[Mapping[str, Any]], goals: Sequence[float]) -> str:
    """A line a net and way, a column a goal: what was measured, and the score."""
    lines = []
    for name, way in dict.fromkeys((row["net"], row["way"]) for row in rows):
        own = {row["goal"]: row for row in rows if (row["net"], row["way"]) == (name, way)}
        lines.append([name, way, *(_cell(own[goal]) for goal in goals)])
    return common.table(["net", "way", *(f"{goal:g}x" for goal in goals)], lines)


def _cell(row: Mapping[str, Any]) -> str:
    return "out of reach" if "refused" in row else f"{row['speedup']:.2f}x, {scored(row)}"


def scored(row: Mapping[str, Any]) -> str:
    """What a net scores, in words."""
    return ", ".join(f"{k} {v}" for k, v in row.items() if k not in HIDDEN)


def row_of(name: str, what: str, row: Mapping[str, Any]) -> list[str]:
    if "refused" in row:
        return [name, what, row["refused"], "", "", "", ""]
    blocks = str(row["blocks"])
    return [name, what, speed_of(row), f"−{row['macs_removed']:.1%}", blocks, scored(row), f"{row['seconds']:.0f} s"]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Top-1 against the speed-up that was measured apart: a panel a net, a mark and a colour a way of spending."""
    from onnxprune.report import plots

    scored = [row for row in rows if "top-1" in row]
    names = list(dict.fromkeys(row["net"] for row in scored))
    figure = plots.new(4.2 * max(1, len(names)), 4.4)
    marks = {}
    for k, name in enumerate(names):
        ax = figure.add_subplot(1, len(names), k + 1)
        for i, way in enumerate(dict.fromkeys(row["way"] for row in scored)):
            own = [row for row in scored if (row["net"], row["way"]) == (name, way)]
            if own:
                x, y = [row["speedup"] for row in own], [float(row["top-1"].rstrip("%")) for row in own]
                sides = [[a - row["low"] for a, row in zip(x, own, strict=True)],
                         [row["high"] - a for a, row in zip(x, own, strict=True)]]  # fmt: skip
                look = {"fmt": MARKS[i % len(MARKS)], "color": f"C{i % 10}", "capsize": 2}
                marks[way] = ax.errorbar(x, y, xerr=sides, **look)
        ax.set(title=name, xlabel="speed-up, measured apart", ylabel="top-1 in percent")
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    path.write_bytes(plots.encoded(figure, path))
    common.say(f"wrote {path}")


def main() -> None:
    parser = common.options(__doc__, "latency.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=(), help="names or parts of names (all that are there)")
    add("--speedup", type=common.numbers, default=(2.0,), metavar="LIST", help="what to ask for (2)")
    add("--samples", type=int, default=common.SAMPLES, help="calibration images (512; real files: at most 128)")
    add("--seed", type=int, default=0, help="of the calibration images (0)")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    real_files.add_photographs(parser)
    add("--plot", type=Path, metavar="FILE", help="top-1 against speed-up: .svg or .png (needs matplotlib)")
    add("--ways", action="store_true", help="every way of spending the time, not only the default")
    add("--ratios", action="store_true", help="every ratio of the MACs from 0.1 to 0.9 instead")
    add("--model-error", action="store_true", help="the latency model against whole networks instead")
    args = parser.parse_args()
    begin, data, cache = time.perf_counter(), common.Fashion(args.data), common.Cache(args.cache)
    rows, lines = [], []
    for name, net in nets(args, data).items():
        key = {"benchmark": "latency", "model": common.file_digest(net.path), "seed": args.seed}
        key |= {"samples": args.samples, "code": common.code_digest()}
        if args.model_error:
            row = cache.get({**key, "error of": 12}, lambda n=net: model_error(n, 12, args.seed))
            numbers = (row["median"], row["worst"], row["macs_median"], row["macs_worst"])
            lines.append([name, *(f"{v:.1%}" for v in numbers), f"{row['seconds']:.0f} s"])
            rows.append({**row, "net": name})
            common.say(" ".join(lines[-1]))
            continue
        if args.ratios:
            todo = [(f"ratio {r:g}", None, {"ratio": r}) for r in GRID]
        else:
            todo = [(w, goal, s) for w, s in WAYS.items() if args.ways or not s for goal in args.speedup]
        for what, goal, settings in todo:
            row = cache.get(
                {**key, "goal": goal, "settings": {k: str(v) for k, v in settings.items()}},
                lambda n=net, g=goal, s=settings: measure(n, g, s, args.seed),
            )
            rows.append({**row, "net": name, "way": what, "goal": goal})
            lines.append(row_of(name, what if goal is None else f"{goal:g}x {what}", row))
            common.say(" | ".join(lines[-1]))
    if args.model_error:
        head = ["net", "median error", "worst", "median, were it MACs", "worst", "time to measure"]
    else:
        head = ["net", "way", "measured apart", "MACs", "blocks", "score", "time"]
    print(common.table(head, lines))
    if len(args.speedup) > 1 and not (args.model_error or args.ratios):
        print(f"\n{by_goal(rows, args.speedup)}")
    print(f"\n{common.footer(time.perf_counter() - begin)}")
    common.write_lines(rows, args.json)
    if args.plot and not args.model_error:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
