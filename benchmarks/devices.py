"""Measured on one setting, planned on another: what was predicted, beside what was measured there in the end.

    python benchmarks/devices.py --nets resnet20,vgg,mbv2 --threads 2
    python benchmarks/devices.py --pin 0 --threads 1 --speedup 2

"The device" is this machine with another number of threads, and with `--pin` held to one core (`taskset`). For each net
`onnxprune profile` runs there; the plan is made from its file without a clock; `onnxprune bench` runs there on original
and outcome. Then the same again with `--refine` of what it said. Error: predicted over measured, less 1. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import real_files
from latency import Net, nets

import onnxprune


def there(args: Any, *words: str) -> dict[str, Any]:
    """What a command of onnxprune says, run on "the device"."""
    pinned = [] if args.pin is None else ["taskset", "-c", args.pin]
    command = [*pinned, sys.executable, "-m", "onnxprune.cli", *words, "--threads", str(args.threads), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def shapes(net: Net) -> list[str]:
    """The sizes that a net is timed at, as options."""
    return [word for shape in net.shapes for word in ("--input-shape", shape)]


def once(net: Net, args: Any, folder: Path, refine: Sequence[str] = ()) -> dict[str, Any]:
    """Plan from the profile, and measure there."""
    device, out, bench = folder / "device.json", folder / f"out{len(refine)}.onnx", folder / f"bench{len(refine)}.json"
    result = onnxprune.prune(
        net.path,
        calibration=net.calibration(args.seed),
        target=onnxprune.Target("speedup", args.speedup),
        device=str(device),
        refine=tuple(refine) or None,
    )
    result.save(out)
    told = there(args, "bench", str(net.path), str(out), "--rounds", "60", *shapes(net))
    bench.write_text(json.dumps(told))
    measured = told["comparisons"][0]["speedup"]
    return {"predicted": result.search.taken.value, "measured": measured, "bench": str(bench), **net.score(out)}


def measure(net: Net, args: Any) -> dict[str, Any]:
    """Profile, plan, measure; and again with what was measured."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        there(args, "profile", str(net.path), "-o", str(folder / "device.json"), *shapes(net))
        first = once(net, args, folder)
        again = once(net, args, folder, [first.pop("bench")])
    again.pop("bench")
    return {"first": first, "refined": again}


def error(row: dict[str, Any]) -> str:
    """Predicted, measured and how far off that is."""
    return f"{row['predicted']:.2f}x, {row['measured']:.2f}x ({row['predicted'] / row['measured'] - 1:+.1%})"


def main() -> None:
    parser = common.options(__doc__, "devices.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=(), help="names or parts of names (all that are there)")
    add("--speedup", type=float, default=2.0, help="what to ask for (2)")
    add("--threads", type=int, default=2, help="of the device (2)")
    add("--pin", metavar="CORES", help="hold the device to these cores: 0, or 0-1 (needs taskset)")
    add("--samples", type=int, default=common.SAMPLES, help="calibration images (512; real files: at most 128)")
    add("--seed", type=int, default=0, help="of the calibration images (0)")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    real_files.add_photographs(parser)
    args = parser.parse_args()
    begin, cache, lines, rows = time.perf_counter(), common.Cache(args.cache), [], []
    for name, net in nets(args, common.Fashion(args.data)).items():
        key = {"benchmark": "devices", "model": common.file_digest(net.path), "seed": args.seed, "goal": args.speedup}
        key |= {"threads": args.threads, "pin": args.pin, "samples": args.samples, "code": common.code_digest()}
        row = cache.get(key, lambda net=net: measure(net, args))
        rows.append({**row, "net": name})
        scores = [", ".join(f"{v}" for k, v in row[k0].items() if k not in ("predicted", "measured"))
                  for k0 in ("first", "refined")]  # fmt: skip
        lines.append([name, error(row["first"]), scores[0], error(row["refined"]), scores[1]])
        common.say(" | ".join(lines[-1]))
    print(common.table(["net", "predicted, measured", "score", "refined: predicted, measured", "score"], lines))
    print(f"\n{common.footer(time.perf_counter() - begin)}")
    common.write_lines(rows, args.json)


if __name__ == "__main__":
    main()
