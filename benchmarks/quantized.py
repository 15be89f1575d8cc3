"""Top-1 on Fashion-MNIST of quantized nets that are pruned, beside nets that are pruned and then quantized.

    python benchmarks/quantized.py [--nets resnet20,vgg,mbv2] [--ratios 0.3,0.5] [--seeds 1]

Quantized by ONNX Runtime, static, weights int8 one scale a channel, as QuantizeLinear and DequantizeLinear. Calibration
images are drawn by the seed; test images and their labels are used for the figure alone.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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
    say,
    spread,
    table,
    top1,
    words,
    write_lines,
)

import onnxprune

WAYS = {
    "pruned, then quantized": ("prune", "quantize"),
    "quantized, then pruned": ("quantize", "prune"),
    "the same, no repair": ("quantize", "cut"),
}


class Reader:
    """Samples for ONNX Runtime's quantizer."""

    def __init__(self, x: np.ndarray):
        self.batches = iter([{"x": x[i : i + 64]} for i in range(0, len(x), 64)])

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.batches, None)


def quantized(model: onnx.ModelProto, x: np.ndarray) -> onnx.ModelProto:
    """The model, quantized by ONNX Runtime."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, ready, out = (Path(folder, name) for name in ("a.onnx", "b.onnx", "c.onnx"))
        onnx.save(model, source)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantize_static(
            ready, out, Reader(x), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(out)


def made(path: Path, ways: tuple[str, ...], ratio: float, x: np.ndarray) -> tuple[onnx.ModelProto, float]:
    """The model after some steps, and the share of multiply-accumulates that went."""
    model, removed = onnx.load(path), 0.0
    for way in ways:
        if way == "quantize":
            model = quantized(model, x)
        else:
            result = onnxprune.prune(model, ratio, calibration=x, repair="none" if way == "cut" else None)
            model, removed = result.model, result.macs_removed
    return model, removed


def rows(args: Any, data: Fashion, cache: Cache) -> Iterator[dict[str, Any]]:
    for name, path in find_models(args.nets, args.models).items():
        todo = [("original", (), 0.0), ("quantized", ("quantize",), 0.0)]
        todo += [(title, ways, ratio) for ratio in args.ratios for title, ways in WAYS.items()]
        for title, ways, ratio in todo:
            for seed in range(args.seeds):
                key = {"benchmark": "quantized", "model": file_digest(path), "code": code_digest(), "steps": ways,
                       "ratio": ratio, "seed": seed, "test_images": len(data.x)}  # fmt: skip

                def figure(path: Path = path, ways=ways, ratio: float = ratio, seed: int = seed) -> dict[str, float]:
                    model, removed = made(path, ways, ratio, data.calibration(seed))
                    return {"top1": top1(model, data), "removed": removed}

                found = cache.get(key, figure)
                say(f"{name}, {title} at {ratio:g}, seed {seed}: {found['top1']:.2%}")
                yield {"net": name, "way": title, "ratio": ratio, **found}


def main() -> None:
    parser = options(__doc__, "quantized.jsonl")
    parser.add_argument("--nets", type=words, default=FMNIST[:3], help="of resnet20, vgg, mbv2, resnet56")
    parser.add_argument("--ratios", type=numbers, default=(0.3, 0.5))
    parser.add_argument("--seeds", type=int, default=1, help="calibration sets")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    begin, data = time.perf_counter(), Fashion()
    found = list(rows(args, data, Cache(args.cache)))
    write_lines(found, args.json)
    nets = list(dict.fromkeys(r["net"] for r in found))
    kinds = list(dict.fromkeys((r["ratio"], r["way"]) for r in found))
    scores = {(r["net"], r["ratio"], r["way"]): [] for r in found}
    for r in found:
        scores[r["net"], r["ratio"], r["way"]].append(r["top1"])
    shown = [[f"{kind[0]:.0%}", kind[1], *(spread(scores[net, *kind]) for net in nets)] for kind in kinds]
    print(table(["MACs removed", "way", *nets], shown))
    print(footer(time.perf_counter() - begin, seeds=args.seeds))


if __name__ == "__main__":
    main()
