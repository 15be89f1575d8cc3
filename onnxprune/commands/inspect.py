"""`onnxprune inspect`: what can be pruned, and why the rest cannot."""

from __future__ import annotations

import argparse

from onnxprune.commands.common import as_json, check_samples, columns, open_subject, print_out
from onnxprune.commands.options import Parser, add_general, add_samples, add_settings
from onnxprune.commands.results import ROWS
from onnxprune.pipeline.settings import REMOVE
from onnxprune.report.status import Status


def parser() -> Parser:
    parser = Parser("inspect", "inspect MODEL [options]", "What can be pruned, and why the rest cannot.")
    parser.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    add_settings(parser.add_argument_group("analysis").add_argument, "inspect", REMOVE)
    add_samples(parser)
    add_general(parser)
    return parser


def run(args: argparse.Namespace, status: Status) -> None:
    check_samples(args)
    from onnxprune.pipeline.inspection import inspection, render

    subject = open_subject(args, status)
    status.phase("count")
    found = inspection(subject)
    status.close()
    print_out(as_json(found, args) if args.json else render(found, None if args.verbose else ROWS, columns()))
