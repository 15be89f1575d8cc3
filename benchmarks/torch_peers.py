"""Torch-Pruning on the small nets: from the ONNX file to a torch module, pruned, and back to ONNX.

The architectures are those of `tools/train_fmnist.py` and `cifar_resnet.py`; the weights come from the file, node by
node in execution order, and the module must then give the file's outputs. Widths are the library's own: the same share
in every layer, residual streams included, the classifier left whole. Of the CIFAR nets the streams stay whole too: the
library takes channel k on both sides of a shortcut that pads for the same one, and what it cuts there does not run.
torch and torch_pruning are imported when they are needed.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.runtime.sessions import open_session

if TYPE_CHECKING:
    from torch import nn

SIDES = {1: 28, 3: 32}
"""Channels of an image -> its height and width."""


def architecture(net: str) -> nn.Module:
    """Untrained."""
    if net in common.CIFAR:
        import cifar_resnet

        return cifar_resnet.resnet(int(net.removeprefix("cifar_resnet")))
    module: nn.Module = common.tool("train_fmnist").NETS[net]()
    return module


def size(module: nn.Module) -> tuple[int, int, int, int]:
    """Of one image, as the module reads it."""
    from torch import nn

    channels = next(m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d))
    return 1, channels, SIDES[channels], SIDES[channels]


def load(net: str, path: Path) -> nn.Module:
    """The module of that architecture with the file's weights; AssertionError where its outputs are not the file's."""
    import torch

    module = architecture(net).eval()
    model = onnx.load(path)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    values |= {n.output[0]: values[n.input[0]] for n in model.graph.node if n.op_type == "Identity"}
    nodes = [n for n in model.graph.node if n.op_type in ("Conv", "BatchNormalization", "Gemm")]
    layers = _in_order(module)
    assert len(nodes) == len(layers), f"{path} is not a {net}"
    for node, layer in zip(nodes, layers, strict=True):
        names = ["weight", "bias", "running_mean", "running_var"]
        for name, source in zip(names, node.input[1:], strict=False):
            getattr(layer, name).data.copy_(torch.from_numpy(values[source].copy()))
    x = np.random.default_rng(0).standard_normal((4, *size(module)[1:]), dtype=np.float32)
    with torch.inference_mode():
        error = np.abs(module(torch.from_numpy(x)).numpy() - open_session(str(path)).run({"x": x})[0]).max()
    assert error < 1e-3, f"the module differs from {path} by {error}"
    return module


def _in_order(module: nn.Module) -> list[Any]:
    """Convs, BatchNorms and Linears in the order in which they run."""
    import torch
    from torch import nn

    seen: list[Any] = []
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    hooks = [
        m.register_forward_hook(lambda layer, *_: seen.append(layer)) for m in module.modules() if isinstance(m, kinds)
    ]
    with torch.inference_mode():
        module(torch.zeros(size(module)))
    for hook in hooks:
        hook.remove()
    return seen


def count(module: nn.Module) -> float:
    """Multiply-accumulates of convs and Linears: what `common.macs` counts on the exported file."""
    import torch
    from torch import nn

    total = 0.0

    def add(layer: Any, _: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(add) for m in module.modules() if isinstance(m, kinds)]
    with torch.inference_mode():
        module(torch.zeros(size(module)))
    for hook in hooks:
        hook.remove()
    return total


def prune(module: nn.Module, importance: str, share: float, round_to: int | None = None) -> nn.Module:
    """A pruned copy: `share` of every layer's channels gone by "l2" (group magnitude) or "fpgm"."""
    import torch
    import torch_pruning as tp
    from torch import nn

    score = {
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "fpgm": lambda: tp.importance.FPGMImportance(),
    }[importance]()
    pruned = copy.deepcopy(module)
    whole = [m for m in pruned.modules() if isinstance(m, nn.Linear)] + getattr(pruned, "stream", [])
    pruner = tp.pruner.BasePruner(
        pruned,
        torch.zeros(size(module)),
        importance=score,
        pruning_ratio=share,
        ignored_layers=whole,
        round_to=round_to,
    )
    pruner.step()
    return pruned


def closest(removed: Callable[[float], float], target: float, steps: int = 12) -> float:
    """The knob in (0, 1) whose share of removed MACs comes closest to the target; more knob removes more."""
    low, high, best = 0.0, 1.0, (np.inf, 0.5)
    for _ in range(steps):
        middle = (low + high) / 2
        got = removed(middle)
        best = min(best, (abs(got - target), middle))
        low, high = (middle, high) if got < target else (low, middle)
    return best[1]


def reestimate(module: nn.Module, calibration: np.ndarray) -> nn.Module:
    """BatchNorm's running mean and variance anew, as plain averages over the calibration images (in place)."""
    import torch
    from torch import nn

    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
            m.momentum = None
    module.train()
    with torch.no_grad():
        for i in range(0, len(calibration), 64):
            module(torch.from_numpy(calibration[i : i + 64]))
    return module.eval()


def export(module: nn.Module) -> onnx.ModelProto:
    """As ONNX, by the legacy exporter; BatchNorm folded into the convs, as it does on its own."""
    import torch

    file = io.BytesIO()
    torch.onnx.export(
        module.eval(),
        (torch.zeros(size(module)),),
        file,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        opset_version=17,
        dynamo=False,
    )
    return onnx.load_from_string(file.getvalue())
