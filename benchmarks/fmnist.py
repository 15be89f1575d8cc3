"""The README's table: top-1 of the shipped ResNet-20 after pruning, with and without repair.

    python benchmarks/fmnist.py [--model FILE.onnx] [--test FILE.npz]

Fits on `benchmarks/data/calib.npz` (unlabelled training images), reports on `benchmarks/data/test.npz` (test images
with labels; used for nothing else).
"""

import argparse
import datetime
from pathlib import Path

import numpy as np
import onnx

import onnxprune
from onnxprune.graph.runtime import open_session, versions

HERE = Path(__file__).parent


def top1(model: onnx.ModelProto | str, data: dict) -> float:
    session = open_session(model)
    outputs = [session.run({"x": data["x"][i : i + 250]})[0] for i in range(0, len(data["x"]), 250)]
    return float((np.concatenate(outputs).argmax(1) == data["labels"]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE / "models/resnet20_fmnist.onnx"))
    parser.add_argument("--test", default=str(HERE / "data/test.npz"))
    parser.add_argument("--calib", default=str(HERE / "data/calib.npz"))
    args = parser.parse_args()
    data = dict(np.load(args.test))
    rows = [
        ("L1, no repair", {"criterion": "l1", "repair": "none"}),
        ("L1 + statistics", {"criterion": "l1"}),
        ("activation + statistics (default)", {}),
        ("activation + refit", {"repair": "refit"}),
    ]
    print(f"| {Path(args.model).stem} | MACs removed | top-1 | speed-up, 1 thread |\n|---|---|---|---|")
    print(f"| original | 0% | {top1(args.model, data):.1%} | |")
    for ratio in (0.3, 0.5, 0.65):
        for name, settings in rows:
            timed = "criterion" not in settings
            r = onnxprune.prune(args.model, ratio, calibration=args.calib, bench=timed, **settings)
            c = r.latency.comparisons[0] if r.latency else None
            speed = f"{c.speedup:.2f}x [{c.low:.2f}, {c.high:.2f}]" if c else ""
            print(f"| {name} | {r.macs_removed:.1%} | {top1(r.model, data):.1%} | {speed} |", flush=True)
    v = versions()
    print(f"\n{len(data['x'])} test images; {v['cpu']}, Python {v['python']}, onnx {v['onnx']}, ", end="")
    print(f"onnxruntime {v['onnxruntime']}, {datetime.date.today()}: `python benchmarks/fmnist.py`.")


if __name__ == "__main__":
    main()
