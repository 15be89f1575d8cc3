"""`onnxprune search`: many choices of settings, tried; those that nothing beats, as a table, JSON and a page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onnxprune.commands.common import as_json, check_outputs, check_samples, open_subject, print_out, run_of
from onnxprune.commands.options import Parser, add_general, add_samples, add_settings, given
from onnxprune.commands.results import write_text
from onnxprune.pipeline.settings import REMOVE, REPAIR, RESULT, TIMING, TRIALS, Settings
from onnxprune.report.status import Status


def parser() -> Parser:
    about = (
        "Try many choices of settings (ratio, allocation, criterion, kinds of edits, rounding) and show those that\n"
        "nothing beats in the metric, the cost and the size. Trials are kept in the storage: the same command again\n"
        "goes on where the last one stopped, and on other machines it joins. The model of a trial is made by\n"
        "`onnxprune apply MODEL STORAGE --trial N`."
    )
    made = Parser("search", "search MODEL --calib SAMPLES [--eval SPEC] [--trials N] [options]", about)
    made.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    add = made.add_argument_group("what to try").add_argument
    add("--trials", type=int, default=TRIALS, metavar="N", help=f"so many in all (default {TRIALS})")
    add("--workers", type=int, default=1, metavar="K", help="processes of this machine (default 1)")
    add("--eval", metavar="SPEC", help="what is to stay high: file.py:function of a path, or labelled .npz")
    add("--storage", metavar="FILE", help="journal file or database URL (default NAME.search.journal)")
    add_settings(add, "search", REMOVE)
    add_samples(made)
    add = made.add_argument_group("repair, timing").add_argument
    add_settings(add, "search", REPAIR)
    add_settings(add, "search", TIMING)
    add = made.add_argument_group("result").add_argument
    add_settings(add, "search", RESULT)
    add("--report", metavar="FILE", help="write a page too: .html")
    add("--force", action="store_true", help="replace an existing file")
    add_general(made)
    return made


def run(args: argparse.Namespace, status: Status) -> None:
    from onnxprune.pipeline import searching
    from onnxprune.pipeline.joint_search import check_workers, search_with

    check_samples(args, needed_by="a search")
    settings, storage = Settings(**given(args, "search")), storage_of(args)
    check_workers(args.workers, settings)
    check_outputs(args, args.report, kept=[] if "://" in storage else [storage])
    searching.check_storage(storage)
    if "://" in storage:
        searching.storage_of(storage)  # refused before the model is opened; a file is not made for one that is refused
    subject = open_subject(args, status)
    found = search_with(
        subject, storage, settings, trials=args.trials, workers=args.workers, metric=args.eval, progress=status.progress
    )
    status.close()
    told = {**found.to_dict(), "run": run_of(args)}
    if args.report:
        from onnxprune.report.page import render as page

        write_text(page(told, name=Path(args.model).name), args.report, args)
    if args.json:
        print_out(as_json(told, args))
        return
    from rich.console import Console

    from onnxprune.report.searched import render

    width = None if sys.stdout.isatty() else 120
    Console(file=sys.stdout, highlight=False, width=width).print(render(found))


def storage_of(args: argparse.Namespace) -> str:
    return args.storage or f"{args.model.removesuffix('.onnx')}.search.journal"
