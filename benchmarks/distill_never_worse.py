"""Distillation never below its start: agreement with the original on unseen images, before and after it.

    python benchmarks/distill_never_worse.py --models ../shared/models --data ../shared/data --epochs 5
    python benchmarks/distill_never_worse.py --nets resnet20 --ratios 0.8 --epochs 2,5,40
    python benchmarks/distill_never_worse.py --nets resnet20 --ratios 0.8 --threads 1,2 --no-cache
    python benchmarks/distill_never_worse.py --nets cifar_resnet20 --ratios 0.54 --samples 2048 --minutes 3 \
        --unseen 5000
    python benchmarks/distill_never_worse.py --nets efficientnet_lite0 --ratios 0.5 --samples 450 --minutes 15

For every net and share of MACs: the plan of `prune` on `--samples` unlabelled training images, refitted (the start),
and the same plan with `--repair distill` (the end). Both are compared with the original on `--unseen` test images; no
labels are used but for the top-1 of original, start and end. `kept` is what the tool itself said that it kept, judged
on samples of its own.
`seconds` are those of the training alone, on the wall clock. CIFAR nets (`cifar_*.onnx`) and EfficientNet need Pillow
and the folder of `--data`. EfficientNet learns from `--samples` of its 600 photographs, three each of 200 kinds, and is
compared on the rest, no two of which are of one kind; its top-1 is of those with a class. `images` are those that the
end gained and lost against the start: a few lost are chance, so the exit code is 1 where more are lost than two
standard deviations of a coin's throws. Needs torch.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import onnx

import onnxprune
from onnxprune import api
from onnxprune.pipeline.settings import Settings
from onnxprune.runtime.sessions import open_session

NETS = ("resnet20_fmnist", "resnet56_fmnist", "vgg_fmnist", "mbv2_fmnist", "cifar_resnet20", "cifar_resnet56")
"""Those that are measured unless others are named."""
COLUMNS = ("net", "MACs", "length", "cores", "start agrees", "end agrees", "images", "KL", "top-1", "kept", "seconds",
           "what was said")  # fmt: skip


def main() -> int:
    parser = common.options(__doc__, "distill_never_worse.jsonl")
    add = parser.add_argument
    add("--nets", type=common.words, default=NETS, metavar="LIST", help="file names in --models, without .onnx")
    add("--data", type=Path, default=common.ROOT.parent / "shared" / "data", metavar="DIR", help="for the CIFAR nets")
    add("--ratios", type=common.numbers, default=(0.3, 0.5, 0.8), metavar="LIST")
    add("--epochs", type=lambda text: tuple(map(int, text.split(","))), default=(5,), metavar="LIST")
    add("--minutes", type=common.numbers, default=(), metavar="LIST", help="train for so long instead of --epochs")
    add("--threads", type=lambda text: tuple(map(int, text.split(","))), default=(None,), metavar="LIST")
    add("--samples", type=int, default=512, metavar="N", help="unlabelled training images (512)")
    add("--unseen", type=int, default=2000, metavar="N", help="test images to compare on (2000)")
    add("--augment", type=common.words, metavar="LIST", help="(what is harmless)")
    add("--uniform", action="store_true", help="equal shares of every layer by L1 norm: a plan that takes no time")
    args = parser.parse_args()
    begin, cache, lines, rows = time.perf_counter(), common.Cache(args.cache), [], []
    for net in args.nets:
        path = args.models / f"{net}.onnx"
        if not path.is_file():
            common.say(f"skipped: {path} is not there")
            continue
        given, unseen, labels = images(net, args)
        for ratio in args.ratios:
            found = measure(cache, path, given, (unseen, labels), ratio, args)
            lines += found
            rows += [row(net, line) for line in found]
            for line in rows[-len(found) :]:
                common.say("  ".join(line))
    print(common.table(COLUMNS, rows))
    worst = min((line["end"] - line["start"] for line in lines), default=0.0)
    below = [line for line in lines if line["lost"] - line["gained"] > 2 * (line["lost"] + line["gained"]) ** 0.5]
    found = f"below its start beyond chance: {len(below)} of {len(lines)}"
    print(f"\nLeast change of agreement: {100 * worst:+.2f} points; {found}.")
    print(common.footer(time.perf_counter() - begin))
    common.write_lines(lines, args.json)
    return int(bool(below))


def images(net: str, args: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(unlabelled training images, test images, their classes) as the net reads them."""
    if net.startswith("efficientnet"):
        return photographs(args)
    if not net.startswith("cifar"):
        data = common.Fashion()
        return data.calibration(0, args.samples), data.x[: args.unseen], data.labels[: args.unseen]
    pictures = common.Cifar(args.data, first=args.unseen)
    return pictures.calibration(0, args.samples), pictures.x, pictures.labels


