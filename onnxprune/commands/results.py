"""What commands that make a model share: where it goes, writing it, the plan behind it, and what is printed."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.commands.common import coloured, columns, inputs_of, print_out, run_of
from onnxprune.commands.options import gates_of
from onnxprune.errors import BudgetError, PlanError, UsageError, one_line
from onnxprune.pipeline.gates import ANYWAY, Drop, Gates, destroyed
from onnxprune.report.status import Status
from onnxprune.report.terminal import hung, plain, summary
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
    if args.precision and args.providers is None:
        return False  # for GPUs: what it takes on a CPU says nothing
    timed = args.batch is not None or args.providers is not None  # nobody says how to time without wanting it
    return timed or (bool(args.calib) and not args.json and getattr(args, "device", None) is None)


def is_follower() -> bool:
    """Whether `torchrun` started this process beside others, and another one writes what all have made."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"


def save(args: argparse.Namespace, result: Result, status: Status) -> None:
    if is_follower():
        return
    status.phase("write")
    result.save(output_of(args), force=args.force)


def saying(status: Status, drop: Callable[[], Drop]) -> Callable[[], Drop]:
    """What measures a drop, and says which labels it found and what it measured."""

    def measured() -> Drop:
        found = drop()
        if found.found:
            status.say(found.found)
        status.say(f"{plain(found.name) or 'the metric'}: {found.before:.4g} of the original, {found.after:.4g} now")
        return found

    return measured


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
        write_text(BESIDE[name](result, partial(linked, path, args, output)), path, args)
    show_result(args, result, output, status)


BESIDE: dict[str, Callable[[Result, Callable[[], dict[str, str]]], str]] = {
    "plan_out": lambda result, links: result.plan.to_json(result.made.run),
    "report": lambda result, links: result.to_html(files=links()),
    "summary": lambda result, links: result.to_markdown(),
}
"""Options that name a file to be written beside the model, and what goes into it, given what a page links to."""


def linked(page: str, args: argparse.Namespace, *outputs: str) -> dict[str, str]:
    """What a page links to: the original, what was written, the plan; each by its path from the page's folder."""
    pruned = "pruned" if len(outputs) == 1 else "pruned, {}"
    named = {"original": args.model} | {pruned.format(k + 1): path for k, path in enumerate(outputs)}
    named |= {"plan": plan} if (plan := getattr(args, "plan_out", None) or getattr(args, "plan", None)) else {}
    found = {}
    for title, path in named.items():
        with contextlib.suppress(ValueError):  # on another drive
            found[title] = os.path.relpath(path, Path(page).parent)
    return found


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


def read_plan(path: str, trial: int | None = None, model: str = "") -> PrunePlan:
    """A plan in a file; or, of a storage of trials, that of a trial for a model."""
    from onnxprune.pipeline.settings import Settings
    from onnxprune.plan import PrunePlan

    plan = PrunePlan.load(path) if trial is None else _of_trial(path, trial, model)
    with of_plan(path, UsageError):
        said: dict[str, Any] = {k: v for k in ("output_kind", "weight") if (v := plan.settings.get(k)) is not None}
        Settings(seed=plan.seed, batch=plan.batch, providers=plan.providers, **said)
    return plan


def _of_trial(storage: str, trial: int, model: str) -> PrunePlan:
    from onnxprune.files.read import read_model
    from onnxprune.graph.model import digest
    from onnxprune.pipeline.searching import plan_of

    return plan_of(storage, trial, digest(read_model(Path(model))))


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
        print_out(hung(f"next         {plain(_next(args, result, output))}", width) + "\n")


def _next(args: argparse.Namespace, result: Result, output: str) -> str:
    """What to do now."""
    from onnxprune.measure.verdict import KEPT

    if not args.calib:
        return "the same with --calib SAMPLES: what stays is then mended, and compared"
    if result.verdict not in (None, KEPT):
        return "cut less, or --ratios 0.2,0.3,0.4 to see what each costs"
    if result.latency is None:
        return f"onnxprune bench {shlex.join([args.model, output])}"
    return "measure its accuracy on labelled data, and its time where it will run (onnxprune bench)"
