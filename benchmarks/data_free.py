"""Top-1 on Fashion-MNIST without any calibration data: L1 without repair, against the default.

    python benchmarks/data_free.py MODEL.onnx [MODEL.onnx ...] [--ratios 0.3,0.5] [--part validation]

`--part validation` reads the last 5,000 training images (to choose a design by), `--part test` the 10,000 test
images (for a final figure). Labels are used for nothing else, and pruning sees neither.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import onnx

import onnxprune
from onnxprune.runtime.sessions import open_session

PARTS = {"validation": ("train", slice(55000, 60000)), "test": ("t10k", slice(None))}


def images(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    name, rows = PARTS[part]
    x = np.frombuffer(gzip.open(folder / f"{name}-images-idx3-ubyte.gz").read(), np.uint8, offset=16)
    y = np.frombuffer(gzip.open(folder / f"{name}-labels-idx1-ubyte.gz").read(), np.uint8, offset=8)
    x = (x.reshape(-1, 1, 28, 28)[rows].astype(np.float32) / 255 - 0.286) / 0.353
    return x.astype(np.float32), y[rows]


def top1(model: onnx.ModelProto | str, x: np.ndarray, y: np.ndarray) -> float:
    session = open_session(model)
    outputs = [session.run({"x": x[i : i + 250]})[0] for i in range(0, len(x), 250)]
    return float((np.concatenate(outputs).argmax(1) == y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--ratios", default="0.3,0.5")
    parser.add_argument("--part", choices=PARTS, default="validation")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="Debian: dataset-fashion-mnist")
    args = parser.parse_args()
    x, y = images(Path(args.data), args.part)
    rows = [
        ("L1, no repair", {"criterion": "l1", "repair": "none"}),
        ("activation, no repair", {"repair": "none"}),
        ("activation + merge (default)", {}),
    ]
    print(f"| model | MACs removed | what | top-1, {len(x)} {args.part} images |\n|---|---|---|---|")
    for path in args.models:
        print(f"| {Path(path).stem} | 0% | original | {top1(path, x, y):.2%} |", flush=True)
        for ratio in map(float, args.ratios.split(",")):
            for name, settings in rows:
                r = onnxprune.prune(path, ratio, **settings)
                print(f"| {Path(path).stem} | {r.macs_removed:.1%} | {name} | {top1(r.model, x, y):.2%} |", flush=True)


if __name__ == "__main__":
    main()
