"""Unstructured GSM: LeNet-300-100 on Fashion-MNIST with one weight in sixty, and the tickets that it draws.

    python benchmarks/lottery.py                    three seeds, 60x, 4,000 steps of each kind
    python benchmarks/lottery.py --times 20

`dense` is the network as trained. `GSM` (Ding et al., NeurIPS 2019) goes on from there; `magnitude` prunes the smallest
weights of the whole network at once and goes on for as many steps. A ticket is the initial network with all but the
chosen weights zero, trained anew for as many steps as the dense one: chosen by GSM, by magnitude after training, or by
chance. The paper has MNIST, and its runs are longer. Needs torch and the whole data set; top-1 of the test images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import torch
from common import HERE, Fashion, footer, options, say, spread, table, top1, write_lines
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from onnxprune.graph.model import Graph
from onnxprune.train.gsm import gsm
from onnxprune.train.loop import Training, train
from onnxprune.train.network import Network
from onnxprune.train.recipe import Recipe
from onnxprune.train.shares import set_up

SIZES = (784, 300, 100, 10)
COLUMNS = ("dense", "GSM", "magnitude", "GSM ticket", "magnitude ticket", "random ticket")


def main() -> int:
    parser = options(__doc__, "lottery.jsonl")
    parser.add_argument("--times", type=float, default=60.0, metavar="X", help="weights before over weights after (60)")
    parser.add_argument("--steps", type=int, default=4000, metavar="N", help="of 64 images (4000)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    args = parser.parse_args()
    data, begin = Fashion(), time.perf_counter()
    lines = []
    for seed in range(args.seeds):
        found = measure(data, seed, args.steps, 1 / args.times)
        lines.append({"seed": seed, "times": args.times, "steps": args.steps, **found})
        say(", ".join(f"{k} {100 * v:.2f}" for k, v in found.items()))
    print(table(COLUMNS, [[spread([line[c] for line in lines], 2) for c in COLUMNS]]))
    print(f"\nTop-1 in percent on {len(data.x):,} test images, seeds: {args.seeds}, {args.times:g}x fewer weights.")
    print(footer(time.perf_counter() - begin))
    write_lines(lines, args.json)
    return 0


def measure(data: Fashion, seed: int, steps: int, density: float) -> dict[str, float]:
    """Top-1 of every column."""
    with set_up(seed, 1):
        return trained(data, seed, steps, density)


def trained(data: Fashion, seed: int, steps: int, density: float) -> dict[str, float]:
    """Top-1 of every column, with torch set up."""
    initial = lenet(seed)
    dense = fit(initial, steps, 0.03, {})
    loss = Recipe(str(HERE / "fmnist_recipe.py"), ["x"])
    device = torch.device("cpu")
    sparse = gsm(Graph(dense), density, lambda network, step: loss(network, step, device), Training(steps, lr=5e-3))
    largest = by_magnitude(dense, density)
    chance = {
        name: mask.reshape(-1)[torch.randperm(mask.numel())].reshape(mask.shape) for name, mask in largest.items()
    }
    models = (
        dense, sparse.model, fit(dense, steps, 0.03, largest), fit(initial, steps, 0.03, sparse.masks),
        fit(initial, steps, 0.03, largest), fit(initial, steps, 0.03, chance),
    )  # fmt: skip
    return {name: top1(model, data) for name, model in zip(COLUMNS, models, strict=True)}


def fit(model: onnx.ModelProto, steps: int, lr: float, masks: Mapping[str, Tensor]) -> onnx.ModelProto:
    """The model trained on the recipe; what the masks leave out stays zero."""
    network, loss = Network(Graph(model)), Recipe(str(HERE / "fmnist_recipe.py"), ["x"])
    device = torch.device("cpu")

    @torch.no_grad()
    def clear(step: int) -> None:
        for name, mask in masks.items():
            getattr(network, name).mul_(mask)

    clear(0)
    how = Training(steps, lr=lr, optimizer="sgd", clip=None)
    train(network, lambda step: (loss(network, step, device), {}), how, after_step=clear)
    return network.to_onnx()


def by_magnitude(model: onnx.ModelProto, density: float) -> dict[str, Tensor]:
    """Parameter -> bool: the largest weights of all kernels."""
    kernels = {name: p.detach().abs() for name, p in Network(Graph(model)).named_parameters() if p.ndim > 1}
    flat = torch.cat([p.reshape(-1) for p in kernels.values()])
    least = flat.topk(max(1, round(density * len(flat)))).values[-1]
    return {name: p >= least for name, p in kernels.items()}


def lenet(seed: int) -> onnx.ModelProto:
    """LeNet-300-100 with random weights."""
    rng = np.random.default_rng(seed)
    nodes, weights, x = [helper.make_node("Flatten", ["x"], ["flat"])], [], "flat"
    for k, (ins, outs) in enumerate(pairwise(SIZES)):
        values: dict[str, Any] = {f"w{k}": rng.normal(0, (2 / ins) ** 0.5, (outs, ins)), f"b{k}": np.zeros(outs)}
        weights += [numpy_helper.from_array(v.astype(np.float32), name) for name, v in values.items()]
        last = k == len(SIZES) - 2
        nodes.append(helper.make_node("Gemm", [x, *values], ["y" if last else f"h{k}"], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{k}"], [f"r{k}"]))
            x = f"r{k}"
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 28, 28]),
             helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZES[-1]])]  # fmt: skip
    graph = helper.make_graph(nodes, "lenet", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    sys.exit(main())
