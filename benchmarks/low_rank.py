"""Ranks, channels and both: accuracy and latency of the Fashion-MNIST nets at the same multiply-accumulates.

    python benchmarks/low_rank.py                        channels, ranks, 3C and auto, three nets, three ratios
    python benchmarks/low_rank.py --nets vgg --ratios 0.75 --only 3C

Each figure is the top-1 on the test images, without labels and without training, and beside it the speed-up in ONNX
Runtime (one thread, paired). A figure is measured once for each state of the package's code, then read from the cache.
With `--validation` the last 5,000 training images are scored in place of the test images: for tuning.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import accuracy
import common

RATIOS = (0.5, 0.65, 0.8)
METHODS: accuracy.Methods = {
    "channels": {"methods": ("channels",)},
    "rank": {"methods": ("rank",)},
    "3C": {"methods": ("3c",)},
    "auto": {"methods": ("channels", "blocks", "rank")},
}


def main() -> None:
    parser = common.options(__doc__, "low_rank.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=common.FMNIST[:3], help="of resnet20,vgg,mbv2,resnet56 (the first three)")
    add("--ratios", type=common.numbers, default=RATIOS, help="shares of the MACs (0.5,0.65,0.8)")
    add("--seeds", type=int, default=1, help="calibration sets (1)")
    add("--samples", type=int, default=common.SAMPLES, help="images in each (512)")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    add("--only", metavar="WORD", help="of the methods, those whose name has this in it")
    add("--validation", action="store_true", help="score training images that no sample is drawn from, for tuning")
    args = parser.parse_args()
    args.bench = True
    begin, data, cache = time.perf_counter(), common.Fashion(args.data), common.Cache(args.cache)
    if args.validation:
        data.validate()
    args.found = common.find_models(args.nets, args.models)
    methods: dict[str, dict[str, Any]] = {k: v for k, v in METHODS.items() if not args.only or args.only in k}
    rows = accuracy.run(args, methods, dict.fromkeys(args.found, data), cache)
    bases = {name: common.baseline(path, data, cache) for name, path in args.found.items()}
    print(accuracy.tables(rows, args, methods, bases))
    which = "validation" if args.validation else "test"
    images = f"{len(data.x)} {which} images"
    print(f"\nTop-1 in percent on {images}, beside it the speed-up; {args.samples} unlabelled samples.")
    print(common.footer(time.perf_counter() - begin))
    common.write_lines(rows, args.json)


if __name__ == "__main__":
    main()
