"""Does the torch network compute what ONNX Runtime computes? A table for the given files.

    python benchmarks/torch_forward.py ../shared/models/*.onnx
    python benchmarks/torch_forward.py --hydrate ../shared/zoo/hydrate.py ../shared/zoo/ts.tv.*.onnx

Random inputs of batch 2; the error is the largest absolute difference over the largest absolute output. Beside it
stands, where it matters, how far ONNX Runtime is from itself without its graph optimisations: nets whose random
weights amplify rounding say nothing. `--backward` also runs a backward pass from the mean square of the first output.
A file without its weights (`--hydrate SCRIPT`) is filled by the function `hydrate` of that script first.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from common import footer, say, table

from onnxprune.errors import PruneError
from onnxprune.files.read import check_model, read_model
from onnxprune.graph.model import Graph
from onnxprune.runtime import ports, sessions
from onnxprune.train.network import Network, as_feeds

TOLERANCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--hydrate", type=Path, metavar="SCRIPT")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument(
        "--shape", type=sizes, metavar="N,C,H,W", help="of the first input, where 2,3,224,224 does not fit"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, worst, silent, begin = [], 0, 0, time.perf_counter()
    for path in args.files:
        try:
            error, own, grads, seconds = compare(path, args)
            worst += error > TOLERANCE >= own
            silent += error > TOLERANCE and own > TOLERANCE
            rows.append((path.name, f"{error:.1e}", f"{own:.1e}", grads, f"{seconds:.1f}"))
        except PruneError as failure:
            worst += 1
            rows.append((path.name, "refused", "", str(failure), ""))
        say(" ".join(rows[-1]))
    print(table(("file", "error", "of ORT", "gradients", "s"), rows))
    print(
        f"\n{len(rows) - worst - silent} of {len(rows)} within {TOLERANCE:g}; "
        f"{silent} tell nothing: they amplify rounding."
    )
    print(footer(time.perf_counter() - begin, torch=torch.__version__))
    return int(worst > 0)


def sizes(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def compare(path: Path, args: argparse.Namespace) -> tuple[float, float, str, float]:
    """(largest relative difference of an output, that of ONNX Runtime from itself, gradients in words, seconds)."""
    model = filled(path, args.hydrate) if args.hydrate else read_model(path)
    specs = ports.input_specs(model)
    shapes = {specs[0].name: args.shape} if args.shape else None
    feeds = ports.default_feed(specs, batch=2, shapes=shapes)
    expected = sessions.open_session(model, threads=1).run(feeds)
    network = Network(Graph(model))
    begin = time.perf_counter()
    with torch.set_grad_enabled(args.backward):
        outputs = network(as_feeds(feeds))
    words = ""
    if args.backward:
        first = next(v for v in outputs.values() if v.requires_grad)
        first.square().mean().backward()
        parameters = list(network.parameters())
        words = f"{sum(p.grad is not None for p in parameters)} of {len(parameters)}"
    seconds = time.perf_counter() - begin
    errors = [difference(v.detach().numpy(), w) for v, w in zip(outputs.values(), expected, strict=True)]
    own = 0.0
    if max(errors) > TOLERANCE:
        plain = sessions.open_session(model, threads=1, optimise=False).run(feeds)
        own = max(difference(p, w) for p, w in zip(plain, expected, strict=True))
    return max(errors), own, words, seconds


def difference(got: np.ndarray, want: np.ndarray) -> float:
    if got.shape != want.shape:
        return float("inf")
    if want.size == 0:
        return 0.0
    got, want = got.astype(np.float64), want.astype(np.float64)
    return float(np.abs(got - want).max() / max(1.0, np.abs(want).max()))


def filled(path: Path, script: Path) -> onnx.ModelProto:
    spec = importlib.util.spec_from_file_location("hydrate", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return check_model(module.hydrate(str(path)))


if __name__ == "__main__":
    sys.exit(main())
