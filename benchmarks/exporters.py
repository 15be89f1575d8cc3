"""Files that no one has prepared: a network of every family of timm, pytorchcv, Keras and Paddle, exported and cut.

    python benchmarks/exporters.py                          whatever of the four is installed
    python benchmarks/exporters.py --libraries timm --exporter dynamo --each 2
    python benchmarks/exporters.py --libraries pytorchcv --names dla34,hardnet68

Each network gets random weights (statistics of BatchNormalization too), is written by its library's exporter in a
process of its own, cut by half without samples or repair, and compared with the masked original. What the exporter
itself cannot write is listed as such. Keras runs on torch and needs `KERAS_BACKEND=torch`, which is set here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LIBRARIES = ("timm", "pytorchcv", "keras", "paddle")
LARGEST = 60e6
"""Parameters of the largest network that is tried."""
KERAS = (
    "MobileNet MobileNetV2 MobileNetV3Small ResNet50 ResNet50V2 DenseNet121 EfficientNetB0 EfficientNetV2B0 "
    "ConvNeXtTiny InceptionV3 Xception NASNetMobile"
).split()
PADDLE = (
    "LeNet alexnet densenet121 googlenet inception_v3 mobilenet_v1 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large "
    "resnet18 resnext50_32x4d shufflenet_v2_x0_25 shufflenet_v2_swish squeezenet1_1"
).split()


def main() -> int:
    import common

    from onnxprune import api
    from onnxprune.errors import BudgetError, UnsupportedError

    args = options().parse_args()
    begin, rows, failed = time.perf_counter(), [], 0
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        for library in args.libraries:
            names = args.names or child(args, "--list", library)
            if isinstance(names, str):
                common.say(f"{library}: skipped: {names}")
                continue
            for name in names[: args.limit]:
                path = Path(folder, "model.onnx")
                path.unlink(missing_ok=True)
                said = child(args, "--make", library, name, str(path))
                began = time.perf_counter()
                if not path.exists():
                    rows.append((library, name, "not exported", "", "", "", str(said)[:80]))
                    common.say(" ".join(rows[-1]))
                    continue
                try:
                    result = api.prune(path, args.ratio, repair="none", best_effort=True, methods=("channels",))
                    kept = result.reasons()[0][0] if result.macs_removed < args.ratio - 0.05 else ""
                    found = ("exact", f"{result.macs_removed:.0%}", f"{result.surgery.worst:.0e}")
                except (UnsupportedError, BudgetError) as error:
                    found, kept = ("declined", "", ""), str(error)
                except Exception as error:
                    found, kept, failed = ("CRASHED", "", ""), repr(error), failed + 1
                rows.append((library, name, *found, f"{time.perf_counter() - began:.1f}", kept[:80]))
                common.say(" ".join(rows[-1]))
    print(common.table(("library", "network", "", "MACs", "error", "seconds", "why"), rows))
    print()
    for library in dict.fromkeys(row[0] for row in rows):
        kinds = [row[2] for row in rows if row[0] == library]
        reached = sum(row[2] == "exact" and not row[6] for row in rows if row[0] == library)
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        print(f"{library}: {counts}; {reached} reached −{args.ratio:.0%} within 5 points")
    print(common.footer(time.perf_counter() - begin))
    return 1 if failed else 0


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--libraries", type=lambda text: text.split(","), default=LIBRARIES, metavar="LIST")
    add("--names", type=lambda text: text.split(","), metavar="LIST", help="of one library's networks")
    add("--exporter", choices=("torchscript", "dynamo"), default="torchscript", help="of torch (default torchscript)")
    add("--each", type=int, default=1, metavar="N", help="networks of a family (1)")
    add("--limit", type=int, metavar="N", help="networks of a library")
    add("--ratio", type=float, default=0.5, metavar="R")
    add("--seconds", type=float, default=300.0, metavar="S", help="for one export (300)")
    add("--python", default=sys.executable, metavar="FILE", help="interpreter that has the libraries (this one)")
    return parser


# ---- in a process of its own -------------------------------------------------------------------------------


def child(args: argparse.Namespace, *command: str) -> Any:
    """What this file says when it is run with that command: a list of names, or a text that says what went wrong."""
    more = [__file__, *command, args.exporter, str(args.each)]
    try:
        done = subprocess.run([args.python, *more], capture_output=True, text=True, timeout=args.seconds)
    except subprocess.TimeoutExpired:
        return f"not done after {args.seconds:g} s"
    lines = (done.stdout.strip() or done.stderr.strip() or f"exit {done.returncode}").splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 else lines[-1]


def work(command: str, library: str, *rest: str) -> None:
    """List networks, or make one and export it."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if command == "--list":
        print(json.dumps(LISTS[library](int(rest[1]))))
        return
    name, path, exporter, _ = rest
    MAKERS[library](name, path, exporter)
    print(json.dumps(name))


