"""`onnxprune sensitivity`: what each cut alone does to the outputs, as a table, JSON and a picture."""

from __future__ import annotations

import argparse
import sys

from onnxprune.commands.common import (
    as_json,
    check_outputs,
    check_samples,
    inputs_of,
    open_subject,
    print_out,
    say_doubts,
)
from onnxprune.commands.options import Parser, add_general, add_samples, add_settings, numbers
from onnxprune.errors import UsageError
from onnxprune.pipeline.options import regular, words
from onnxprune.pipeline.settings import REMOVE
from onnxprune.report.status import Status
from onnxprune.report.terminal import plain

ROWS = 40  # of the table, without -v


def parser() -> Parser:
    about = (
        "Damage to the outputs against the kept width, for every group of channels cut alone, and for every\n"
        "block dropped alone. Measurements are kept in FILE as they come: the same command again goes\n"
        "on where the last one stopped."
    )
    made = Parser("sensitivity", "sensitivity MODEL --calib SAMPLES [-o FILE] [options]", about)
    made.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    add = made.add_argument_group("what to cut").add_argument
    add("--steps", type=int, metavar="N", help="so many widths, evenly spaced (default 8)")
    add("--widths", type=numbers, metavar="LIST", help="kept shares instead: 0.75,0.5,0.25")
    add("--methods", type=words, metavar="LIST", help="kinds of cuts (default channels,blocks)")
    add("--include", metavar="REGEX", help="only groups whose name or weights match, blocks whose nodes do")
    add("--exclude", metavar="REGEX", help="none whose name, weights or nodes match")
    add_settings(made.add_argument_group("analysis").add_argument, "sensitivity", REMOVE)
    add_samples(made)
    add = made.add_argument_group("result").add_argument
    add("-o", "--output", metavar="FILE", help="where results are kept (default NAME.sensitivity.json by the input)")
    add("--plot", metavar="FILE", help="draw them: .svg or .png (needs matplotlib)")
    add("--force", action="store_true", help="replace a file that holds something else")
    add_general(made)
    return made


def run(args: argparse.Namespace, status: Status) -> None:
    check_samples(args, needed_by="sensitivity")
    if args.steps is not None and args.widths is not None:
        raise UsageError("--steps and --widths say the same thing; drop one")
    from onnxprune.decide.limits import Limits
    from onnxprune.elsewhere.spread import Elsewhere
    from onnxprune.files.write import atomic_write_bytes
    from onnxprune.pipeline import sensitivity as sensitivities

    for pattern in filter(None, (args.include, args.exclude)):
        regular(pattern)
    shares = sensitivities.shares(sensitivities.STEPS if args.steps is None else args.steps, args.widths)
    output = args.output or f"{args.model.removesuffix('.onnx')}.sensitivity.json"
    check_outputs(args, args.plot, kept=[output])
    if args.plot:
        from onnxprune.report import plots, sensitivity_plot

        plots.require(args.plot)
    subject = open_subject(args, status)
    found = sensitivities.measure(
        subject,
        path=output,
        force=args.force,
        shares=shares,
        methods=sensitivities.METHODS if args.methods is None else args.methods,
        limits=Limits(1, 1, args.include, args.exclude),
        seed=args.seed or 0,
        threads=args.threads,
        memory=args.memory,
        elsewhere=Elsewhere(args.backend, args.address, args.store),
        progress=status.progress,
    )
    say_doubts(args, subject, status)
    status.phase("write")
    if args.plot:
        picture = plots.encoded(sensitivity_plot.draw(found), args.plot)
        atomic_write_bytes(picture, args.plot, force=args.force, sources=[*inputs_of(args), output])
    status.close()
    if args.json:
        print_out(as_json(found.to_dict(), args))
        return
    from rich.console import Console

    from onnxprune.report.sensitivity import render

    width = None if sys.stdout.isatty() else 120
    console = Console(file=sys.stdout, highlight=False, width=width)
    console.print(render(found, most=None if args.verbose else ROWS))
    print_out(f"kept in {plain(output)}\n")
