"""Train a small net on Fashion-MNIST and export it to ONNX: how the nets of our benchmarks were made.

    python tools/train_fmnist.py --model resnet20 -o resnet20.onnx [FOLDER WITH THE FOUR .gz FILES]

SGD with a one-cycle schedule, flips and shifts. The first 55,000 training images train, the last 5,000
validate, the 10,000 test images are scored once, at the end. The export is opset 17 with a free batch, input
`x` (N, 1, 28, 28) = `(pixel / 255 - 0.286) / 0.353`, output `y` (N, 10), and BatchNormalization kept.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from make_fashion_mnist_sample import SOURCE, TRAINING, as_input, read_idx
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.optim.lr_scheduler import OneCycleLR

# ---- nets: Sequential at the top, so that names in the ONNX file count the layers --------------------------


def conv_bn(c_in: int, c_out: int, k: int = 3, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), *([nn.ReLU()] if relu else []))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


class Basic(nn.Module):
    """The residual block of ResNet on CIFAR; a projection where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.a = conv_bn(c_in, c_out, stride=stride)
        self.b = conv_bn(c_out, c_out, relu=False)
        self.sc = nn.Identity() if (c_in, stride) == (c_out, 1) else conv_bn(c_in, c_out, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)) + self.sc(x))


class Inverted(nn.Module):
    """The inverted residual of MobileNetV2, expansion 4."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * c_in
        self.m = nn.Sequential(
            conv_bn(c_in, wide, 1), conv_bn(wide, wide, 3, stride, wide), conv_bn(wide, c_out, 1, relu=False)
        )
        self.residual = (c_in, stride) == (c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x) if self.residual else self.m(x)


class Dense(nn.Module):
    """The dense layer of DenseNet-BC: what it makes stands behind what it read."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.m = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.ReLU(),
            conv_bn(c_in, 4 * growth, 1),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.m(x)], 1)


def resnet(depth: int) -> nn.Sequential:
    if depth < 8 or depth % 6 != 2:
        raise SystemExit(f"--depth {depth}: a ResNet of basic blocks has 6n + 2 layers, such as 20 or 56")
    widths = [16, *(width for width in (16, 32, 64) for _ in range((depth - 2) // 6))]
    blocks = [Basic(a, b, stride=1 if a == b else 2) for a, b in pairwise(widths)]
    return nn.Sequential(conv_bn(1, 16), *blocks, *head(64))


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    for c_in, c_out in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.MaxPool2d(2)] if layers else []
        layers += [conv_bn(c_in, c_out), conv_bn(c_out, c_out)]
    return nn.Sequential(*layers, *head(128))


def mbv2() -> nn.Sequential:
    widths, strides = (16, 24, 24, 32, 32, 32, 64, 64), (1, 1, 2, 1, 1, 2, 1)
    blocks = [Inverted(*block) for block in zip(widths, widths[1:], strides, strict=False)]
    return nn.Sequential(conv_bn(1, 16), *blocks, conv_bn(64, 128, 1), *head(128))


def densenet(each: int = 8, growth: int = 12) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 24, 3, 2, 1, bias=False)]
    width = 24
    for stage in range(3):
        if stage:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
        layers += [Dense(width + growth * k, growth) for k in range(each)]
        width += each * growth
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), *head(width))


NETS = {"resnet20": lambda: resnet(20), "resnet56": lambda: resnet(56), "vgg": vgg, "mbv2": mbv2, "densenet": densenet}


# ---- training ----------------------------------------------------------------------------------------------


def augment(x: Tensor, shift: int = 2) -> Tensor:
    """Each image flipped or not, and shifted by up to `shift` pixels; black moves in."""
    n, _, h, w = x.shape
    x = torch.where(torch.rand(n, 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
    x = pad(x, (shift,) * 4, value=(0 - 0.286) / 0.353)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, n, 1, 1), device=x.device)
    rows = torch.arange(h, device=x.device)[:, None] + dy
    columns = torch.arange(w, device=x.device)[None, :] + dx
    return x[torch.arange(n, device=x.device)[:, None, None], 0, rows, columns][:, None]


def top1(net: nn.Module, x: Tensor, y: Tensor, bf16: bool = False) -> float:
    net.eval()
    with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        return float(torch.cat([net(part).argmax(1) for part in x.split(500)]).eq(y).float().mean())


def train(net: nn.Module, x: Tensor, y: Tensor, valid: tuple[Tensor, Tensor], args: argparse.Namespace) -> None:
    per_epoch = max(len(x) // args.batch, 1)
    steps = args.steps or args.epochs * per_epoch
    decayed = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]  # biases and BN are not decayed
    groups = [{"params": decayed, "weight_decay": args.decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
    schedule = OneCycleLR(optimizer, args.lr, total_steps=max(steps, 10), pct_start=0.2)
    began, order = time.monotonic(), torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(order) < min(args.batch, len(x)):
            order = torch.randperm(len(x), device=x.device)
        rows, order = order[: args.batch], order[args.batch :]
        net.train()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=args.bf16):
            loss = cross_entropy(net(augment(x[rows])), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % per_epoch == 0 or step == steps:
            score, seconds = top1(net, *valid, args.bf16), time.monotonic() - began
            print(f"step {step}/{steps}: loss {loss:.3f}, {score:.2%} validation, {seconds:.0f} s", flush=True)


# ---- export ------------------------------------------------------------------------------------------------


def export(net: nn.Module, path: Path) -> None:
    net = net.float().cpu().to(memory_format=torch.contiguous_format).eval()
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold BN into the convolutions
        do_constant_folding=False,
        dynamo=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", choices=NETS, default="resnet20")
    parser.add_argument("--depth", type=int, help="a ResNet of another depth, 6n + 2")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--steps", type=int, help="stop the whole schedule after so many steps")
    parser.add_argument("--limit", type=int, default=TRAINING, help="train on the first so many images")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 and channels-last: twice as fast on a CPU")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    net = (resnet(args.depth) if args.depth else NETS[args.model]()).to(args.device)
    if args.bf16:
        net = net.to(memory_format=torch.channels_last)

    def load(part: str) -> tuple[Tensor, Tensor]:
        images = read_idx(args.source / f"{part}-images-idx3-ubyte.gz")
        labels = read_idx(args.source / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
        return torch.from_numpy(as_input(images)).to(args.device), torch.from_numpy(labels).to(args.device)

    x, y = load("train")
    limit = min(args.limit, TRAINING)
    train(net, x[:limit], y[:limit], (x[TRAINING:], y[TRAINING:]), args)
    print(f"test: {top1(net, *load('t10k'), args.bf16):.2%} of 10,000")
    export(net, args.output)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
