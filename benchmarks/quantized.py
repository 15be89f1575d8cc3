"""Top-1 of quantized nets that are pruned, beside nets that are pruned and then quantized, and the share of images that
they classify as the original does.

    python benchmarks/quantized.py [--nets resnet20,vgg,mbv2] [--ratios 0.3,0.5] [--seeds 1] [--form QDQ]
    python benchmarks/quantized.py --nets efficientnet --packed DIR
    python benchmarks/quantized.py --together [--files rec,cls,efficientnet]

Quantized by ONNX Runtime, weights int8: static, one scale a channel, as QuantizeLinear and DequantizeLinear (`QDQ`) or
as operators of integers (`QOperator`); or with scales chosen at run time (`dynamic`). Calibration images are drawn by
the seed; test images and their labels are used for the figure alone. `efficientnet` is EfficientNet-Lite0 on
photographs of a folder with `imagen600.npz`, `imagenet600.npz` and `images.py`, which reads them: calibrated on 256 of
the first, judged by its last 150 and by all of the other.

With `--together`: accuracy, size and time of the original, pruned, in int8, and both, one after the other and together
(`--quantize int8`); each is timed beside the original, in turns, on one thread. `--files` does the same for files of
`real_files.py`.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import real_files
from common import (  # fmt: skip
    FMNIST,
    Cache,
    Fashion,
    code_digest,
    file_digest,
    find_models,
    footer,
    numbers,
    options,
    reader,
    say,
    spread,
    table,
    words,
    write_lines,
)

import onnxprune
from onnxprune.runtime.convert import at_least_opset
from onnxprune.runtime.sessions import open_session

WAYS = {
    "pruned, then quantized": ("prune", "quantize"),
    "quantized, then pruned": ("quantize", "prune"),
    "the same, no repair": ("quantize", "cut"),
}


class Reader:
    """Samples for ONNX Runtime's quantizer."""

    def __init__(self, x: np.ndarray, name: str = "x"):
        self.batches = iter([{name: x[i : i + 4]} for i in range(0, len(x), 4)])  # a batch's activations are all held

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.batches, None)


def quantized(model: onnx.ModelProto, x: np.ndarray, form: str, name: str = "x", bits: int = 8) -> onnx.ModelProto:
    """The model, quantized by ONNX Runtime; weights of 7 bits cannot overflow on processors without VNNI."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, ready, out = (Path(folder, name) for name in ("a.onnx", "b.onnx", "c.onnx"))
        onnx.save(model, source)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        if form == "dynamic":
            quantize_dynamic(ready, out, weight_type=QuantType.QUInt8)  # its ConvInteger has no weights of int8
            return onnx.load(out)
        quantize_static(
            ready, out, Reader(x, name), quant_format=QuantFormat[form], per_channel=True,
            reduce_range=bits == 7, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(out)


def made(path: Path, ways: tuple[str, ...], ratio: float, x: np.ndarray, form: str) -> tuple[onnx.ModelProto, float]:
    """The model after some steps, and the share of multiply-accumulates that went."""
    model, removed = onnx.load(path), 0.0
    for way in ways:
        if way == "quantize":
            model = quantized(at_least_opset(model), x, form, model.graph.input[0].name)
        else:
            result = onnxprune.prune(model, ratio, calibration=x, repair="none" if way == "cut" else None)
            model, removed = result.model, result.macs_removed
    return model, removed


# ---- both together ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """A file, its samples, and what says how good another is."""

    name: str
    path: Path
    calibration: np.ndarray
    score: Callable[[Path], str]


def five(net: Net, ratio: float, folder: Path) -> Iterator[tuple[str, Path]]:
    """What it is, and the file: the original, and what becomes of it. The pruned ones are of one plan, but for the
    last, which is of one that knows of int8, as the command makes it."""
    original, x = onnx.load(net.path), net.calibration
    name = original.graph.input[0].name
    subject = onnxprune.open_model(net.path, calibration=x)
    plan = onnxprune.make_plan(subject, ratio)
    pruned = onnxprune.apply_plan(subject, plan).model
    integers = onnxprune.Settings(quantize="int8")
    both = onnxprune.apply_plan(subject, plan, integers).model
    planned = onnxprune.apply_plan(subject, onnxprune.make_plan(subject, ratio, integers), integers).model
    made = {
        "original": original,
        "pruned": pruned,
        "int8": quantized(at_least_opset(original), x, "QDQ", name),
        "pruned, then int8": quantized(at_least_opset(pruned), x, "QDQ", name),
        "pruned, then int8 of 7 bits": quantized(at_least_opset(pruned), x, "QDQ", name, 7),
        "pruned and int8 together": both,
        "the same, planned for int8": planned,
    }
    for k, (title, model) in enumerate(made.items()):
        onnx.save(model, path := folder / f"{k}.onnx")
        yield title, path


def together(net: Net, ratio: float) -> list[dict[str, Any]]:
    """One line a file."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        made = list(five(net, ratio, Path(folder)))
        name = onnx.load(net.path).graph.input[0].name
        for title, path in made:
            timed = onnxprune.bench([made[0][1], path], feeds={name: net.calibration[:1]}, time_budget_s=20)
            c, ms = timed.comparisons[0], timed.timings[1].p50_ms
            found.append({"net": net.name, "way": title, "score": net.score(path), "kB": path.stat().st_size / 1e3,
                          "ms": ms, "speedup": [c.speedup, c.low, c.high]})  # fmt: skip
            say(f"{net.name}, {found[-1]}")
    return found


