"""Train a small YOLOv8-shaped detector on pictures made from Fashion-MNIST, and export it to ONNX.

    python tools/train_detector.py -o detector.onnx [FOLDER WITH THE FOUR .gz FILES]

Each picture is a 64x64 canvas with one to four garments of 12 to 28 pixels. C2f blocks, SPPF, an upsampling neck,
decoupled heads at strides 8 and 16, boxes as distributions (DFL). Written are the export as it is usual (`y`
(N, 14, 80): boxes in pixels, cx cy w h, above ten class scores from 0 to 1) and, beside it, `-split` with `boxes` and
`scores` apart, `-turned` (N, 80, 14), and `-suppressed` with NonMaxSuppression inside: `found` (M, 7), rows of sample,
x0 y0 x1 y1, class, score. Trained on the first 55,000 training images; the others are for judging.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from make_fashion_mnist_sample import SOURCE, TRAINING, read_idx
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, CLASSES, BINS, STRIDES = 64, 10, 8, (8, 16)

# ---- the network -------------------------------------------------------------------------------------------


class Conv(nn.Sequential):
    def __init__(self, c_in: int, c_out: int, k: int = 1, s: int = 1) -> None:
        super().__init__(nn.Conv2d(c_in, c_out, k, s, k // 2, bias=False), nn.BatchNorm2d(c_out), nn.SiLU())


class Bottleneck(nn.Module):
    def __init__(self, c: int, add: bool) -> None:
        super().__init__()
        self.a, self.b, self.add = Conv(c, c, 3), Conv(c, c, 3), add

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return x + y if self.add else y


class C2f(nn.Module):
    def __init__(self, c_in: int, c: int, add: bool = True) -> None:
        super().__init__()
        self.first, self.block, self.last = Conv(c_in, c), Bottleneck(c // 2, add), Conv(3 * c // 2, c)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        return self.last(torch.cat([a, b, self.block(b)], 1))


class SPPF(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.last, self.pool = Conv(c, c // 2), Conv(2 * c, c), nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.first(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        return self.last(torch.cat(found, 1))


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 32), Conv(32, 64, 3, 2), C2f(64, 64))
        self.late = nn.Sequential(Conv(64, 96, 3, 2), C2f(96, 96), SPPF(96))
        self.up, self.down, self.join = C2f(160, 64, False), Conv(64, 64, 3, 2), C2f(160, 96, False)
        self.boxes = nn.ModuleList(self._head(c, 4 * BINS) for c in (64, 96))
        self.scores = nn.ModuleList(self._head(c, CLASSES) for c in (64, 96))
        for layer in self.scores:
            nn.init.constant_(layer[-1].bias, -4.0)
        grids = [torch.stack(torch.meshgrid(*[torch.arange(SIDE // s) + 0.5] * 2, indexing="xy"), -1) for s in STRIDES]
        self.register_buffer("centres", torch.cat([g.reshape(-1, 2) for g in grids]).T[None])
        self.register_buffer(
            "stride", torch.cat([torch.full((len(g) ** 2,), float(s)) for g, s in zip(grids, STRIDES, strict=True)])
        )
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32).reshape(1, BINS, 1, 1))

    @staticmethod
    def _head(c: int, out: int) -> nn.Sequential:
        return nn.Sequential(Conv(c, 32, 3), Conv(32, 32, 3), nn.Conv2d(32, out, 1))

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 4·BINS, anchors) box logits, (N, CLASSES, anchors) class logits."""
        early = self.early(x)
        late = self.late(early)
        fine = self.up(torch.cat([F.interpolate(late, scale_factor=2.0), early], 1))
        coarse = self.join(torch.cat([self.down(fine), late], 1))
        levels = (fine, coarse)
        boxes = torch.cat([h(v).flatten(2) for h, v in zip(self.boxes, levels, strict=True)], 2)
        return boxes, torch.cat([h(v).flatten(2) for h, v in zip(self.scores, levels, strict=True)], 2)

    def corners(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Left top and right bottom, (N, 2, anchors) each, in pixels."""
        shares = boxes.reshape(boxes.shape[0], 4, BINS, -1).transpose(1, 2).softmax(1)
        far = (shares * self.bins).sum(1)
        return (self.centres - far[:, :2]) * self.stride, (self.centres + far[:, 2:]) * self.stride

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = self.raw(x)
        low, high = self.corners(boxes)
        return torch.cat([(low + high) / 2, high - low], 1), scores.sigmoid()


class Joined(nn.Module):
    def __init__(self, net: Detector, turned: bool) -> None:
        super().__init__()
        self.net, self.turned = net, turned

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat(self.net(x), 1)
        return y.transpose(1, 2) if self.turned else y


# ---- pictures ----------------------------------------------------------------------------------------------


def pictures(
    images: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(count, 3, 64, 64) float32 pictures from -1 to 1, and (objects, 5) x0 y0 x1 y1 class of each."""
    x = np.repeat(rng.uniform(0, 0.25, (count, 3, 1, 1)), SIDE, 2).repeat(SIDE, 3)
    x += 0.05 * rng.standard_normal(x.shape)
    found = []
    for canvas in x:
        objects: list[list[float]] = []
        for _ in range(rng.integers(1, 5)):
            k, size = rng.integers(len(images)), int(rng.integers(12, 29))
            left, top = rng.integers(0, SIDE - size + 1, 2)
            if any(left < o[2] and o[0] < left + size and top < o[3] and o[1] < top + size for o in objects):
                continue
            rows = (np.arange(size) * 28 // size)[:, None]
            garment = images[k][rows, rows.T] / 255.0
            colour = rng.uniform(0.5, 1, (3, 1, 1))
            place = canvas[:, top : top + size, left : left + size]
            place[:] = np.maximum(place, colour * garment)
            objects.append([left, top, left + size, top + size, int(labels[k])])
        found.append(np.array(objects, np.float32).reshape(-1, 5))
    return (2 * x - 1).clip(-1, 1).astype(np.float32), found


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return (
        read_idx(folder / "train-images-idx3-ubyte.gz"),
        read_idx(folder / "train-labels-idx1-ubyte.gz").astype(np.int64),
    )


# ---- training ----------------------------------------------------------------------------------------------


def targets(net: Detector, objects: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(N, anchors, 4) corners and (N, anchors) class, -1 where there is none: anchors near the middle of a garment,
    fine ones for small garments."""
    centres = (net.centres * net.stride)[0].T.numpy()
    stride = net.stride.numpy()
    boxes = np.zeros((len(objects), len(centres), 4), np.float32)
    classes = np.full((len(objects), len(centres)), -1, np.int64)
    for n, found in enumerate(objects):
        for x0, y0, x1, y1, label in found:
            level = STRIDES[int(x1 - x0 >= 20)]
            near = np.abs(centres - [(x0 + x1) / 2, (y0 + y1) / 2]).max(axis=1) < 0.75 * stride
            at = near & (stride == level)
            boxes[n, at], classes[n, at] = (x0, y0, x1, y1), int(label)
    return torch.from_numpy(boxes), torch.from_numpy(classes)


def loss_of(net: Detector, x: Tensor, objects: list[np.ndarray]) -> Tensor:
    boxes, scores = net.raw(x)
    wanted, classes = targets(net, objects)
    seen = classes >= 0
    hot = F.one_hot(classes.clamp(min=0), CLASSES).float() * seen[..., None]
    p = scores.transpose(1, 2)
    weight = torch.where(hot > 0, 1.0, p.sigmoid().detach() ** 1.5)
    total = (F.binary_cross_entropy_with_logits(p, hot, reduction="none") * weight).sum() / seen.sum().clamp(min=1)
    if not seen.any():
        return total
    low, high = (v.transpose(1, 2)[seen] for v in net.corners(boxes))
    goal = wanted[seen]
    shared = (torch.minimum(high, goal[:, 2:]) - torch.maximum(low, goal[:, :2])).clamp(min=0).prod(1)
    union = (high - low).clamp(min=0).prod(1) + (goal[:, 2:] - goal[:, :2]).prod(1) - shared
    centre, stride = net.centres[0].T.expand(len(x), -1, -1)[seen], net.stride.expand(len(x), -1)[seen][:, None]
    far = torch.cat([centre - goal[:, :2] / stride, goal[:, 2:] / stride - centre], 1).clamp(0, BINS - 1.01)
    logits = boxes.reshape(len(x), 4, BINS, -1).permute(0, 3, 1, 2)[seen].log_softmax(-1)
    under = far.floor().long()
    share = far - under
    bins = (
        logits.gather(-1, under[..., None])[..., 0] * (1 - share)
        + logits.gather(-1, under[..., None] + 1)[..., 0] * share
    )
    return total + 2.0 * (1 - shared / union.clamp(min=1e-6)).mean() - 0.5 * bins.mean()


def train(net: Detector, images: np.ndarray, labels: np.ndarray, steps: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    begin = time.time()
    for step in range(steps):
        x, objects = pictures(images, labels, batch, rng)
        loss = loss_of(net, torch.from_numpy(x), objects)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"{step + 1} of {steps}: loss {loss.item():.3f}, {time.time() - begin:.0f} s", flush=True)


def export(net: nn.Module, path: Path, outputs: list[str]) -> None:
    axes = {name: {0: "N"} for name in ("x", *outputs)}
    torch.onnx.export(
        net, (torch.zeros(1, 3, SIDE, SIDE),), str(path), input_names=["x"], output_names=outputs, dynamic_axes=axes,
        opset_version=17, dynamo=False,
    )  # fmt: skip


def suppress(split: Path, path: Path, score: float = 0.25, overlap: float = 0.6) -> None:
    """Write the network of two outputs with suppression behind them."""
    model = onnx.load(split)
    graph, node = model.graph, onnx.helper.make_node
    scalars = {
        "most": np.array([50]),
        "overlap": np.array([overlap], np.float32),
        "least": np.array([score], np.float32),
    }
    places = {
        "two": np.array([2]),
        "ax": np.array([1]),
        "last": np.array([-1]),
        "of": np.array([0, 2]),
        "one": np.array([1]),
    }
    half = {"half": np.array(0.5, np.float32), "first": np.array([0]), "stop": np.array([4])}
    graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in {**scalars, **places, **half}.items())
    graph.node.extend([
        node("Slice", ["boxes", "first", "two", "one"], ["middle"]),
        node("Slice", ["boxes", "two", "stop", "one"], ["size"]),
        node("Mul", ["size", "half"], ["reach"]), node("Sub", ["middle", "reach"], ["low"]),
        node("Add", ["middle", "reach"], ["high"]), node("Concat", ["low", "high"], ["corners"], axis=1),
        node("Transpose", ["corners"], ["rows"], perm=[0, 2, 1]),
        node("NonMaxSuppression", ["rows", "scores", "most", "overlap", "least"], ["picked"]),
        node("Gather", ["picked", "of"], ["at"], axis=1), node("GatherND", ["rows", "at"], ["box"]),
        node("GatherND", ["scores", "picked"], ["how"]), node("Unsqueeze", ["how", "last"], ["sure"]),
        node("Gather", ["picked", "first"], ["which"], axis=1), node("Gather", ["picked", "one"], ["what"], axis=1),
        node("Cast", ["which"], ["sample"], to=1), node("Cast", ["what"], ["class"], to=1),
        node("Concat", ["sample", "box", "class", "sure"], ["found"], axis=1),
    ])  # fmt: skip
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info("found", onnx.TensorProto.FLOAT, ["M", 7]))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(SOURCE), metavar="FOLDER")
    parser.add_argument("-o", "--output", type=Path, default=Path("detector.onnx"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    images, labels = load(args.folder)
    net = Detector()
    train(net, images[:TRAINING], labels[:TRAINING], args.steps, args.batch, args.seed)
    net.eval()
    stem = args.output.with_suffix("")
    export(Joined(net, False), args.output, ["y"])
    export(Joined(net, True), stem.with_name(f"{stem.name}-turned.onnx"), ["y"])
    export(net, stem.with_name(f"{stem.name}-split.onnx"), ["boxes", "scores"])
    suppress(stem.with_name(f"{stem.name}-split.onnx"), stem.with_name(f"{stem.name}-suppressed.onnx"))


if __name__ == "__main__":
    main()
