"""`onnxprune report`: the JSON of a result as a page for people."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path

from onnxprune.commands.common import inputs_of, print_out, read_text
from onnxprune.commands.options import Parser, add_words
from onnxprune.errors import UsageError
from onnxprune.report.status import Status
from onnxprune.report.terminal import plain


def parser() -> Parser:
    about = "What `onnxprune ... --json` printed, as one HTML page that needs nothing else."
    made = Parser("report", "report RESULT.json [-o OUT.html] [options]", about)
    made.add_argument("result", metavar="RESULT", help="a file with what --json printed")
    made.add_argument("-o", "--output", metavar="FILE", help="where to write (default RESULT.html beside it)")
    made.add_argument("--name", metavar="TEXT", help="what the page calls the model (default its file name)")
    made.add_argument("--force", action="store_true", help="replace an existing file")
    add_words(made.add_argument_group("general").add_argument)
    return made


def run(args: argparse.Namespace, status: Status) -> None:
    from onnxprune.files.write import atomic_write_text
    from onnxprune.report.page import render, title_of

    source = Path(args.result)
    output = args.output or str(source.with_suffix(".html"))
    none = "not JSON; give a file with what `onnxprune ... --json` printed"
    text = read_text(source, none)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: {none}") from error
    try:
        files = {}
        with contextlib.suppress(ValueError):  # on another drive
            files["as JSON"] = os.path.relpath(source, Path(output).parent)
        page = render(found, name=args.name or title_of(found) or source.stem, files=files)
    except ValueError as error:
        raise UsageError(f"{source}: not a result of this version of onnxprune: {error}") from error
    atomic_write_text(page, output, force=args.force, sources=inputs_of(args))
    status.close()
    print_out(f"wrote {plain(output)}\n")
