"""What commands share: the steps before the work, and how they print.

Only the standard library at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import CalibrationError, FileError, PruneError, UsageError, one_line
from onnxprune.pipeline.finishing import FINISHES
from onnxprune.pipeline.repairs import REPAIRS
from onnxprune.pipeline.settings import OPTIONS
from onnxprune.report.status import Status
from onnxprune.samples.sources import kinds

if TYPE_CHECKING:
    from onnxprune.api import Subject
    from onnxprune.plan import PrunePlan


# ---- steps ----------------------------------------------------------------------------------------------


def check_samples(args: argparse.Namespace, needed_by: str = "") -> None:
    """Refuse what says how to read samples, or needs some, where none are given; `needed_by`: what always does."""
    if args.image is not None:
        from onnxprune.samples.images import ImageSpec

        ImageSpec.parse(args.image)
    if not args.calib:
        for option in ("samples", "image"):
            if getattr(args, option) is not None:
                raise UsageError(f"--{option} says how to read samples; give --calib too")
        finish = FINISHES.get(getattr(args, "quantize", None) or "")
        if finish is not None and finish.needs_samples:
            raise UsageError(f"--{finish.setting} {finish.name} needs samples; give --calib")
        repair = REPAIRS.get(getattr(args, "repair", None) or "")
        if repair is not None and "samples" in repair.needs:
            raise UsageError(f"--repair {repair.name} needs samples; give --calib")
        if needed_by:
            raise UsageError(f"{needed_by} needs samples; give --calib")


def check_inputs(args: argparse.Namespace) -> None:
    """Refuse what is to be read and is not there, before any output is looked at."""
    from onnxprune.samples.user_code import FUNCTION

    models = (getattr(args, "model", None), *getattr(args, "models", ()))
    for path in filter(None, models):
        try:
            os.stat(path)
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            reason = getattr(error, "strerror", None) or error
            raise FileError(one_line(f"{path}: cannot be read: {reason}; check the path")) from error
    for name, kind, remedy in INPUTS:
        path = getattr(args, name, None)
        found = FUNCTION.fullmatch(path) or LABELLED.fullmatch(path) if path else None
        if name == "eval" and path and not found:
            continue  # no file at all
        if path and not os.path.lexists(found["path"] if found else path):
            raise kind(one_line(f"{path}: not found; {remedy()}"))


def inputs_of(args: argparse.Namespace) -> list[str]:
    """The files and folders that the command reads: nothing is written over them, whatever --force says."""
    from onnxprune.samples.user_code import FUNCTION

    given = [
        getattr(args, name, None) for name in ("model", "pruned", "plan", "result", "calib", "eval", "recipe", "device")
    ]
    both = [(path, FUNCTION.fullmatch(path) or LABELLED.fullmatch(path)) for path in given if path]
    found = [match["path"] if match else path for path, match in both]
    return [path for path in (*found, *getattr(args, "models", ())) if os.path.exists(path)]


def check_outputs(args: argparse.Namespace, *outputs: str | None, kept: Sequence[str | None] = ()) -> None:
    """Refuse an output before the work is done; but first, an input that is not there.

    Args:
        args: the command line.
        outputs: files that the command makes; None: one that was not asked for.
        kept: files that it makes or goes on with.
    """
    check_inputs(args)
    made = list(filter(None, (*outputs, *kept)))
    for output in made:
        check_output(args, output, force=args.force or output in kept)
    if len({os.path.realpath(output) for output in made}) < len(made):
        flags = ["-o", *(f"--{name.replace('_', '-')}" for name in WRITTEN if getattr(args, name, None))]
        raise UsageError(f"two outputs would go to one file; choose another {' or '.join(flags)}")


WRITTEN = ("plan_out", "report", "summary", "plot", "csv", "save_options", "checkpoint", "metrics", "ratios", "storage")
"""What names files that are written, besides -o."""


def check_output(args: argparse.Namespace, output: str, *, force: bool) -> None:
    """Refuse a file that cannot be written, is taken (unless `force`), or is an input.

    Raises:
        FileError: for any of this.
    """
    from onnxprune.files.write import ensure_writable
    from onnxprune.samples.sources import is_sample

    inputs = inputs_of(args)
    ensure_writable(output, force=force, sources=inputs)
    folder = Path(output).parent
    if not os.access(folder, os.W_OK):
        raise FileError(one_line(f"{output}: the folder {folder} cannot be written to; choose another"))
    for path in inputs:
        if is_sample(Path(output), Path(path)):
            raise FileError(one_line(f"{output}: is one of the samples in {path}; choose another output"))


LABELLED = re.compile(r"(?P<path>.+\.npz)(?::\w+)?")
"""Labelled samples, and a figure of them where one is named."""
INPUTS: Sequence[tuple[str, type[PruneError], Callable[[], str]]] = (
    ("calib", CalibrationError, lambda: f"give {kinds()}"),
    ("eval", CalibrationError, lambda: "give file.py:function, or an .npz file with labels"),
    ("recipe", UsageError, lambda: "give a file.py with batches() and loss()"),
    ("device", FileError, lambda: "`onnxprune profile MODEL -o FILE` makes one"),
)
"""Option -> what is raised where it names what is not there, and what to give."""


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
        **{name: OPTIONS[name].read(found) for name in ("input_value", "batch_axis") if (found := getattr(args, name))},
        prune_statistics=bool(args.prune_statistics) if plan is None else plan.prune_statistics,
        **_said(args, plan),
        trusted=args.trusted,
    )


def _said(args: argparse.Namespace, plan: PrunePlan | None) -> dict[str, Any]:
    """What was said of the outputs, with the command or, where it says nothing, when the plan was made."""
    before = {} if plan is None else plan.settings
    return {
        name: OPTIONS[name].read(given) if (given := getattr(args, name, None)) else before.get(name)
        for name in ("output_kind", "weight")
    }


def say_doubts(args: argparse.Namespace, subject: Subject, status: Status) -> None:
    """Warn of samples that cannot tell and of patterns that match nothing, where no result does."""
    from onnxprune.measure.telling import OF_HELD
    from onnxprune.pipeline.asked import unmatched

    doubts = [text for text in subject.doubts if not text.startswith(OF_HELD)]  # nothing is judged here
    patterns = unmatched(subject.net, exclude=args.exclude, keep_block=getattr(args, "keep_block", None))
    for text in () if args.quiet else (*doubts, *patterns):
        status.say(f"warning: {text}")


# ---- printing -------------------------------------------------------------------------------------------


def read_text(path: str | Path, otherwise: str) -> str:
    """A text file that the user names; `otherwise`: what it is if it is not text, and the remedy."""
    from onnxprune.files import text

    try:
        return text.read_text(path)
    except UnicodeDecodeError as error:
        raise UsageError(one_line(f"{path}: {otherwise}")) from error


def print_out(text: str) -> None:
    sys.stdout.write(text)


def run_of(args: argparse.Namespace, files: Sequence[str | None] = ()) -> dict[str, Any]:
    """When, where and by which command line this runs, and which files it wrote; None for one that it did not."""
    from onnxprune.report.provenance import this_run

    model = getattr(args, "model", None)
    named = {} if model is None else {"model": Path(model).name}
    return {**named, **this_run(command=args.argv), **({"files": list(files)} if files else {})}


def as_json(content: Mapping[str, Any], args: argparse.Namespace | None) -> str:
    """One JSON object. The run stands last, apart from what is the same in every run; where nothing is measured and
    `args` is None, there is none."""
    run = {} if args is None else {"run": content.get("run") or run_of(args)}
    return json.dumps({**content, **run}, allow_nan=False) + "\n"


def coloured() -> bool:
    """Whether standard output shows colours, and may (`NO_COLOR`)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def columns() -> int | None:
    """Columns of the terminal; None when the output goes elsewhere and must not be cut."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size((100, 40)).columns
