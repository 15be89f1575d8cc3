"""What pruning leaves of a YOLO file of yours, by pictures of yours.

    python benchmarks/yolo.py MODEL.onnx PICTURES.npz [PICTURES.npz ...]

For exports of one output (N, 4 + classes, anchors), boxes as cx cy w h above scores from 0 to 1, that read pictures
from 0 to 1. The first array of each `.npz` is pictures, uint8 (N, 3, height, width). Some of them, drawn by seed,
calibrate, none of them labelled; on the others, but for 512 of which samples are drawn, the boxes of the original
(score above 0.25, greedy NMS at IoU 0.6) are the truth, as `benchmarks/detector.py` has it.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import common
import numpy as np
from detector import boxes, f1

import onnxprune
from onnxprune.errors import PruneError
from onnxprune.runtime.sessions import open_session

LEAST, RESERVED = 0.25, 512


def found_by(model: Any, x: np.ndarray) -> list[np.ndarray]:
    session = open_session(model, threads=1)
    name, found = session.inputs[0].name, []
    for at in range(0, len(x), 16):
        found += boxes(session.run({name: x[at : at + 16] / np.float32(255)})[0], LEAST)
    return found


def measure(path: Path, ratio: float, fitted: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnxprune.FidelityWarning)
        try:
            result = onnxprune.prune(path, ratio, calibration=fitted / np.float32(255), threads=1)
        except PruneError as error:
            return {"refused": str(error)}
    truth = found_by(str(path), others)
    found = f1(truth, found_by(result.model, others))
    return {"f1": found, "truth": sum(map(len, truth)), "macs_removed": result.macs_removed, "verdict": result.verdict}


def main() -> None:
    parser = common.options(__doc__, "yolo.jsonl")
    add = parser.add_argument
    add("model", type=Path)
    add("pictures", type=Path, nargs="+", help=".npz of uint8 (N, 3, height, width)")
    add("--ratios", type=common.numbers, default=(0.15, 0.3), help="shares of the MACs (0.15,0.3)")
    add("--samples", type=int, default=128, help=f"pictures to calibrate with, at most {RESERVED} (128)")
    args = parser.parse_args()
    begin, cache, rows, lines = time.perf_counter(), common.Cache(args.cache), [], []
    x = np.concatenate([next(iter(np.load(path).values())) for path in args.pictures])
    order = np.random.default_rng(0).permutation(len(x))
    fitted, others = x[np.sort(order[: args.samples])], x[order[RESERVED:]]
    for ratio in args.ratios:
        key = {"benchmark": "yolo", "model": common.file_digest(args.model), "ratio": ratio, "samples": args.samples}
        key |= {"pictures": [common.file_digest(path) for path in args.pictures], "code": common.code_digest()}
        row = cache.get(key, lambda r=ratio: measure(args.model, r, fitted, others))
        rows.append({**row, "ratio": ratio})
        if "refused" in row:
            lines.append([f"−{ratio:.0%}", "refused", row["refused"], "", ""])
            continue
        score, precision, recall = row["f1"]
        cells = [f"{v:.3f}" for v in (recall, precision, score)]
        lines.append([f"−{row['macs_removed']:.1%}", *cells, row["verdict"]])
        common.say(" | ".join(lines[-1]))
    print(common.table(("MACs", "recall", "precision", "box F1", "verdict"), lines))
    print(
        f"\n{args.samples} of {len(x)} pictures; judged on {len(others)}. {common.footer(time.perf_counter() - begin)}"
    )
    common.write_lines(rows, args.json)


if __name__ == "__main__":
    main()
