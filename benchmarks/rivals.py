"""Whether a simple rival beats the plan: the same share of every group, one group alone, a larger ratio's plan.

    python benchmarks/rivals.py FILE [FILE ...]

Each network is planned at several ratios in one sweep. The plan and its rivals are cut, repaired on the samples that
plans are compared with and judged twice: on the samples that planning judged by, and on those held out, which nothing
was decided on. A plan is dominated where a rival that removes as much does less damage by more than chance
(`measure.chance`). Beside it stands how often the plan without this comparison was.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import common
import numpy as np

import onnxprune
from onnxprune.measure.chance import beats
from onnxprune.pipeline.compare import COMPARED, Compared
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.rivals import BATCH, Contest, simple
from onnxprune.plan import PrunePlan
from onnxprune.rewrite.apply import Mending
from onnxprune.rewrite.repair.table import REPAIRS, WITH_SAMPLES
from onnxprune.samples.partition import first_batches


def samples_of(path: Path, data: Path, count: int) -> np.ndarray:
    """What a network was made for, by the name of its file."""
    made = common.tool("train_meanings")
    if path.stem in made.TASKS:
        return made.samples(path.stem, data, count, 1, held=False)[0]
    return common.data_of(path.stem, data).calibration(1, count)


def contests(planner: Planner) -> dict[str, Contest]:
    """Where plans are judged: as planning does, and on held-out samples."""
    subject, parts = planner.subject, planner.subject.partition(0)
    assert parts is not None and planner.looking.contest is not None
    learn = first_batches(parts.learn, COMPARED, subject.net.batch)
    held = first_batches(parts.held, COMPARED, min(subject.net.batch, BATCH))
    compared = Compared(subject.net, Mending(REPAIRS[WITH_SAMPLES], learn, threads=1), held, 1)
    return {"judged": planner.looking.contest, "held": Contest(compared)}


def dominated(contest: Contest, plan: PrunePlan, rivals: dict[str, PrunePlan]) -> list[str]:
    """The rivals that do less damage by more than chance."""
    own, *others = contest.damages([plan, *rivals.values()])
    return [name for name, hurt in zip(rivals, others, strict=True) if beats(hurt, own)]


def measure(path: Path, x: np.ndarray, ratios: tuple[float, ...]) -> dict[str, Any]:
    """By ratio: which rivals beat the plan, and which beat the one before the comparison, on either samples."""
    planner = Planner(onnxprune.open_model(path, calibration=x), onnxprune.Settings(threads=1, best_effort=True))
    judged, rows, larger = contests(planner), [], None
    for ratio in sorted(ratios, reverse=True):
        kinds = [p for kind in planner.kinds if (p := planner.propose(ratio, kind)) is not None]
        before, plan = planner.better(kinds), planner.plan(ratio, larger)
        names = ("uniform", "alone") if len(found := simple(planner.study, planner._alone, ratio)) > 1 else ("simple",)
        rivals = {n: planner._plan(a, ratio, {}) for n, a in zip(names, found, strict=False)}
        rivals |= {} if larger is None else {"larger": larger}
        row: dict[str, Any] = {"ratio": ratio, "taken": plan.edits != before.edits}
        for name, contest in judged.items():
            row[name] = dominated(contest, plan, rivals)
            row[f"{name}_before"] = dominated(contest, before, rivals)
            row[f"{name}_damage"] = [float(np.mean(v)) for v in contest.damages([before, plan])]
        if larger is not None:
            own, above = (float(np.mean(v)) for v in judged["judged"].damages([plan, larger]))
            row["monotone"] = own <= above
        rows.append(row)
        larger = plan
    return {"rows": rows}


def main() -> None:
    parser = common.options(__doc__, "rivals.jsonl")
    add = parser.add_argument
    add("files", type=Path, nargs="+", help="of tools/train_meanings.py or tools/train_fmnist.py, or a CIFAR net")
    add("--ratios", type=common.numbers, default=(0.2, 0.35, 0.5, 0.65, 0.8), help="of the MACs")
    add("--samples", type=int, default=512, help="pictures; a quarter is held out (512)")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    args = parser.parse_args()
    begin, cache, lines, rows = time.perf_counter(), common.Cache(args.cache), [], []
    for path in args.files:
        x = samples_of(path, args.data, args.samples)
        key = {"benchmark": "rivals", "model": common.file_digest(path), "ratios": args.ratios, "samples": args.samples}
        row = cache.get(key | {"code": common.code_digest()}, lambda p=path, x=x: measure(p, x, args.ratios))
        rows.append({**row, "file": path.name})
        for one in row["rows"]:
            cells = [", ".join(one[k]) or "none" for k in ("judged", "held", "judged_before", "held_before")]
            lines.append([path.stem, f"−{one['ratio']:.0%}", *cells, "yes" if one["taken"] else "no"])
            common.say(" | ".join(lines[-1]))
    head = ("network", "ratio", "beaten by, judged", "held out", "before: judged", "held out", "another plan taken")
    print(common.table(head, lines))
    each = [one for row in rows for one in row["rows"]]
    counts = {k: sum(bool(one[k]) for one in each) for k in ("judged", "held", "judged_before", "held_before")}
    steps = [one["monotone"] for one in each if "monotone" in one]
    print(f"\n{len(each)} plans; beaten: {counts}; monotone: {sum(steps)} of {len(steps)} steps")
    print(f"{args.samples} samples. {common.footer(time.perf_counter() - begin)}")
    common.write_lines(rows, args.json)


if __name__ == "__main__":
    main()