def photographs(args: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The photographs of `imagen600.npz` in two parts, at random but for the kinds, and the classes of the second."""
    sys.path.append(str(args.data))
    reader = importlib.import_module("images")
    x, labels = reader.imagenet("imagen600.npz")
    kinds, rng = np.load(args.data / "imagen600.npz")["category"], np.random.default_rng(7)
    chosen = rng.permutation(np.unique(kinds))[: len(x) - args.samples]
    unseen = np.array(sorted(rng.choice(np.flatnonzero(kinds == kind)) for kind in chosen))
    return np.delete(x, unseen, axis=0), x[unseen], labels[unseen]


def measure(
    cache: common.Cache, path: Path, given: np.ndarray, test: tuple[np.ndarray, np.ndarray], ratio: float, args: Any
) -> list[dict[str, Any]]:
    """One net and share of MACs: a line for each number of epochs, or of minutes, and of cores."""
    unseen, labels = test
    key = {
        "benchmark": "distill_never_worse", "model": common.file_digest(path), "ratio": ratio, "samples": len(given),
        "unseen": len(unseen), "augment": args.augment and list(args.augment), "uniform": args.uniform,
        "code": common.code_digest(),
    }  # fmt: skip
    memory: dict[str, Any] = {}

    def planned() -> tuple[Any, Any]:
        """What all lines share, made once where any is not there yet."""
        if not memory:
            memory["subject"] = subject = onnxprune.open_model(path, calibration=given)
            how = Settings(criterion="l1", allocation="uniform") if args.uniform else Settings()
            memory["plan"] = api.make_plan(subject, onnxprune.Ratio(ratio), how)
            memory["original"] = answers(subject.model, unseen)
        return memory["subject"], memory["plan"]

    def start(kept: Any) -> Any:
        """The refit: where it was kept, that is the result (the tests show that the bytes are the same)."""
        if "before" not in memory:
            subject, plan = planned()
            before = kept if kept is not None else api.apply_plan(subject, plan, Settings(repair="refit"))
            memory["before"] = answers(before.model, unseen)
        return memory["before"]

    def make(length: dict[str, Any], threads: int | None) -> dict[str, Any]:
        subject, plan = planned()
        how = Settings(repair="distill", **length, augment=args.augment, threads=threads)
        watch = Watch()
        result = api.apply_plan(subject, plan, how, progress=watch)
        [told] = result.training
        first = start(result if told.kept == "start" else None)
        last = first if told.kept == "start" else answers(result.model, unseen)
        original = memory["original"]
        (start_kl, same), (end_kl, still) = (compared(original, scores) for scores in (first, last))
        return {
            "removed": result.macs_removed, **length, "cores": threads, "start": same.mean(),
            "top1": [float((scores.argmax(1) == labels)[labels >= 0].mean()) for scores in (original, first, last)],
            "end": still.mean(), "gained": int((still & ~same).sum()), "lost": int((same & ~still).sum()),
            "start_kl": start_kl, "end_kl": end_kl, "kept": told.kept, "rate": told.rate,
            "words": told.in_words(), "seconds": watch.seconds,
        }  # fmt: skip

    return [
        cache.get({**key, **length, "threads": threads}, lambda e=length, t=threads: make(e, t))  # type: ignore[misc]
        for length in [{"minutes": m} for m in args.minutes] or [{"epochs": n} for n in args.epochs]
        for threads in args.threads
    ]


class Watch:
    """Seconds from the first to the last step of the training."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase == "distill":
            self.last = time.perf_counter()
            self.first = self.first or self.last

    @property
    def seconds(self) -> float:
        return self.last - self.first


def answers(model: onnx.ModelProto, x: np.ndarray, batch: int = 250) -> np.ndarray:
    """(images, classes) scores."""
    session = open_session(model, threads=1, optimise=True)
    [name] = [i.name for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}]
    return np.concatenate([session.run({name: x[i : i + batch]})[0] for i in range(0, len(x), batch)])


def compared(original: np.ndarray, other: np.ndarray) -> tuple[float, np.ndarray]:
    """(mean KL(original ‖ other), (images,) whether both say the same)."""
    p, q = (v - v.max(1, keepdims=True) for v in (original, other))
    p, q = (v - np.log(np.exp(v).sum(1, keepdims=True)) for v in (p, q))
    return float((np.exp(p) * (p - q)).sum(1).mean()), p.argmax(1) == q.argmax(1)


def row(net: str, line: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    length = f"{line['minutes']:g} min" if "minutes" in line else f"{line['epochs']} epochs"
    cells = (
        net, f"−{100 * line['removed']:.0f}%", length, line["cores"] or "all", f"{100 * line['start']:.2f}",
        f"{100 * line['end']:.2f}", f"+{line['gained']} −{line['lost']}",
        f"{line['start_kl']:.4f} → {line['end_kl']:.4f}",
        ", ".join(f"{100 * v:.2f}" for v in line["top1"]), line["kept"], f"{line['seconds']:.1f}", line["words"],
    )  # fmt: skip
    return tuple(map(str, cells))


if __name__ == "__main__":
    sys.exit(main())
