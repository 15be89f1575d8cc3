"""`onnxprune diff`: what two models differ in, layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxprune.commands.common import as_json, check_inputs, columns, print_out, run_of, shapes_given
from onnxprune.commands.options import Parser, add_general, add_input_shape, add_settings, given
from onnxprune.commands.results import ROWS
from onnxprune.pipeline.settings import SAMPLES
from onnxprune.report.status import Status


def parser() -> Parser:
    about = (
        "What two models differ in: costs, operators, inputs and outputs, and layer by layer widths, MACs and\n"
        "parameters. Layers are found by their names, else by their order; -v lists those that do not differ, too."
    )
    made = Parser("diff", "diff A B [options]", about)
    made.add_argument("models", nargs=2, metavar="MODEL", help=argparse.SUPPRESS)
    add = made.add_argument_group("sizes").add_argument
    add_input_shape(add)
    add_settings(add, "diff", SAMPLES)
    add_general(made)
    return made


def run(args: argparse.Namespace, status: Status) -> None:
    check_inputs(args)
    from onnxprune.pipeline.difference import diff
    from onnxprune.report.difference import render

    status.phase("analyse")
    found = diff(*args.models, input_shapes=shapes_given(args), trusted=args.trusted, **given(args, "diff"))
    status.close()
    if args.json:
        run = {"model": " and ".join(Path(path).name for path in args.models), **run_of(args)}
        print_out(as_json({**found.to_dict(), "run": run}, args))
    else:
        print_out(render(found, None if args.verbose else ROWS, columns(), every=args.verbose))
