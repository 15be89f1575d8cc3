"""`onnxprune train`: pruning while training."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxprune.commands.common import check_outputs, check_samples, inputs_of, open_subject
from onnxprune.commands.options import (
    Parser,
    add_gates,
    add_general,
    add_output,
    add_report,
    add_samples,
    add_settings,
)
from onnxprune.commands.results import beside, output_of, refuse_or_save
from onnxprune.pipeline.options import words
from onnxprune.pipeline.settings import REMOVE, RESULT
from onnxprune.pipeline.training_methods import METHODS
from onnxprune.report.status import Status


def parser() -> Parser:
    about = (
        "Train so that the cut costs nothing, then cut; or cut, refit and train. The original teaches; a recipe\n"
        "adds labels and a loss. On a GPU where torch sees one; needs torch (pip install torch).\n\n"
        f"{methods()}"
    )
    parser = Parser("train", "train MODEL --method NAME [--recipe FILE.py] [--calib SAMPLES] [options]", about)
    parser.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    add = parser.add_argument_group("what to remove").add_argument
    add("--method", required=True, metavar="NAME", help=", ".join(METHODS))
    add("--method-option", action="append", default=[], metavar="NAME=VALUE",
        help="an option of the method's own, see above (repeatable)")  # fmt: skip
    add("--ratio", type=float, default=0.5, metavar="R", help="share to remove (default 0.5)")
    add("--of", default="macs", metavar="WHAT", help="of macs (default), params or channels")
    add_settings(add, "train", REMOVE)
    add = parser.add_argument_group("training").add_argument
    add("--recipe", metavar="FILE", help="file.py with batches() of (samples, labels) and loss(outputs, labels)")
    add("--steps", type=int, default=2000, metavar="N", help="of the optimizer (default 2000)")
    add("--batch", type=int, default=64, metavar="N", help="samples of a step without a recipe (default 64)")
    add("--lr", type=float, metavar="R", help="highest learning rate (default: the method's)")
    add("--augment", type=words, default=(), metavar="LIST", help="without a recipe: flip,shift=2,crop=0.5,...")
    add("--checkpoint", metavar="FILE", help="go on from it if it is there; written every 20 seconds")
    add("--metrics", metavar="FILE", help="a line of JSON every hundred steps is added to it")
    add_samples(parser)
    add = parser.add_argument_group("timing, result").add_argument
    add("--bench", action="store_true", help="measure latency")
    add_gates(add)
    add_output(add)
    add_settings(add, "train", RESULT)
    add_report(add)
    add_general(parser)
    return parser


def methods() -> str:
    """The table in words: a line a method, and one for each option of its own."""
    lines = []
    for cut, head in ((False, "what is trained before the cut:"), (True, "what is cut and refitted, then trained:")):
        lines.append(head)
        for method in (m for m in METHODS.values() if m.cuts_first == cut):
            lines.append(f"  {method.name:<8}{method.help} (rate {method.rate:g})")
            lines += [f"          {name}={o.spelled}  {o.help}" for name, o in method.options.items()]
            if method.takes_settings:
                lines.append("          and what else decides the plan of `prune`, such as allocation=uniform")
    return "\n".join(lines)


def run(args: argparse.Namespace, status: Status) -> None:
    check_samples(args)
    from onnxprune import api
    from onnxprune.pipeline.training import train_and_prune
    from onnxprune.pipeline.training_settings import TrainSettings, read_options

    options = read_options(args.method, args.method_option)
    chosen = TrainSettings(
        args.method, ratio=args.ratio, of=args.of, steps=args.steps, batch=args.batch, lr=args.lr, augment=args.augment,
        recipe=args.recipe, include=args.include, exclude=args.exclude, seed=args.seed or 0, threads=args.threads,
        checkpoint=args.checkpoint and Path(args.checkpoint), metrics=args.metrics and Path(args.metrics),
        metadata=args.metadata is not False, options=options,
    )  # fmt: skip
    output = output_of(args)
    check_outputs(args, output, *(path for _, path in beside(args)), kept=list(map(str, chosen.files())))
    chosen.check_files(inputs_of(args))
    subject = open_subject(args, status)
    result = train_and_prune(subject, chosen, status.progress)
    if args.bench:
        result = api.measure_latency(result, subject, chosen.deciding(), status.progress)
    refuse_or_save(args, result, output, status)
