"""What the benchmark commands share: models, samples, scores, a cache of results, tables.

Fashion-MNIST comes from the Debian package `dataset-fashion-mnist` where it is there (all 10,000 test images, and
calibration samples drawn by seed), else from the sample in `benchmarks/data`; CIFAR-10 from a folder of packed images.
Test images are used for one figure at the end, never for a decision. Nothing here knows a pruning method.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

import onnxprune
from onnxprune.runtime.install import versions
from onnxprune.runtime.sessions import open_session

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = Path("/usr/share/datasets/fashion-mnist")
MODELS = ROOT.parent / "shared" / "models"
PACKED = ROOT.parent / "shared" / "data"
FMNIST = ("resnet20", "vgg", "mbv2", "resnet56")
CIFAR = ("cifar_resnet20", "cifar_resnet56")
NETS = ", ".join(FMNIST + CIFAR)
SAMPLES = 512


def say(line: str) -> None:
    """A line for the person who waits; tables go to standard output."""
    print(line, file=sys.stderr, flush=True)


def tool(name: str) -> ModuleType:
    """A script of `tools/`, as a module."""
    folder = str(ROOT / "tools")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


# ---- models and samples ------------------------------------------------------------------------------------


def find_models(names: Iterable[str], folder: Path, packed: Path | None = None) -> dict[str, Path]:
    """Name -> file, of the Fashion-MNIST nets that are there; each that is not gets a line.

    With a folder of packed CIFAR images, of the CIFAR nets too; without its images they get a line.
    """
    found = {}
    for name in names:
        if packed is not None and name in CIFAR:
            needed = [folder / f"{name}.onnx", *(packed / file for file in Cifar.FILES)]
            missing = [path for path in needed if not path.is_file()]
            if missing:
                say(f"skipped: {name}: {missing[0]} is not there")
            else:
                found[name] = needed[0]
            continue
        places = [where / f"{name}_fmnist.onnx" for where in (folder, HERE / "models")]
        there = [p for p in places if p.is_file()]
        if there:
            found[name] = there[0]
        else:
            say(f"skipped: {name}_fmnist.onnx is not in {folder} (tools/train_fmnist.py --model {name} makes it)")
    return found


class Fashion:
    """Fashion-MNIST as the nets read it: calibration images by seed, and the labelled test images.

    Attributes:
        whole: whether the whole data set is there, not only the sample that ships.
        x, labels: the test images (n, 1, 28, 28) float32 and their classes (n,).
    """

    def __init__(self, folder: Path = DATA):
        self.tools, self.folder = tool("make_fashion_mnist_sample"), folder
        try:
            read = self.tools.read_idx
            self.train = read(folder / "train-images-idx3-ubyte.gz")[: self.tools.TRAINING]
            self.x = self.tools.as_input(read(folder / "t10k-images-idx3-ubyte.gz"))
            self.labels = read(folder / "t10k-labels-idx1-ubyte.gz").astype(np.int64)
            self.whole = True
        except FileNotFoundError:
            say(f"{folder} has no Fashion-MNIST: the sample in benchmarks/data is used, and seeds share its images")
            test = np.load(HERE / "data/test.npz")
            self.x, self.labels = test["x"], test["labels"]
            self.train, self.whole = np.load(HERE / "data/calib.npz")["x"], False

    def validate(self) -> None:
        """Score the last 5,000 training images, which no calibration set is drawn from, in place of the test images."""
        read, first = self.tools.read_idx, self.tools.TRAINING
        self.x = self.tools.as_input(read(self.folder / "train-images-idx3-ubyte.gz")[first:])
        self.labels = read(self.folder / "train-labels-idx1-ubyte.gz")[first:].astype(np.int64)

    def calibration(self, seed: int, count: int = SAMPLES) -> np.ndarray:
        """(count, 1, 28, 28) unlabelled training images, drawn by the seed from the first 55,000."""
        rows = np.random.default_rng(seed).permutation(len(self.train))[:count]
        return self.tools.as_input(self.train[rows]) if self.whole else self.train[np.sort(rows)]


def reader(folder: Path) -> ModuleType:
    """The reader `images.py` of a folder of packed images."""
    sys.path.append(str(folder))
    return importlib.import_module("images")


class Cifar:
    """CIFAR-10 as the nets read it, from the packed images of a folder with their reader; needs Pillow.

    Attributes:
        x, labels: test images (n, 3, 32, 32) float32 and their classes (n,).
    """

    FILES = ("cifar10_test.npz", "cifar10_train.npz")
    MEAN, SPREAD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    TRAINING = 45_000
    """Of the 50,000 training images the first ones; the others validate."""

    def __init__(self, folder: Path, first: int | None = None):
        self.read = reader(folder).cifar
        pictures, labels = self.read("cifar10_test.npz", first=first)
        self.x, self.labels = self.as_input(pictures), labels.astype(np.int64)

    def validate(self) -> None:
        """Score the last 5,000 training images, which no calibration set is drawn from, in place of the test images."""
        self.x, self.labels = self.training(slice(self.TRAINING, None))

    def training(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Some of the training images, as the nets read them, and their labels."""
        pictures, labels = self.read("cifar10_train.npz", first=rows.stop)
        return self.as_input(pictures[rows]), labels[rows].astype(np.int64)

    def as_input(self, pictures: np.ndarray) -> np.ndarray:
        """(n, 32, 32, 3) uint8 -> (n, 3, 32, 32) float32."""
        return ((pictures / np.float32(255) - self.MEAN) / self.SPREAD).transpose(0, 3, 1, 2).copy()

    def calibration(self, seed: int, count: int = SAMPLES) -> np.ndarray:
        """(count, 3, 32, 32) unlabelled training images: the first ones (their order is random), or so many further."""
        return self.as_input(self.read("cifar10_train.npz", first=(seed + 1) * count)[0][-count:])


