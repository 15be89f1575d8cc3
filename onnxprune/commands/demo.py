"""`onnxprune demo`: the README's example in a folder of one's own, on the model and samples that come with the tool."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from onnxprune.commands.common import print_out
from onnxprune.commands.options import Parser, add_words
from onnxprune.errors import FileError, one_line
from onnxprune.report.status import Status
from onnxprune.report.terminal import plain

MODEL, SAMPLES = "resnet20_fmnist.onnx", "calib.npz"
FILES = {MODEL: "models", SAMPLES: "data", "LICENSE.txt": "data"}
"""What is copied, and where a clone has it in `benchmarks/`."""
PACKAGE = Path(__file__).parent.parent
FOLDER = "onnxprune-demo"


def parser() -> Parser:
    about = (
        "Put a small model and samples into FOLDER and halve the model's multiply-accumulates, about half a minute\n"
        "on two cores: a ResNet-20 that tells clothes apart, and 512 images of Fashion-MNIST (MIT licence)."
    )
    made = Parser("demo", "demo [FOLDER] [options]", about)
    made.add_argument("folder", nargs="?", default=FOLDER, metavar="FOLDER", help=argparse.SUPPRESS)
    made.add_argument("--force", action="store_true", help="replace what is in FOLDER under the same names")
    add_words(made.add_argument_group("general").add_argument)
    return made


def run(args: argparse.Namespace, status: Status) -> None:
    from onnxprune.commands import prune

    folder = Path(args.folder)
    _put(folder, force=args.force)
    words = [str(folder / MODEL), "--ratio", "0.5", "--calib", str(folder / SAMPLES),
             "--report", str(folder / "pruned.html")]  # fmt: skip
    words += [f"--{name}" for name in ("force", "quiet", "verbose", "debug") if getattr(args, name)]
    if not args.quiet:
        print_out(plain(f"$ {shlex.join(['onnxprune', *words])}") + "\n\n")
    asked = prune.parser().read(words)
    asked.argv = ["onnxprune", *words]
    status.set(quiet=asked.quiet, verbose=asked.verbose, model=asked.model)
    prune.run(asked, status)
    if not args.quiet:
        print_out("\n" + plain(f"Open {folder / 'pruned.html'}, or go on: `onnxprune help start`.") + "\n")


def _put(folder: Path, *, force: bool) -> None:
    """Copy what is needed into the folder; what is there already with the same content stays.

    Raises:
        FileError: something else is there, or the folder cannot be made.
    """
    from onnxprune.files.write import atomic_write_bytes

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(one_line(f"{folder}: cannot be made: {reason}; choose another folder")) from error
    for name in FILES:
        data, target = source(name).read_bytes(), folder / name
        if not (target.is_file() and target.stat().st_size == len(data) and target.read_bytes() == data):
            atomic_write_bytes(data, target, force=force)


def source(name: str) -> Path:
    """Where a file of the demonstration is: in the package, or in the clone that it runs from.

    Raises:
        FileError: in neither.
    """
    places = PACKAGE / "demo" / name, PACKAGE.parent / "benchmarks" / FILES[name] / name
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileError(f"{name}: did not come with this install; install from a clone or a wheel of ours")
    return found