def closeness(path: Path, data: Fashion) -> Callable[[Path], str]:
    """What tells top-1 of a file, and how close it is to the original, on the test images."""

    def scores(model: Path) -> np.ndarray:
        session = open_session(str(model), threads=1, optimise=True)
        return np.concatenate([session.run({"x": data.x[k : k + 250]})[0] for k in range(0, len(data.x), 250)])

    def score(model: Path) -> str:
        a, b = scores(path), scores(model)
        right, same = np.mean(b.argmax(1) == data.labels), np.mean(a.argmax(1) == b.argmax(1))
        noise = np.square(a - b).mean()
        sqnr = f"{10 * np.log10(np.square(a).mean() / noise):.1f} dB" if noise else "the original"
        return f"{right:.2%}, as the original {same:.2%}, {sqnr}"

    return score


def all_nets(args: Any, data: Fashion) -> Iterator[Net]:
    """Those that were asked for."""
    x = data.calibration(0)
    for name, path in find_models(args.nets, args.models).items():
        yield Net(name, path, x, closeness(path, data))
    for name in args.files:
        subject = real_files.SUBJECTS[name](args)
        path = args.models / subject.file

        def score(p: Path, path: Path = path, subject: real_files.Subject = subject) -> str:
            return ", ".join(f"{k} {v}" for k, v in subject.score(path, p).items())

        yield Net(name, path, subject.calibration, score)


def both_ways(args: Any, data: Fashion, cache: Cache) -> list[dict[str, Any]]:
    found = []
    for net in all_nets(args, data):
        for ratio in args.ratios:
            key = {"benchmark": "together", "model": file_digest(net.path), "code": code_digest(), "ratio": ratio,
                   "samples": len(net.calibration), "test_images": len(data.x)}  # fmt: skip
            done = cache.get(key, lambda net=net, ratio=ratio: {"rows": together(net, ratio)})
            found += [{**row, "ratio": ratio} for row in done["rows"]]
    return found


def shown(found: list[dict[str, Any]]) -> str:
    lines = []
    for r in found:
        speed = "{:.2f}x [{:.2f}, {:.2f}]".format(*r["speedup"]) if r["way"] != "original" else ""
        net = f"{r['net']} −{r['ratio']:.0%}" if r["way"] == "original" else ""
        lines.append([net, r["way"], r["score"], f"{r['kB']:.0f}", f"{r['ms']:.3f}", speed])
    return table(["net, MACs removed", "file", "score", "kB", "ms", "speed-up"], lines)


