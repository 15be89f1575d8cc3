"""Bad outcomes and what is said of them: nets cut too far, left unrepaired, or given samples that cannot tell.

    python benchmarks/verdicts.py

Each row is one run: the verdict, what it goes by, the doubts about the samples, and how often the outcome really
says what the original says, on the last 5,000 training images, of which none is a sample. A row is wrong where more
than half of the decisions are lost beyond chance and nothing was said, where a warning was given for nothing, or where
the verdict is "destroyed" and most decisions are still there.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

import onnxprune
from onnxprune.errors import PruneError
from onnxprune.measure.verdict import DECISIONS
from onnxprune.runtime.sessions import open_session

Row = tuple[str, float, str | None, "Samples"]
Samples = Callable[[np.ndarray, common.Fashion], np.ndarray]
NOISE = np.random.default_rng(0)


def well(x: np.ndarray, data: common.Fashion) -> np.ndarray:
    return x


def one_class(x: np.ndarray, data: common.Fashion) -> np.ndarray:
    """Those that look most like the first one: mostly of its class."""
    pool = data.calibration(1, 4096)
    return pool[np.argsort(np.square(pool - x[0]).sum(axis=(1, 2, 3)))[: len(x)]]


def unscaled(x: np.ndarray, data: common.Fashion) -> np.ndarray:
    return 255 * (0.353 * x + 0.286)


def from_0_to_1(x: np.ndarray, data: common.Fashion) -> np.ndarray:
    return 0.353 * x + 0.286


def noise(x: np.ndarray, data: common.Fashion) -> np.ndarray:
    return NOISE.standard_normal(x.shape).astype(np.float32)


def copies(x: np.ndarray, data: common.Fashion) -> np.ndarray:
    return x[np.arange(len(x)) % 4] + 0.01 * NOISE.standard_normal(x.shape).astype(np.float32)


def four(x: np.ndarray, data: common.Fashion) -> np.ndarray:
    return x[:4]


ROWS: list[Row] = [
    *(("unrepaired", ratio, "none", well) for ratio in (0.3, 0.5, 0.8, 0.9)),
    *(("old means and spreads", ratio, "statistics", well) for ratio in (0.5, 0.8, 0.9)),
    *(("default", ratio, None, well) for ratio in (0.5, 0.8, 0.9)),
    ("four samples", 0.8, None, four),
    ("mostly one class", 0.8, None, one_class),
    ("pixels not scaled", 0.5, None, unscaled),
    ("pixels from 0 to 1", 0.5, None, from_0_to_1),
    ("noise for samples", 0.5, None, noise),
    ("four samples copied", 0.5, None, copies),
]
"""What is done, the ratio, the repair, the samples."""


def decisions(model: Any, x: np.ndarray) -> np.ndarray:
    session = open_session(model, threads=1)
    return np.concatenate([session.run({"x": x[i : i + 250]})[0].argmax(1) for i in range(0, len(x), 250)])


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement beyond chance."""
    p, q = (np.bincount(v, minlength=10) / len(v) for v in (a, b))
    chance = float(p @ q)
    return (float((a == b).mean()) - chance) / (1 - chance)


def measure(
    path: Path, row: tuple[str, float, str | None, Samples], data: common.Fashion, count: int
) -> dict[str, Any]:
    """One run, and the truth about it."""
    _, ratio, repair, samples = row
    given = samples(data.calibration(0, count), data).astype(np.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", onnxprune.FidelityWarning)
            result = onnxprune.prune(path, ratio, calibration=given, repair=repair, threads=1)
    except PruneError as error:
        return {"refused": str(error)}
    was, now = decisions(str(path), data.x), decisions(result.model, data.x)
    assert result.fidelity is not None
    doubts = [w for w in result.warnings if "samples" in w]
    return {
        "verdict": result.verdict,
        "why": result.fidelity.why,
        "doubts": doubts,
        "agrees": float((was == now).mean()),
        "kappa": kappa(was, now),
    }


def wrong(row: dict[str, Any], sound: bool) -> str:
    """What is wrong with a verdict; empty where it is right."""
    if "refused" in row:
        return ""
    lost = row["kappa"] < DECISIONS.destroyed
    if lost and row["verdict"] != "destroyed" and not row["doubts"]:
        return "silent"
    if sound and ((not lost and row["verdict"] == "destroyed") or row["doubts"]):
        return "false alarm"
    return "" if sound or row["doubts"] else "not noticed"


def main() -> None:
    parser = common.options(__doc__, "verdicts.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=common.FMNIST[:3], help="of resnet20,vgg,mbv2,resnet56 (the first three)")
    add("--samples", type=int, default=256, help="images to calibrate with (256)")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    args = parser.parse_args()
    begin, data, cache = time.perf_counter(), common.Fashion(args.data), common.Cache(args.cache)
    if data.whole:
        data.validate()
    rows = []
    for net, path in common.find_models(args.nets, args.models).items():
        for row in ROWS:
            key = {"benchmark": "verdicts", "model": common.file_digest(path), "row": [*row[:3], row[3].__name__]}
            key |= {"samples": args.samples, "code": common.code_digest()}
            found = cache.get(key, lambda p=path, r=row: measure(p, r, data, args.samples))
            found = {**found, "net": net, "what": f"{row[0]}, −{row[1]:.0%}", "wrong": wrong(found, row[3] is well)}
            rows.append(found)
            common.say(f"{net} {found['what']}: {found.get('verdict', 'refused')} {found['wrong']}")
    head = ("net", "what", "verdict", "goes by", "agrees on others", "doubts about the samples", "wrong")
    print(common.table(head, [_line(r) for r in rows]))
    print(
        f"\n{len(rows)} runs, {sum(bool(r['wrong']) for r in rows)} wrong. {common.footer(time.perf_counter() - begin)}"
    )
    common.write_lines(rows, args.json)


def _line(row: dict[str, Any]) -> list[str]:
    if "refused" in row:
        return [row["net"], row["what"], "refused", row["refused"], "", "", ""]
    doubts = "; ".join(d.split(";")[0] for d in row["doubts"])
    return [row["net"], row["what"], row["verdict"], row["why"], f"{row['agrees']:.1%}", doubts, row["wrong"]]


if __name__ == "__main__":
    main()
