"""`onnxprune train`: pruning while training."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxprune.commands.common import (
    Parser,
    add_general,
    add_names,
    add_output,
    add_report,
    add_samples,
    add_statistics,
    check_samples,
    open_subject,
    words,
)
from onnxprune.commands.results import check_outputs, output_of, save, show_result, write_text
from onnxprune.report.terminal import Status


def parser() -> Parser:
    about = (
        "Train so that the cut costs nothing, then cut: csgd makes channels the same, gsm lets channels die,\n"
        "trp makes layers of low rank. Or cut, refit and train: gates finds the widths and the blocks that go by\n"
        "training, tune takes those of `prune`. The original teaches; a recipe adds labels and a loss. On a\n"
        'GPU where torch sees one; needs torch (pip install "onnxprune[train]").'
    )
    parser = Parser("train", "train MODEL --method NAME [--recipe FILE.py] [--calib SAMPLES] [options]", about)
    parser.add_argument("model", metavar="MODEL")
    add = parser.add_argument_group("what to remove").add_argument
    add("--method", required=True, metavar="NAME", help="csgd, gsm, trp, gates or tune")
    add("--ratio", type=float, default=0.5, metavar="R", help="share to remove (default 0.5)")
    add("--of", default="macs", metavar="WHAT", help="of macs (default), params or channels")
    add_names(add)
    add_statistics(add)
    add = parser.add_argument_group("training").add_argument
    add("--recipe", metavar="FILE", help="file.py with batches() of (samples, labels) and loss(outputs, labels)")
    add("--steps", type=int, default=2000, metavar="N", help="of the optimizer (default 2000)")
    add("--batch", type=int, default=64, metavar="N", help="samples of a step without a recipe (default 64)")
    add("--lr", type=float, metavar="R", help="highest learning rate (default: the method's)")
    add("--augment", type=words, default=(), metavar="LIST", help="without a recipe: flip,shift=2,mixup=0.5,cutmix")
    add("--checkpoint", metavar="FILE", help="go on from it if it is there; written every 20 seconds")
    add("--metrics", metavar="FILE", help="a line of JSON every hundred steps is added to it")
    add_samples(parser)
    add = parser.add_argument_group("timing, result").add_argument
    add("--bench", action="store_true", help="measure latency")
    add_output(add)
    add_report(add)
    add_general(parser)
    return parser


def run(args: argparse.Namespace, status: Status) -> None:
    check_samples(args)
    from onnxprune import api
    from onnxprune.pipeline.training import TrainSettings, train_and_prune

    chosen = TrainSettings(
        args.method, ratio=args.ratio, of=args.of, steps=args.steps, batch=args.batch, lr=args.lr, augment=args.augment,
        recipe=args.recipe, include=args.include, exclude=args.exclude, seed=args.seed or 0, threads=args.threads,
        checkpoint=args.checkpoint and Path(args.checkpoint), metrics=args.metrics and Path(args.metrics),
    )  # fmt: skip
    output = output_of(args)
    check_outputs(args, output, args.report)
    subject = open_subject(args, status)
    result = train_and_prune(subject, chosen, status.progress)
    if args.bench:
        result = api.measure_latency(result, subject, chosen.deciding(), status.progress)
    save(args, result, status)
    if args.report:
        write_text(result.to_html(), args.report, args)
    show_result(args, result, output, status)
