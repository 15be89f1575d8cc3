"""Train four small networks whose outputs are no class scores, each with labels to judge it by, and export them.

    python tools/train_meanings.py -o FOLDER [--only segmentation,embedding,super_resolution,keypoints]

`segmentation.onnx`: a U-Net, the class of every pixel of a 48x48 picture with up to three garments (11 classes);
`embedding.onnx`: 32 numbers of length one for a garment; `super_resolution.onnx`: 28x28 from 14x14 pixels;
`keypoints.onnx`: the corners of a shaded kite in a 32x32 picture. All but the last are made from the first 55,000
training images of Fashion-MNIST; `samples` makes the pictures that they are judged by from the others.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from make_fashion_mnist_sample import SOURCE, TRAINING, read_idx
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, KITE = 48, 32
Pair = tuple[np.ndarray, np.ndarray]

# ---- pictures ----------------------------------------------------------------------------------------------


class Garments:
    """Images (n, 28, 28) from 0 to 1 and their classes; the training ones, or those kept back."""

    def __init__(self, folder: Path, *, held: bool) -> None:
        part = slice(TRAINING, None) if held else slice(0, TRAINING)
        self.images = read_idx(folder / "train-images-idx3-ubyte.gz")[part].astype(np.float32) / 255
        self.classes = read_idx(folder / "train-labels-idx1-ubyte.gz")[part].astype(np.int64)


def scenes(garments: Garments, count: int, rng: np.random.Generator) -> Pair:
    """(count, 1, 48, 48) pictures and (count, 48, 48) classes of pixels, 0 where there is no garment."""
    x = 0.1 * rng.standard_normal((count, 1, SIDE, SIDE)) + rng.uniform(0, 0.2, (count, 1, 1, 1))
    y = np.zeros((count, SIDE, SIDE), np.int64)
    for canvas, classes in zip(x, y, strict=True):
        for _ in range(rng.integers(1, 4)):
            k, size = rng.integers(len(garments.images)), int(rng.integers(18, 33))
            left, top = rng.integers(0, SIDE - size + 1, 2)
            rows = (np.arange(size) * 28 // size)[:, None]
            one = garments.images[k][rows, rows.T]
            seen = one > 0.15
            place = canvas[0, top : top + size, left : left + size]
            place[seen] = one[seen] * rng.uniform(0.6, 1.2)
            classes[top : top + size, left : left + size][seen] = garments.classes[k] + 1
    return x.astype(np.float32), y


def singles(garments: Garments, count: int, rng: np.random.Generator) -> Pair:
    """(count, 1, 28, 28) pictures and their classes."""
    at = rng.integers(len(garments.images), size=count)
    return garments.images[at][:, None] + np.float32(0.05) * rng.standard_normal((count, 1, 28, 28), np.float32), (
        garments.classes[at]
    )


def small(garments: Garments, count: int, rng: np.random.Generator) -> Pair:
    """(count, 1, 14, 14) means of four pixels, and the (count, 1, 28, 28) pixels."""
    y = garments.images[rng.integers(len(garments.images), size=count)][:, None]
    return y.reshape(count, 1, 14, 2, 14, 2).mean(axis=(3, 5)), y


def kites(garments: Garments, count: int, rng: np.random.Generator) -> Pair:
    """(count, 1, 32, 32) pictures of a kite, light at its tip, and (count, 4, 2) its corners, 0 to 1."""
    own = np.array([[0, -1.0], [0.6, -0.2], [0, 0.9], [-0.6, -0.2]])
    turn, size = rng.uniform(0, 2 * np.pi, count), rng.uniform(6, 12, (count, 1, 1))
    spin = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], 1).reshape(count, 2, 2)
    corners = size * (own * rng.uniform(0.8, 1.2, (count, 4, 1))) @ spin + rng.uniform(12, KITE - 12, (count, 1, 2))
    at = np.stack(np.meshgrid(*[np.arange(KITE) + 0.5] * 2), -1)[None]  # x, y
    inside = np.ones((count, KITE, KITE), bool)
    for k in range(4):
        a, b = corners[:, k, None, None], corners[:, (k + 1) % 4, None, None]
        inside &= ((b - a)[..., 0] * (at - a)[..., 1] - (b - a)[..., 1] * (at - a)[..., 0]) > 0
    far = np.linalg.norm(at - corners[:, 0, None, None], axis=-1) / (2 * size)
    x = np.where(inside, 1 - 0.8 * far, 0.1) + 0.08 * rng.standard_normal(inside.shape)
    return x[:, None].astype(np.float32), (corners / KITE).astype(np.float32)


# ---- networks ----------------------------------------------------------------------------------------------


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(1, 16), nn.Sequential(conv(16, 32, 2), conv(32, 32)), conv(32, 64, 2)
        self.d = conv(64, 64)
        self.up, self.top = conv(96, 32), conv(48, 16)
        self.last = nn.Conv2d(16, 11, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        c = self.d(self.c(b))
        b = self.up(torch.cat([F.interpolate(c, scale_factor=2.0), b], 1))
        return self.last(self.top(torch.cat([F.interpolate(b, scale_factor=2.0), a], 1)))


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(1, 24), conv(24, 48, 2), conv(48, 64, 2), conv(64, 64))
        self.last = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.last(self.body(x).mean((2, 3))))


class Finer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU())
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU()) for _ in range(3)))
        self.last = nn.Conv2d(32, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0) + F.pixel_shuffle(self.last(self.body(self.first(x))), 2)


class Corners(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(1, 16), conv(16, 32, 2), conv(32, 48, 2), conv(48, 48, 2))
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(48 * 16, 96), nn.ReLU(), nn.Linear(96, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x)).reshape(-1, 4, 2)


# ---- training ----------------------------------------------------------------------------------------------


def proxies() -> Callable[[Tensor, Tensor], Tensor]:
    """Softmax over the cosines to a vector a class (Zhai and Wu, 2019); the vectors are learned too."""
    own = nn.Parameter(torch.randn(10, 32))

    def loss(y: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(12 * y @ F.normalize(own).T, classes)

    loss.own = [own]  # type: ignore[attr-defined]
    return loss


TASKS: dict[str, tuple[Callable[..., Pair], type[nn.Module], Callable[[], Callable], int]] = {
    "segmentation": (scenes, UNet, lambda: F.cross_entropy, 900),
    "embedding": (singles, Embedder, proxies, 1500),
    "super_resolution": (small, Finer, lambda: F.l1_loss, 2500),
    "keypoints": (kites, Corners, lambda: F.smooth_l1_loss, 3000),
}
"""What is drawn, the network, its loss, and the steps of 32 pictures."""


def samples(task: str, folder: Path, count: int, seed: int, *, held: bool) -> Pair:
    """Pictures and their labels; held: of garments that no network was trained on."""
    return TASKS[task][0](Garments(folder, held=held), count, np.random.default_rng(seed))


def train(task: str, garments: Garments, seed: int, steps: int) -> nn.Module:
    draw, make, loss_of, _ = TASKS[task]
    torch.manual_seed(seed)
    rng, net, loss = np.random.default_rng(seed), make(), loss_of()
    optimizer = torch.optim.AdamW([*net.parameters(), *getattr(loss, "own", [])], lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    begin = time.time()
    for step in range(steps):
        x, y = (torch.from_numpy(v) for v in draw(garments, 32, rng))
        error = loss(net(x), y)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
        if step % 300 == 299:
            print(f"{task}: {step + 1} of {steps}: loss {error.item():.4f}, {time.time() - begin:.0f} s", flush=True)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(SOURCE), metavar="FOLDER")
    parser.add_argument("-o", "--output", type=Path, default=Path())
    parser.add_argument("--only", default=",".join(TASKS))
    parser.add_argument("--steps", type=int, help="instead of those of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    garments = Garments(args.folder, held=False)
    args.output.mkdir(parents=True, exist_ok=True)
    for task in args.only.split(","):
        net = train(task, garments, args.seed, args.steps or TASKS[task][3])
        x, _ = TASKS[task][0](garments, 1, np.random.default_rng(0))
        torch.onnx.export(
            net, (torch.from_numpy(x),), str(args.output / f"{task}.onnx"), input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}}, opset_version=17, dynamo=False,
        )  # fmt: skip


if __name__ == "__main__":
    main()