Data = Fashion | Cifar


@functools.cache
def _read(kind: Callable[[Path], Data], folder: Path) -> Data:
    return kind(folder)


def data_of(net: str, fashion: Path = DATA, packed: Path = PACKED) -> Data:
    """What a net reads, from the folder that has it; read once."""
    return _read(Cifar, packed) if net in CIFAR else _read(Fashion, fashion)


def amount(data: Iterable[Data]) -> str:
    """How many images are scored: `10,000`, or `10,000 or 5,000` where nets read different ones."""
    return " or ".join(dict.fromkeys(f"{len(d.x):,}" for d in data))


def top1(model: onnx.ModelProto | str | Path, data: Data, batch: int = 250) -> float:
    """Share of the test images that the model gets right, in ONNX Runtime.

    On one thread: two that spin on a busy machine are slower than one.
    """
    source = model if isinstance(model, onnx.ModelProto) else str(model)
    session = open_session(source, threads=1, optimise=True)
    [port] = session.inputs
    outputs = [session.run({port.name: data.x[i : i + batch]})[0] for i in range(0, len(data.x), batch)]
    return float((np.concatenate(outputs).argmax(1) == data.labels).mean())


def baseline(path: Path, data: Data, cache: Cache) -> float:
    """The original's top-1."""
    key = {"benchmark": "original", "model": file_digest(path), "test_images": len(data.x)}
    return cache.get(key, lambda: {"top1": top1(path, data)})["top1"]


def macs(model: onnx.ModelProto | str | Path) -> float:
    """Multiply-accumulates of one sample, counted on the ONNX file: the same count for every method."""
    return onnxprune.open_model(model).cost().macs


# ---- what a figure depends on ------------------------------------------------------------------------------


def code_digest() -> str:
    """Of the package's source as it is on the disk: a cached figure belongs to the code that made it."""
    total = hashlib.sha256()
    package = Path(onnxprune.__file__).parent
    for path in sorted(package.rglob("*.py")):
        total.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions, machine and date, for every line of JSON."""
    v = versions()
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "onnxprune": onnxprune.__version__,
        "commit": git.stdout.strip() or None,
        "code": code_digest(),
        **{k: v[k] for k in ("onnx", "onnxruntime", "numpy", "python", "cpu")},
        "cores": os.cpu_count(),
        "date": str(datetime.date.today()),
    }


def footer(seconds: float | None = None, **more: Any) -> str:
    """The line below a table: what it was made with."""
    e = environment()
    took = "" if seconds is None else f"; {seconds / 60:.0f} min"
    extra = "".join(f", {k} {v}" for k, v in more.items())
    return (
        f"{e['cpu']} ({e['cores']} cores), Python {e['python']}, onnx {e['onnx']}, onnxruntime {e['onnxruntime']}"
        f"{extra}, onnxprune {e['commit'] or e['onnxprune']}, {e['date']}{took}"
    )


class Cache:
    """Results in a file of JSON lines, so that a run that was cut short goes on where it stopped.

    A line is the figures together with what they depend on (`key`); a line whose key is asked for is not computed
    again. Lines of other code or other settings stay in the file and are not touched.
    """

    def __init__(self, path: Path | None):
        self.path, self.lines = path, {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self.lines[_text(row["key"])] = row
                except (ValueError, KeyError):
                    say(f"{path}: a line that is not a result was passed over")

    def get(
        self,
        key: Mapping[str, Any],
        make: Callable[[], Mapping[str, Any]],
        valid: Callable[[Mapping[str, Any]], bool] = lambda row: True,
    ) -> dict[str, Any]:
        """The line for `key`, made and written down where there is none yet that is `valid`."""
        name = _text(key)
        if name not in self.lines or not valid(self.lines[name]):
            begin = time.perf_counter()
            row = {"key": dict(key), **make()}
            row = {**row, "wall_s": time.perf_counter() - begin, "environment": environment()}
            row = json.loads(json.dumps(row, default=float))
            self.lines[name] = row
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        return self.lines[name]


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, default=str)


# ---- options and tables ------------------------------------------------------------------------------------


def options(about: str | None, cache: str) -> argparse.ArgumentParser:
    """A parser with what every command takes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=Path, default=MODELS, metavar="DIR", help="folder of more models (default ../shared/models)")
    add("--cache", type=Path, default=HERE / ".cache" / cache, metavar="FILE", help="results so far, JSON lines")
    add("--no-cache", dest="cache", action="store_const", const=None, help="measure everything anew")
    add("--json", type=Path, metavar="FILE", help="write this run's results as JSON lines")
    return parser


def add_cifar(parser: argparse.ArgumentParser) -> None:
    """Where the images of the CIFAR nets are."""
    about = "folder of packed CIFAR images (default ../shared/data)"
    parser.add_argument("--cifar", type=Path, default=PACKED, metavar="DIR", help=about)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def write_lines(rows: Iterable[Mapping[str, Any]], path: Path | None) -> None:
    """The results of this run as JSON lines, where that was asked for."""
    if path is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean of percentages, and the least and greatest of several: `92.1 (91.9–92.3)`."""
    v = 100 * np.asarray(values)
    mean = f"{v.mean():.{digits}f}"
    return mean if len(v) == 1 else f"{mean} ({v.min():.{digits}f}–{v.max():.{digits}f})"
