"""Speed on an NVIDIA GPU: files at half the MACs, and `--speedup` measured there, timed again by a separate process.

    python benchmarks/cuda.py resnet50.onnx mobilenet_v2.onnx            half the MACs, several batches
    python benchmarks/cuda.py --speedup 2 --calib samples.npz net.onnx   a speed-up, with samples and default repair
    python benchmarks/cuda.py --provider cpu ...                         the same elsewhere, to compare

Half the MACs: channels go by their weights, the same share of every group, and nothing is repaired, since weights do
not change how long a network runs. The share of the time that is saved is set against the share of the MACs that went.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import latency

import onnxprune
from onnxprune.errors import PruneError
from onnxprune.measure.metric import open_metric
from onnxprune.runtime.providers import parse_provider_options
from onnxprune.timing.accelerators import accelerators


def halves(path: Path, args: Any, folder: Path) -> list[list[str]]:
    """Half the MACs: a line a batch."""
    result = onnxprune.prune(path, 0.5, repair="none", round_to=args.round_to, providers=(args.provider,))
    pruned = folder / path.name
    result.save(pruned, force=True)
    gone, rows = 1 - result.after.macs / result.before.macs, []
    for batch in args.batches:
        timed = onnxprune.bench(
            [str(path), str(pruned)],
            batch=int(batch),
            providers=(args.provider,),
            rounds=args.rounds,
            provider_options=parse_provider_options(args.provider_option),
        )
        c, ms = timed.comparisons[0], timed.timings[0].p50_ms
        rows.append([path.stem, f"{batch:g}", f"{ms:.3f} ms", f"−{gone:.1%}", latency.speed_of(vars(c)), c.verdict,
                     f"{(1 - 1 / c.speedup) / gone:.2f}"])  # fmt: skip
        common.say(" | ".join(rows[-1]))
    return rows


def asked_for(path: Path, args: Any, folder: Path) -> list[list[str]]:
    """A speed-up that the tool measures itself, and what a process of its own says of the file: a line a batch."""
    rows, original = [], onnxprune.open_model(path)
    metric = open_metric(args.labelled, original.specs) if args.labelled else None
    before = metric(original.model) if metric else math.nan
    for batch in args.batches:
        pruned, begin = folder / f"{path.stem}-{batch:g}.onnx", time.perf_counter()
        where = ["--providers", args.provider, "--batch", f"{batch:g}"]
        where += [word for option in args.provider_option for word in ("--provider-option", option)]
        command = [sys.executable, "-m", "onnxprune", str(path), "--speedup", f"{args.speedup:g}", *where]
        command += ["--calib", args.calib, "--json", "-q", "--force", "-o", str(pruned)]
        command += ["--of", args.of] if args.of else []
        run = subprocess.run(command, capture_output=True, text=True)
        took = time.perf_counter() - begin
        if run.returncode:
            rows.append([path.stem, f"{batch:g}", run.stderr.strip()[-160:], "", "", "", f"{took:.0f} s"])
            common.say(" | ".join(rows[-1]))
            continue
        apart = latency.timed_apart(path, pruned, [], args.rounds, where)
        found = onnxprune.open_model(pruned)
        gone = 1 - found.cost().macs / original.cost().macs
        score = f"{before:.1f} → {metric(found.model):.1f}" if metric else ""
        rows.append(
            [path.stem, f"{batch:g}", latency.speed_of(apart), apart["verdict"], f"−{gone:.1%}", score, f"{took:.0f} s"]
        )
        common.say(" | ".join(rows[-1]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("paths", nargs="*", type=Path, metavar="MODEL")
    add("--batches", type=common.numbers, default=(1, 32), help="1,32")
    add("--speedup", type=float, help="what to ask for; needs --calib")
    add("--calib", help="samples, as the tool takes them")
    add("--labelled", help=".npz with labels, to score the files that a speed-up gave")
    add("--of", help="what the allocation counts: latency (default) or macs")
    add("--round-to", type=lambda text: text if text == "auto" else int(text), default="auto", help="widths (auto)")
    add("--provider", default="cuda", help="cuda")
    add("--provider-option", action="append", default=[], help="as the tool takes it")
    add("--rounds", type=int, default=40, help="of a timing (40)")
    add("--keep", type=Path, help="a folder for the pruned files")
    args = parser.parse_args()
    if args.speedup and not args.calib:
        parser.error("--speedup needs --calib")
    begin, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(exist_ok=True, parents=True)
        for path in args.paths:
            try:
                rows += asked_for(path, args, folder) if args.speedup else halves(path, args, folder)
            except PruneError as error:
                common.say(f"{path}: {error}")
    if args.speedup:
        head = ["net", "batch", "measured apart", "verdict", "MACs", "top-1", "time"]
    else:
        head = ["net", "batch", "original", "MACs", "speed-up", "verdict", "time saved / MACs removed"]
    print(common.table(head, rows))
    print(f"\n{common.footer(time.perf_counter() - begin)} {'; '.join(accelerators([args.provider]))}")


if __name__ == "__main__":
    main()
