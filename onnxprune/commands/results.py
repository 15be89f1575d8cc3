"""What commands that make a model share: where it goes, writing it, the plan behind it, and what is printed."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.commands.common import coloured, columns, inputs_of, print_out, run_of
from onnxprune.commands.options import gates_of
from onnxprune.errors import BudgetError, PlanError, UsageError, one_line
from onnxprune.pipeline.gates import ANYWAY, Drop, Gates, destroyed
from onnxprune.report.terminal import Status, plain, summary
from onnxprune.rewrite.repair.table import WITH_SAMPLES

if TYPE_CHECKING:
    from onnxprune.measure.fidelity import Fidelity
    from onnxprune.plan import PrunePlan
    from onnxprune.report.result import Result

ROWS = 40  # of a table, without -v


def output_of(args: argparse.Namespace) -> str:
    if args.output:
        return str(args.output)
    model = Path(args.model)
    return str(model.with_name(f"{model.stem if model.suffix == '.onnx' else model.name}.pruned.onnx"))


def wants_bench(args: argparse.Namespace) -> bool:
    if args.bench is not None:
        return bool(args.bench)
    timed = args.batch is not None or args.providers is not None  # nobody says how to time without wanting it
    return timed or (bool(args.calib) and not args.json)


def is_follower() -> bool:
    """Whether `torchrun` started this process beside others, and another one writes what all have made."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"


def save(args: argparse.Namespace, result: Result, status: Status) -> None:
    if is_follower():
        return
    status.phase("write")
    result.save(output_of(args), force=args.force)


def refuse_or_save(
    args: argparse.Namespace,
    result: Result,
    output: str,
    status: Status,
    *,
    gates: Gates | None = None,
    drop: Callable[[], Drop] | None = None,
) -> None:
    """Write the model, the plan and the page, and show what it came to. A model that keeps too little is shown only.

    Args:
        args: the command line.
        result: what was made.
        output: where the model goes.
        status: for the phase.
        gates: what it must keep.
        drop: measures a metric, see `Gates.missed`.

    Raises:
        BudgetError: it keeps too little.
    """
    result = replace(result, made=replace(result.made, run=run_of(args)))
    missed = kept_too_little(args, result.fidelity, gates or gates_of(args), drop)
    if missed:
        show_result(args, result, None, status)
        raise BudgetError(f"{'; '.join(missed)}; nothing was written; {_remedy(args, result)}")
    save(args, result, status)
    for name, path in beside(args):
        write_text(BESIDE[name](result), path, args)
    show_result(args, result, output, status)


BESIDE: dict[str, Callable[[Result], str]] = {
    "plan_out": lambda result: result.plan.to_json(result.made.run),
    "report": lambda result: result.to_html(),
    "summary": lambda result: result.to_markdown(),
}
"""Options that name a file to be written beside the model, and what goes into it."""


def beside(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Those that were given: name, and the file."""
    return [(name, path) for name in BESIDE if (path := getattr(args, name, None))]


def kept_too_little(
    args: argparse.Namespace,
    fidelity: Fidelity | None,
    gates: Gates,
    drop: Callable[[], Drop] | None = None,
) -> list[str]:
    """What keeps a model from being written, in words."""
    anyway = args.allow_destroyed or getattr(args, "best_effort", None)
    ruined = None if anyway else destroyed(fidelity)
    return [*([ruined] if ruined else []), *gates.missed(fidelity, drop)]


def _remedy(args: argparse.Namespace, result: Result) -> str:
    more = "" if result.repair == WITH_SAMPLES else f"--repair {WITH_SAMPLES}, "
    samples = "more --calib samples, " if args.calib else ""
    return f"cut less, {more}{samples}or {ANYWAY} to have it as it is" if destroyed(result.fidelity) else "cut less"


def write_text(text: str, path: str, args: argparse.Namespace) -> None:
    from onnxprune.files.write import atomic_write_text

    if not is_follower():
        atomic_write_text(text, path, force=args.force, sources=inputs_of(args))


def seed_of(args: argparse.Namespace, plan: PrunePlan) -> int:
    """The plan's seed, so that the same samples are held out; --seed overrides it."""
    return plan.seed if args.seed is None else int(args.seed)


@contextlib.contextmanager
def of_plan(path: str, kind: type[UsageError] = PlanError) -> Iterator[None]:
    """What is wrong with a plan is said with its file; `kind`: what says so."""
    try:
        yield
    except kind as error:
        raise UsageError(one_line(f"{path}: {error}")) from error


def read_plan(path: str) -> PrunePlan:
    from onnxprune.pipeline.settings import Settings
    from onnxprune.plan import PrunePlan

    plan = PrunePlan.load(path)
    with of_plan(path, UsageError):
        said: dict[str, Any] = {k: v for k in ("output_kind", "weight") if (v := plan.settings.get(k)) is not None}
        Settings(seed=plan.seed, batch=plan.batch, providers=plan.providers, **said)
    return plan


def show_result(args: argparse.Namespace, result: Result, output: str | None, status: Status) -> None:
    """Print what it came to; without `output` nothing was written."""
    status.close()
    if is_follower():
        return
    if not args.quiet:
        for text in result.warnings:
            status.say(f"warning: {text}")
    if args.json:
        print_out(result.to_json())
    else:
        width = min(columns() or 100, 120)
        print_out(summary(result, warnings=False, verbose=args.verbose, width=width, colour=coloured()))
        if output is None:
            return
        print_out(f"wrote        {plain(output)}\n")
        for _, more in beside(args):
            print_out(f"             {plain(more)}\n")