def timm_names(each: int) -> list[str]:
    import timm
    import torch
    from timm.models import _registry

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(_registry._model_to_module[name], []).append(name)
    found = []
    for names in families.values():
        sizes = []
        for name in names[:: max(1, len(names) // 12)]:
            with torch.device("meta"):
                sizes.append((sum(p.numel() for p in timm.create_model(name).parameters()), name))
        found += [name for size, name in sorted(sizes)[:each] if size <= LARGEST]
    return found


def pytorchcv_names(each: int) -> list[str]:
    from pytorchcv.model_provider import _models

    families: dict[str, list[str]] = {}
    for name, make in _models.items():
        families.setdefault(make.__module__, []).append(name)
    return [name for names in families.values() for name in names[:each]]


def make_timm(name: str, path: str, exporter: str) -> None:
    import timm

    network = timm.create_model(name)
    by_torch(network, (2, *network.default_cfg["input_size"]), path, exporter)


def make_pytorchcv(name: str, path: str, exporter: str) -> None:
    from pytorchcv.model_provider import get_model

    network = get_model(name, pretrained=False)
    size = getattr(network, "in_size", (224, 224))
    channels = getattr(network, "in_channels", 3)
    if name.startswith(("jasper", "quartznet")):  # sound: features and frames
        return by_torch(network, (2, channels, 128), path, exporter)
    by_torch(network, (2, channels, *(size if isinstance(size, tuple) else (size, size))), path, exporter)


def by_torch(network: Any, shape: tuple[int, ...], path: str, exporter: str) -> None:
    """Random statistics and vectors, then torch's exporter with a free batch."""
    import torch

    torch.manual_seed(0)
    network.eval()
    for name, value in (*network.named_buffers(), *network.named_parameters()):
        if name.endswith("running_mean"):
            value.data.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.data.uniform_(0.6, 1.4)
        elif value.ndim == 1 and value.is_floating_point():
            value.data.add_(0.2 * torch.randn_like(value))
    x = (torch.randn(shape),)
    if exporter == "torchscript":
        axes = {"x": {0: "N"}}
        torch.onnx.export(network, x, path, opset_version=17, dynamo=False, input_names=["x"], dynamic_axes=axes)
    else:
        free = ({0: torch.export.Dim("N", min=1, max=64)},)
        torch.onnx.export(network, x, path, dynamo=True, external_data=False, dynamic_shapes=free, verbose=False)


def make_keras(name: str, path: str, exporter: str) -> None:
    import keras
    import numpy as np

    side = 299 if name in ("InceptionV3", "Xception") else 224
    network = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3))
    rng = np.random.default_rng(0)
    for v in network.weights:
        last = v.path.rpartition("/")[2]
        if last in ("moving_mean", "beta", "bias"):
            v.assign(rng.normal(0, 0.1, v.shape))
        elif last in ("moving_variance", "gamma"):
            v.assign(rng.uniform(0.6, 1.4, v.shape))
    network(np.zeros((1, side, side, 3), np.float32))
    network.export(path, format="onnx", verbose=False)


def make_paddle(name: str, path: str, exporter: str) -> None:
    import paddle
    from paddle.vision import models

    network = getattr(models, name)()
    network.eval()
    paddle.seed(0)
    for key, value in network.state_dict().items():
        if key.endswith("_mean"):
            value.set_value(paddle.randn(value.shape) * 0.1)
        elif key.endswith("_variance"):
            value.set_value(paddle.uniform(value.shape, min=0.6, max=1.4))
    shape = [None, 1, 28, 28] if name == "LeNet" else [None, 3, *([299, 299] if "v3" in name[-2:] else [224, 224])]
    spec = paddle.static.InputSpec(shape, "float32", "x")
    paddle.onnx.export(network, path.removesuffix(".onnx"), input_spec=[spec], opset_version=13)


def installed(names: Iterable[str], *modules: str) -> Callable[[int], list[str]]:
    """The names, once those modules can be imported."""

    def listed(each: int) -> list[str]:
        for module in modules:
            __import__(module)
        return list(names)

    return listed


LISTS: dict[str, Callable[[int], list[str]]] = {
    "timm": timm_names,
    "pytorchcv": pytorchcv_names,
    "keras": installed(KERAS, "keras", "torch"),
    "paddle": installed(PADDLE, "paddle", "paddle2onnx"),
}
MAKERS: dict[str, Callable[[str, str, str], None]] = {
    "timm": make_timm,
    "pytorchcv": make_pytorchcv,
    "keras": make_keras,
    "paddle": make_paddle,
}

if __name__ == "__main__":
    if sys.argv[1:2] in (["--list"], ["--make"]):
        work(*sys.argv[1:])
    else:
        sys.exit(main())
