"""Whether what the tool says of outputs that are no class scores agrees with metrics that have labels.

    python tools/train_meanings.py -o FOLDER
    python benchmarks/meanings.py FOLDER

A U-Net, embeddings, super-resolution and keypoints, each pruned by ten ratios in one sweep with unlabelled samples, to
any width (`round_to=1`), from cuts that cost nothing to such as leave little.
Beside the figure that the tool asks of the output (against the original, on held-out samples) stands a metric with
labels, on samples made of other images, and below them how alike the two rank the ten files (Spearman).
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx
from scipy.stats import spearmanr

import onnxprune
from onnxprune.measure.figures import value_of
from onnxprune.measure.metric import open_metric
from onnxprune.runtime.ports import input_specs
from onnxprune.runtime.sessions import open_session

Score = Callable[[onnx.ModelProto], float]


def outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = open_session(model, threads=1)
    return np.concatenate([session.run({"x": x[at : at + 100]})[0] for at in range(0, len(x), 100)])


def mean_iou(x: np.ndarray, y: np.ndarray) -> Score:
    """By the tool itself, as `--eval labelled.npz` has it: percent."""

    def score(model: onnx.ModelProto) -> float:
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder, "labelled.npz"), x=x, masks=y)
            return open_metric(str(Path(folder, "labelled.npz")), input_specs(model), threads=1)(model)

    return score


def same_class(x: np.ndarray, y: np.ndarray) -> Score:
    """Share of the ten nearest of each picture that are of its class: percent."""

    def score(model: onnx.ModelProto) -> float:
        e = outputs(model, x)
        alike = e @ e.T
        np.fill_diagonal(alike, -np.inf)
        nearest = np.argpartition(-alike, 10, axis=1)[:, :10]
        return 100 * float((y[nearest] == y[:, None]).mean())

    return score


def psnr(x: np.ndarray, y: np.ndarray) -> Score:
    """Against the pixels as they were: dB."""
    return lambda model: float(-10 * np.log10(np.square(outputs(model, x) - y).mean()))


def near(x: np.ndarray, y: np.ndarray) -> Score:
    """Share of the points within 5% of the extent of their sample's points: percent."""
    extent = np.linalg.norm(np.ptp(y, axis=1), axis=-1)[:, None]
    return lambda model: 100 * float((np.linalg.norm(outputs(model, x) - y, axis=-1) <= 0.05 * extent).mean())


TASKS = {
    "segmentation": ("mean IoU, %", mean_iou),
    "embedding": ("of the ten nearest, of the class, %", same_class),
    "super_resolution": ("PSNR, dB", psnr),
    "keypoints": ("points within 5%, %", near),
}


def measure(path: Path, score: Score, x: np.ndarray, ratios: tuple[float, ...]) -> dict[str, Any]:
    """(the figure's name, and of every ratio the share removed, the figure, the metric)."""
    subject = onnxprune.open_model(path, calibration=x)
    settings = onnxprune.Settings(threads=1, best_effort=True, round_to=1)
    rows, figure = [], ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnxprune.FidelityWarning)
        for result in onnxprune.sweep(subject, ratios, settings):
            assert result.fidelity is not None
            name, figure = result.fidelity.decides
            (part,) = (p for p in result.fidelity.parts if p.name == name)
            rows.append((result.macs_removed, value_of(figure, part), score(result.model)))
    agree = spearmanr([r[1] for r in rows], [r[2] for r in rows]).statistic
    return {"figure": figure, "rows": rows, "original": score(onnx.load(path)), "spearman": float(agree)}


def main() -> None:
    parser = common.options(__doc__, "meanings.jsonl")
    add = parser.add_argument
    add("folder", type=Path, help="where tools/train_meanings.py wrote")
    add("--only", type=common.words, default=tuple(TASKS), help=f"of {','.join(TASKS)}")
    add(
        "--ratios",
        type=common.numbers,
        default=(0.3, 0.45, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96),
        help="of the MACs",
    )
    add("--samples", type=int, default=1024, help="pictures to calibrate with; a quarter is held out (1024)")
    add("--labelled", type=int, default=2000, help="labelled pictures (2000)")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    args = parser.parse_args()
    begin, cache, made = time.perf_counter(), common.Cache(args.cache), common.tool("train_meanings")
    rows, lines = [], []
    for task in args.only:
        path, (title, make) = args.folder / f"{task}.onnx", TASKS[task]
        x, _ = made.samples(task, args.data, args.samples, 1, held=False)
        score = make(*made.samples(task, args.data, args.labelled, 2, held=True))
        key = {"benchmark": "meanings", "model": common.file_digest(path), "ratios": args.ratios}
        key |= {"samples": args.samples, "labelled": args.labelled, "code": common.code_digest()}
        row = cache.get(key, lambda p=path, s=score, x=x: measure(p, s, x, args.ratios))
        rows.append({**row, "file": path.name})
        cells = [f"{kept:.3f}, {metric:.1f}" for _, kept, metric in row["rows"]]
        lines.append([task, f"`{row['figure']}`; {title}", f"{row['original']:.1f}", *cells, f"{row['spearman']:.3f}"])
        common.say(" | ".join(lines[-1]))
    print(
        common.table(("network", "figure; metric", "original", *(f"−{r:.0%}" for r in args.ratios), "Spearman"), lines)
    )
    print(f"\n{args.samples} samples, {args.labelled} labelled. {common.footer(time.perf_counter() - begin)}")
    common.write_lines(rows, args.json)


if __name__ == "__main__":
    main()
