"""`onnxprune bench`: latency side by side, as a table, JSON, CSV and a picture."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from onnxprune.commands.common import as_json, check_outputs, inputs_of, print_out
from onnxprune.commands.options import Parser, add_general, add_input_shape, add_settings, given
from onnxprune.errors import UsageError
from onnxprune.pipeline.options import words
from onnxprune.pipeline.settings import SAMPLES, TIMING, Settings
from onnxprune.report.status import Status


def _batches(text: str) -> tuple[int, ...]:
    found = tuple(int(word) if word.isdecimal() else 0 for word in words(text))
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of batch sizes such as 1,8,32; each is at least 1")
    return found


def _shape(text: str) -> tuple[str, tuple[int | str, ...]]:
    name, _, sizes = text.rpartition("=")
    found: list[int | str] = []
    for word in sizes.replace("x", ",").split(","):
        if word.upper() == "N":
            found.append("N")
        elif word.isdecimal() and int(word) > 0:
            found.append(int(word))
        else:
            name = ""
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=1,3,224,224, or NAME=N,3,224,224 with N for the batch")
    return name, tuple(found)


def parser() -> Parser:
    about = (
        "Time models side by side, interleaved; the first is the baseline, and is timed a second time to see\n"
        "how far the noise reaches. Several batches or shapes: one table each."
    )
    made = Parser("bench", "bench A [B ...] [options]", about)
    add = made.add_argument
    add("models", nargs="+", metavar="MODEL", help=argparse.SUPPRESS)
    add("--batch", type=_batches, default=(1,), metavar="LIST", help="for a dynamic batch axis: 8, or 1,8,32")
    cases = "sizes of an input, N for the batch: x=N,3,320,320 (repeatable; a name again is a further case)"
    add_input_shape(add, _shape, cases)
    add("--rounds", type=int, default=40, metavar="N", help="at least 10 (default 40)")
    add("--time-budget", type=float, metavar="S", help="stop after so many seconds")
    add_settings(add, "bench", SAMPLES)
    add_settings(add, "bench", TIMING)
    add("--csv", metavar="FILE", help="write a line a model and case")
    add("--plot", metavar="FILE", help="draw times and speed-ups: .svg or .png (needs matplotlib)")
    add(
        "--explain",
        action="store_true",
        help="why not faster: every node of one or two models against what it promises",
    )
    add("--save-options", metavar="FILE", help="write the session options that are fastest here: .json")
    add("--force", action="store_true", help="replace existing files")
    add_general(made)
    return made


def run(args: argparse.Namespace, status: Status) -> None:
    from onnxprune.files.read import read_model
    from onnxprune.files.write import atomic_write_bytes, atomic_write_text
    from onnxprune.report.bench import bench_csv
    from onnxprune.timing.cases import bench_cases

    check_outputs(args, args.csv, args.plot, args.save_options)
    if args.explain or args.save_options:
        _explain(args, status)
        return
    if args.plot:
        from onnxprune.report import plots

        plots.require(args.plot)
    settings = {"threads": 1, **given(args, "bench")}
    shapes = _cases(args.input_shape)
    for path in args.models:
        status.phase(f"read {path}")
        read_model(path)
    status.phase("bench")
    results = bench_cases(
        args.models,
        batches=args.batch,
        shapes=shapes,
        rounds=args.rounds,
        time_budget_s=args.time_budget,
        trusted=args.trusted,
        progress=lambda done, total: status.progress("bench", done, total),
        **settings,
    )
    status.phase("write")
    if args.csv:
        atomic_write_text(bench_csv(*results), args.csv, force=args.force, sources=inputs_of(args))
    if args.plot:
        from onnxprune.report import bench_plot

        picture = plots.encoded(bench_plot.draw(results), args.plot)
        atomic_write_bytes(picture, args.plot, force=args.force, sources=inputs_of(args))
    status.close()
    _show(args, results, status)


def _explain(args: argparse.Namespace, status: Status) -> None:
    """`--explain` and `--save-options`: in place of the table, nodes and options."""
    from onnxprune.files.write import atomic_write_text
    from onnxprune.pipeline.explaining import explained

    shapes = _cases(args.input_shape)
    if len(args.models) > 2 or len(args.batch) > 1 or len(shapes) > 1 or args.csv or args.plot:
        raise UsageError("--explain and --save-options are of one or two models, in one case, without --csv and --plot")
    fixed = {name: tuple(args.batch[0] if n == "N" else int(n) for n in s) for name, s in (shapes or [{}])[0].items()}
    settings = Settings(**{"threads": 1, **given(args, "bench"), "batch": args.batch[0]})
    found = explained(args.models, settings, fixed, args.explain, trusted=args.trusted, progress=status.progress)
    if args.save_options:
        text = as_json(found.saved, None)
        atomic_write_text(text, args.save_options, force=args.force, sources=inputs_of(args))
    status.close()
    print_out(as_json(found.to_json(), args) if args.json else found.summary(args.verbose))


def _cases(given: list[tuple[str, tuple[int | str, ...]]]) -> list[dict[str, tuple[int | str, ...]]]:
    """One dict a case: the k-th shape of every input; an input with a single shape has it in all."""
    shapes: dict[str, list[tuple[int | str, ...]]] = {}
    for name, shape in given:
        shapes.setdefault(name, []).append(shape)
    count = max(map(len, shapes.values()), default=0)
    uneven = [name for name, own in shapes.items() if len(own) not in (1, count)]
    if uneven:
        raise UsageError(
            f"--input-shape gives {len(shapes[uneven[0]])} shapes of {uneven[0]!r}, but {count} of another"
        )
    return [{name: own[k % len(own)] for name, own in shapes.items()} for k in range(count)]


def _show(args: argparse.Namespace, results: tuple[Any, ...], status: Status) -> None:
    if args.verbose and not args.quiet:
        for line in _placements(results[0]):
            status.say(line)
    if args.json:
        several = {"schema": 1, "kind": "onnxprune bench", "results": [r.to_json() for r in results]}
        print_out(as_json(results[0].to_json() if len(results) == 1 else several, args))
        return
    from rich.console import Console

    from onnxprune.report.bench import render_all

    width = None if sys.stdout.isatty() else 120
    Console(file=sys.stdout, highlight=False, width=width).print(render_all(results))


def _placements(result: Any) -> list[str]:
    """Which provider runs which node, for the log."""
    lines = []
    for name, nodes in result.nodes.items():
        if nodes is None:
            lines.append(f"{name}: this ONNX Runtime does not tell which provider runs which node")
        lines += [f"{name}: {n.node or 'unnamed'} ({n.op_type}) runs on {n.provider}" for n in nodes or ()]
    return lines
