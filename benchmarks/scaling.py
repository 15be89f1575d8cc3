"""Time and memory of a prune run against the number of samples and against depth, and whether they grow in a line.

    python benchmarks/scaling.py [--plot scaling.svg]

Each run is a process of its own. Depth is measured on ResNets with random weights (time does not depend on what the
weights are), 8 to 56 layers, and on the two trained ResNets where they are. A least-squares line is put through each
series; R² and the exponent of the best power law say how well "linear" fits (exponent 1: linear, 2: quadratic).
CPU seconds are what is fitted: they hardly depend on what else the machine does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import child
import common
import numpy as np
import onnx
from accuracy import method
from onnx import TensorProto, helper, numpy_helper

Point = dict[str, Any]


# ---- networks of any depth ---------------------------------------------------------------------------------


def resnet(depth: int, seed: int = 0) -> onnx.ModelProto:
    """A ResNet of basic blocks (6n + 2 layers) on (N, 1, 28, 28), BatchNorm kept, with random weights."""
    assert depth % 6 == 2, "a ResNet of basic blocks has 6n + 2 layers"
    net = _Net(np.random.default_rng(seed))
    x = net.relu(net.conv_bn("x", 1, 16))
    before = 16
    for width in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            stride = 1 if width == before else 2
            branch = net.conv_bn(net.relu(net.conv_bn(x, before, width, stride=stride)), width, width, scale=0.3)
            shortcut = x if stride == 1 else net.conv_bn(x, before, width, kernel=1, stride=stride)
            x, before = net.relu(net.node("Add", branch, shortcut)), width
    flat = net.node("Flatten", net.node("GlobalAveragePool", x))
    weight = net.constant(net.rng.normal(0, 0.1, (64, 10)))
    net.nodes.append(helper.make_node("Gemm", [flat, weight, net.constant(np.zeros(10))], ["y"]))
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 1, 28, 28]), ("y", ["N", 10]))
    ]
    graph = helper.make_graph(net.nodes, f"resnet{depth}", ports[:1], ports[1:], net.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class _Net:
    """Nodes and constants, and the next free name."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.nodes, self.constants = rng, [], []

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def conv_bn(self, x: str, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, scale: float = 1.0) -> str:
        spread = np.sqrt(2 / (c_in * kernel**2))
        weight = self.constant(self.rng.normal(0, spread, (c_out, c_in, kernel, kernel)))
        pads = [kernel // 2] * 4
        out = self.node("Conv", x, weight, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        gain = self.constant(scale * self.rng.uniform(0.5, 1.5, c_out))
        rest = [self.constant(v) for v in (self.rng.normal(0, 0.1, c_out), np.zeros(c_out), np.ones(c_out))]
        return self.node("BatchNormalization", out, gain, *rest)


# ---- measuring ---------------------------------------------------------------------------------------------


def point(model: Path, count: int, args: Any, cache: common.Cache, **about: Any) -> Point:
    """One run: `count` samples, the ratio and settings of the command."""
    key = {
        "benchmark": "scaling",
        "model": common.file_digest(model),
        "samples": count,
        "ratio": args.ratio,
        "settings": args.method[1],
        "code": common.code_digest(),
    }

    def make() -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            samples = Path(folder) / "calibration.npz"
            np.savez(samples, x=args.samples_of(count))
            return child.run(model, args.ratio, samples, None, args.method[1])

    row = {**cache.get(key, make), **about, "samples": count}
    told = row.get("refused") or f"{row['seconds']:.1f} s, {row['cpu_seconds']:.1f} CPU s, {row['peak_mib']:.0f} MiB"
    common.say(f"{about}, {count} samples: {told}")
    return row


def fit(x: Iterable[float], y: Iterable[float]) -> dict[str, float]:
    """Line through the points: slope, start, R²; and the exponent of the power law that fits best."""
    a, b = np.asarray(list(x), float), np.asarray(list(y), float)
    slope, start = np.polyfit(a, b, 1)
    left = b - (slope * a + start)
    power = np.polyfit(np.log(a), np.log(np.maximum(b, 1e-9)), 1)[0]
    return {"slope": slope, "start": start, "r2": 1 - (left**2).sum() / ((b - b.mean()) ** 2).sum(), "power": power}


def told(points: list[Point], what: str, unit: str) -> str:
    """The fits of a series in words."""
    lines = []
    for column, name in (("cpu_seconds", "CPU s"), ("peak_mib", "MiB")):
        f = fit((p[what] for p in points), (p[column] for p in points))
        lines.append(
            f"{name} against {unit}: {f['start']:.3g} + {f['slope']:.3g} each, R² {f['r2']:.3f}, power {f['power']:.2f}"
        )
    return "\n".join(lines)


def draw(series: Mapping[str, tuple[str, list[Point]]], path: Path) -> None:
    """Time above, memory below, one column a series, with the fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(series), figsize=(5 * len(series), 6), squeeze=False, layout="constrained")
    for column, (title, (what, points)) in enumerate(series.items()):
        x = np.array([p[what] for p in points], float)
        for row, (field, label) in enumerate((("cpu_seconds", "CPU seconds"), ("peak_mib", "peak memory, MiB"))):
            y, f = [p[field] for p in points], fit(x, (p[field] for p in points))
            ax = axes[row][column]
            ax.plot(x, y, "o")
            ax.plot(x, f["start"] + f["slope"] * x, "-", linewidth=1, label=f"line, R² {f['r2']:.3f}")
            ax.set(xlabel=title, ylabel=label, ylim=(0, None))
            ax.legend(frameon=False)
    figure.savefig(path)
    common.say(f"wrote {path}")


def main() -> None:
    parser = common.options(__doc__, "scaling.jsonl")
    add = parser.add_argument
    add("--counts", type=common.numbers, default=(64, 128, 256, 512, 1024), help="samples (64,128,256,512,1024)")
    add("--depths", type=common.numbers, default=(8, 14, 20, 32, 44, 56), help="layers, 6n + 2 (8,14,20,32,44,56)")
    add("--depth-samples", type=int, default=128, help="samples for the series of depths (128)")
    add("--ratio", type=float, default=0.5, help="share of the MACs (0.5)")
    add("--method", type=method, default=("default", {}), help="[NAME:]criterion=l1,repair=refit; else the default")
    add("--data", type=Path, default=common.DATA, help=f"folder of the four .gz files ({common.DATA})")
    add("--plot", type=Path, metavar="FILE", help="draw it: .svg or .png (needs matplotlib)")
    args = parser.parse_args()
    begin, cache, data = time.perf_counter(), common.Cache(args.cache), common.Fashion(args.data)
    args.samples_of = lambda count: np.resize(data.calibration(0, count), (count, 1, 28, 28))
    shipped = common.HERE / "models/resnet20_fmnist.onnx"
    by_count = [point(shipped, int(n), args, cache, net="resnet20") for n in args.counts]
    trained = [
        point(path, args.depth_samples, args, cache, net=f"{name}, trained", depth=int(name.removeprefix("resnet")))
        for name, path in common.find_models(("resnet20", "resnet56"), args.models).items()
    ]
    by_depth = []
    with tempfile.TemporaryDirectory() as folder:
        for depth in map(int, args.depths):
            onnx.save(resnet(depth), path := Path(folder) / f"resnet{depth}.onnx")
            by_depth.append(point(path, args.depth_samples, args, cache, net=f"resnet{depth}, random", depth=depth))
    rows = [*by_count, *trained, *by_depth]
    head = ["net", "samples", "seconds", "CPU seconds", "peak memory, MiB"]
    print(common.table(head, [line(p) for p in rows]))
    series = {"samples": ("samples", ok(by_count)), "layers": ("depth", ok(by_depth))}
    for title, (what, points) in series.items():
        if len(points) > 2:
            print("\n" + told(points, what, title))
    print(f"\nRatio {args.ratio:g}, {args.method[0]}. {common.footer(time.perf_counter() - begin)}")
    if args.plot:
        draw(series, args.plot)
    common.write_lines(rows, args.json)


def ok(points: list[Point]) -> list[Point]:
    return [p for p in points if "seconds" in p]


def line(p: Point) -> list[str]:
    if "refused" in p:
        return [p["net"], str(p["samples"]), f"refused: {p['refused']}", "", ""]
    return [p["net"], str(p["samples"]), f"{p['seconds']:.1f}", f"{p['cpu_seconds']:.1f}", f"{p['peak_mib']:.0f}"]


if __name__ == "__main__":
    main()
