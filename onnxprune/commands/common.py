"""What commands share: their options, the steps before the work, and how they print.

Only the standard library at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onnxprune import __version__
from onnxprune.errors import FileError, UsageError
from onnxprune.report.terminal import Status
from onnxprune.samples.sources import kinds

if TYPE_CHECKING:
    from onnxprune.api import Subject
    from onnxprune.plan import PrunePlan


# ---- options ---------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one line, exit code 2."""

    def __init__(self, name: str, usage: str, about: str, epilog: str | None = None):
        super().__init__(
            prog=f"onnxprune {name}".strip(),
            usage=f"onnxprune {usage}",
            description=about,
            epilog=epilog,
            allow_abbrev=False,
            add_help=False,  # `add_general` lists it
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=27, width=100),
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def sizes(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(n) for n in sizes.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=1,3,224,224")
    return name, shape


def seed_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.3,0.5,0.7") from None


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def add_samples(parser: Parser) -> None:
    group = parser.add_argument_group("samples")
    add = group.add_argument
    add("--calib", metavar="SAMPLES", help=f"unlabelled: {kinds()}")
    add("--samples", type=int, metavar="N", help="use at most N samples")
    add("--image", metavar="SPEC", help="for a folder of images: size=224x224,mean=0.5,std=0.5,...")
    add(
        "--input-shape",
        type=sizes,
        action="append",
        default=[],
        metavar="NAME=N,N",
        help="sizes of an input with dynamic axes (repeatable)",
    )


Add = Callable[..., object]
"""`add_argument` of a parser or of a group."""


def add_statistics(add: Add) -> None:
    add("--prune-statistics", action="store_true", help="cut under LayerNorm and the like too: not exact")


def add_names(add: Add) -> None:
    add("--include", metavar="REGEX", help="cut only groups whose name or weights match")
    add("--exclude", metavar="REGEX", help="never cut groups whose name or weights match")


def add_report(add: Add) -> None:
    add("--report", metavar="FILE", help="write a page about the result too: .html")


PROVIDERS = "cpu (default), cuda, tensorrt, openvino, coreml, directml"
OPTION = "an option of ONNX Runtime's provider: cuda.use_tf32=0, cuda.prefer_nhwc=1, cuda.enable_cuda_graph=1, "
OPTION += "cuda.cudnn_conv_algo_search=HEURISTIC, ... (repeatable)"


def add_providers(add: Add, worded: Callable[[str], str] = str) -> None:
    """Where timed runs run; `worded` turns an option's help into what is shown."""
    add("--providers", type=words, metavar="LIST", help=worded(f"time on {PROVIDERS}"))
    add("--provider-option", action="append", default=[], metavar="P.KEY=VALUE", help=worded(OPTION))


def add_output(add: Add, written: str = "NAME.pruned.onnx beside the input") -> None:
    add("-o", "--output", metavar="FILE", help=f"where to write (default {written})")
    add("--force", action="store_true", help="replace an existing file")


def add_general(parser: Parser, *, json_help: str = "print one JSON object instead of text") -> None:
    add = parser.add_argument_group("general").add_argument
    add("--json", action="store_true", help=json_help)
    add("--threads", type=int, metavar="N", help="cores to use (default: all; one for timed runs)")
    add("--seed", type=seed_number, metavar="N", help="for everything random (default 0)")
    add_words(add)


def add_words(add: Add) -> None:
    """How much is said; help and version."""
    add("-q", "--quiet", action="store_true", help="only errors on standard error")
    add("-v", "--verbose", action="store_true", help="name the phases; full tables")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("-h", "--help", action="help", help=argparse.SUPPRESS)
    add("--version", action="version", version=f"onnxprune {__version__}")


# ---- steps ----------------------------------------------------------------------------------------------


def check_samples(args: argparse.Namespace) -> None:
    if not args.calib:
        for option in ("samples", "image"):
            if getattr(args, option) is not None:
                raise UsageError(f"--{option} says how to read samples; give --calib too")
        if getattr(args, "repair", None) in ("statistics", "refit", "distill"):
            raise UsageError(f"--repair {args.repair} needs samples; give --calib")


def shapes_given(args: argparse.Namespace) -> dict[str, Sequence[int]] | None:
    return dict(args.input_shape) or None


def open_subject(args: argparse.Namespace, status: Status, plan: PrunePlan | None = None) -> Subject:
    from onnxprune import api

    image = None
    if args.image is not None:
        from onnxprune.samples.images import ImageSpec

        image = ImageSpec.parse(args.image)
    status.phase("analyse")
    return api.open_model(
        args.model,
        calibration=args.calib,
        input_shapes=shapes_given(args),
        samples=args.samples,
        image=image,
        prune_statistics=args.prune_statistics if plan is None else plan.prune_statistics,
    )


# ---- printing -------------------------------------------------------------------------------------------


def read_text(path: str | Path, otherwise: str) -> str:
    """A text file that the user names; `otherwise`: what it is if it is not text, and the remedy."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: {otherwise}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{path}: cannot be read: {reason}; check the path") from error


def print_out(text: str) -> None:
    sys.stdout.write(text)


def as_json(content: Any) -> str:
    return json.dumps(content, allow_nan=False) + "\n"


def columns() -> int | None:
    """Columns of the terminal; None when the output goes elsewhere and must not be cut."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size((100, 40)).columns
