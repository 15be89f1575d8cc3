"""What pruning leaves of a detector: its boxes against those of the original.

    python tools/train_detector.py -o detector.onnx
    python benchmarks/detector.py detector.onnx detector-split.onnx detector-turned.onnx

Pruned with unlabelled pictures of the first 55,000 Fashion-MNIST training images; found boxes are compared on pictures
made of the others. The truth is what the original finds (score above 0.4, greedy NMS at IoU 0.6): a box of the pruned
file matches one of the same class at IoU 0.5 or more. F1 beside what the tool itself says of each part, and COCO's mAP
with the labels of those pictures, as `--eval labelled.npz` measures it. Where suppression is in the file, its rows are
compared (score above 0.25).
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx

import onnxprune
from onnxprune.errors import PruneError
from onnxprune.measure.metric import open_metric
from onnxprune.runtime.ports import input_specs
from onnxprune.runtime.sessions import open_session

SCORE, OVERLAP, MATCH = 0.4, 0.6, 0.5


def found_by(model: Any, x: np.ndarray) -> list[np.ndarray]:
    """Of every picture, (found, 6): x0 y0 x1 y1 class score, whatever the layout."""
    session = open_session(model, threads=1)
    found: list[np.ndarray] = []
    if list(session.outputs) == ["found"]:
        for at in range(0, len(x), 64):
            (rows,) = session.run({"x": x[at : at + 64]})
            found += [rows[rows[:, 0] == k, 1:] for k in range(len(x[at : at + 64]))]
        return found
    for at in range(0, len(x), 64):
        y = session.run({"x": x[at : at + 64]})
        joined = np.concatenate(y, axis=1) if len(y) > 1 else y[0]
        found += boxes(joined if joined.shape[1] == 14 else joined.transpose(0, 2, 1))
    return found


def boxes(y: np.ndarray, least: float = SCORE) -> list[np.ndarray]:
    """Of every picture, (found, 6): x0 y0 x1 y1 class score, best first."""
    found = []
    for one in y:
        scores = one[4:]
        at = np.flatnonzero(scores.max(axis=0) > least)
        at = at[np.argsort(-scores[:, at].max(axis=0), kind="stable")]
        centre, size = one[:2, at], one[2:4, at]
        rows = np.concatenate(
            [centre - size / 2, centre + size / 2, scores[:, at].argmax(axis=0)[None], scores[:, at].max(axis=0)[None]]
        ).T
        kept: list[np.ndarray] = []
        for row in rows:
            if all(row[4] != k[4] or overlap(row, k) < OVERLAP for k in kept):
                kept.append(row)
        found.append(np.array(kept).reshape(-1, 6))
    return found


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU."""
    shared = np.maximum(np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2]), 0).prod()
    return float(shared / max(np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2]) - shared, 1e-9))


def f1(truth: list[np.ndarray], found: list[np.ndarray]) -> tuple[float, float, float]:
    """(F1, precision, recall)."""
    hits = 0
    for wanted, got in zip(truth, found, strict=True):
        free = list(range(len(wanted)))
        for row in got:
            best = max((k for k in free if wanted[k][4] == row[4]), key=lambda k: overlap(wanted[k], row), default=None)
            if best is not None and overlap(wanted[best], row) >= MATCH:
                free.remove(best)
                hits += 1
    there, given = sum(map(len, truth)), sum(map(len, found))
    precision, recall = hits / max(1, given), hits / max(1, there)
    return 2 * precision * recall / max(precision + recall, 1e-9), precision, recall


def mean_precision(model: onnx.ModelProto, x: np.ndarray, objects: list[np.ndarray]) -> float:
    """COCO's mAP with labels, by the tool itself: percent."""
    rows = np.concatenate([np.column_stack([np.full(len(o), k), o]) for k, o in enumerate(objects)])
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "labelled.npz"), x=x, boxes=rows)
        return open_metric(str(Path(folder, "labelled.npz")), input_specs(model), threads=1)(model)


def measure(
    path: Path, ratio: float, calibration: np.ndarray, x: np.ndarray, objects: list[np.ndarray]
) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnxprune.FidelityWarning)
        try:
            result = onnxprune.prune(path, ratio, calibration=calibration, threads=1)
        except PruneError as error:
            return {"refused": str(error)}
    found = f1(found_by(str(path), x), found_by(result.model, x))
    labelled = [mean_precision(model, x, objects) for model in (onnx.load(path), result.model)]
    assert result.fidelity is not None
    said = [p.in_words() for p in result.fidelity.parts]
    return {
        "f1": found,
        "labelled": labelled,
        "macs_removed": result.macs_removed,
        "verdict": result.verdict,
        "said": said,
    }


def main() -> None:
    parser = common.options(__doc__, "detector.jsonl")
    add = parser.add_argument
    add("files", type=Path, nargs="+", help="written by tools/train_detector.py")
    add("--ratios", type=common.numbers, default=(0.15, 0.3, 0.5), help="shares of the MACs (0.15,0.3,0.5)")
    add("--samples", type=int, default=256, help="pictures to calibrate with (256)")
    add("--pictures", type=int, default=500, help="pictures to judge by (500)")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    args = parser.parse_args()
    begin, cache, made = time.perf_counter(), common.Cache(args.cache), common.tool("train_detector")
    images, labels = made.load(args.data)
    first = common.tool("make_fashion_mnist_sample").TRAINING
    calibration, _ = made.pictures(images[:first], labels[:first], args.samples, np.random.default_rng(1))
    x, objects = made.pictures(images[first:], labels[first:], args.pictures, np.random.default_rng(2))
    rows, lines = [], []
    for path in args.files:
        for ratio in args.ratios:
            key = {"benchmark": "detector", "model": common.file_digest(path), "ratio": ratio}
            key |= {"samples": args.samples, "pictures": args.pictures, "code": common.code_digest()}
            row = cache.get(key, lambda p=path, r=ratio: measure(p, r, calibration, x, objects))
            rows.append({**row, "file": path.name, "ratio": ratio})
            if "refused" in row:
                lines.append([path.name, f"−{ratio:.0%}", "refused", row["refused"], "", "", ""])
                continue
            score, precision, recall = row["f1"]
            said = "; ".join(row["said"])
            lines.append([path.name, f"−{row['macs_removed']:.1%}", f"{score:.3f}", f"{precision:.3f}, {recall:.3f}",
                          "{:.1f} → {:.1f}".format(*row["labelled"]), row["verdict"], said])  # fmt: skip
            common.say(" | ".join(lines[-1]))
    print(common.table(("file", "MACs", "box F1", "precision, recall", "mAP, labels", "verdict", "parts"), lines))
    print(f"\n{args.pictures} pictures. {common.footer(time.perf_counter() - begin)}")
    common.write_lines(rows, args.json)


if __name__ == "__main__":
    main()