# ---- one way or the other --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A file that is made smaller in several ways.

    Attributes:
        name: of it.
        path: of the file.
        calibration: seed -> samples.
        x: images to judge by.
        labels: their classes; -1: unknown.
    """

    name: str
    path: Path
    calibration: Callable[[int], np.ndarray]
    x: np.ndarray
    labels: np.ndarray

    def classes(self, model: onnx.ModelProto) -> np.ndarray:
        """What the images are taken for."""
        session = open_session(model, threads=1, optimise=True)
        name = session.inputs[0].name
        step = 250 if self.x[0].size < 1 << 16 else 16
        return np.concatenate(
            [session.run({name: self.x[i : i + step]})[0].argmax(1) for i in range(0, len(self.x), step)]
        )

    def scores(self, model: onnx.ModelProto, original: np.ndarray) -> dict[str, float]:
        """Top-1, and the share that is classified as by the original."""
        found, known = self.classes(model), self.labels >= 0
        return {"top1": float((found == self.labels)[known].mean()), "same": float((found == original).mean())}


def photographs(args: Any) -> Trial:
    """EfficientNet-Lite0; another seed calibrates on other photographs."""
    read = reader(args.packed).imagenet
    (fit, labels), (others, more) = read("imagen600.npz"), read("imagenet600.npz")
    judged, free = 150, len(fit) - 150

    def calibration(seed: int) -> np.ndarray:
        return fit[np.random.default_rng(seed).permutation(free)[:256]]

    x, y = np.concatenate([fit[-judged:], others]), np.concatenate([labels[-judged:], more])
    return Trial("efficientnet", args.models / "efficientnet_lite0.onnx", calibration, x, y)


def trials(args: Any, data: Fashion) -> Iterator[Trial]:
    """Those that were asked for."""
    for name, path in find_models([n for n in args.nets if n != "efficientnet"], args.models).items():
        yield Trial(name, path, data.calibration, data.x, data.labels)
    if "efficientnet" in args.nets and args.packed:
        yield photographs(args)


def rows(args: Any, data: Fashion, cache: Cache) -> Iterator[dict[str, Any]]:
    for trial in trials(args, data):
        original = trial.classes(onnx.load(trial.path))
        todo = [("original", (), 0.0), ("quantized", ("quantize",), 0.0)]
        todo += [(title, ways, ratio) for ratio in args.ratios for title, ways in WAYS.items()]
        for title, ways, ratio in todo:
            for seed in range(args.seeds):
                key = {"benchmark": "quantized", "model": file_digest(trial.path), "code": code_digest(), "steps": ways,
                       "ratio": ratio, "seed": seed, "form": args.form, "judged": len(trial.x)}  # fmt: skip

                def figure(trial=trial, ways=ways, ratio: float = ratio, seed: int = seed, original=original):
                    model, removed = made(trial.path, ways, ratio, trial.calibration(seed), args.form)
                    return {**trial.scores(model, original), "removed": removed}

                found = cache.get(key, figure)
                say(f"{trial.name}, {title} at {ratio:g}, seed {seed}: {found['top1']:.2%}, same {found['same']:.2%}")
                yield {"net": trial.name, "way": title, "ratio": ratio, **found}


def main() -> None:
    parser = options(__doc__, "quantized.jsonl")
    parser.add_argument("--nets", type=words, default=FMNIST[:3], help="of resnet20, vgg, mbv2, resnet56, efficientnet")
    parser.add_argument("--ratios", type=numbers, default=(0.3, 0.5))
    parser.add_argument("--seeds", type=int, default=1, help="calibration sets")
    parser.add_argument("--form", choices=("QDQ", "QOperator", "dynamic"), default="QDQ")
    parser.add_argument("--together", action="store_true", help="accuracy, size and time of five files a net")
    parser.add_argument("--files", type=words, default=(), help="with it, also of real_files.py: rec, cls, ...")
    parser.add_argument("--images", type=int, default=128, help="calibration samples of these (128)")
    parser.add_argument("--words", type=int, default=400, help="words read for the report (400)")
    real_files.add_photographs(parser)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    begin, data = time.perf_counter(), Fashion()
    if args.together:
        found = both_ways(args, data, Cache(args.cache))
        write_lines(found, args.json)
        print(shown(found))
        print(footer(time.perf_counter() - begin))
        return
    found = list(rows(args, data, Cache(args.cache)))
    write_lines(found, args.json)
    nets = list(dict.fromkeys(r["net"] for r in found))
    kinds = list(dict.fromkeys((r["ratio"], r["way"]) for r in found))
    scores = {(r["net"], r["ratio"], r["way"], k): [] for r in found for k in ("top1", "same")}
    for r in found:
        for k in ("top1", "same"):
            scores[r["net"], r["ratio"], r["way"], k].append(r[k])
    lines = [
        [
            f"{kind[0]:.0%}",
            kind[1],
            *(", ".join(spread(scores[net, *kind, k]) for k in ("top1", "same")) for net in nets),
        ]
        for kind in kinds
    ]
    print(table(["MACs removed", "way", *nets], lines))
    print(footer(time.perf_counter() - begin, seeds=args.seeds))


if __name__ == "__main__":
    main()
