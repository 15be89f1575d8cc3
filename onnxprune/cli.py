"""The command line: parse, call the API, print.

Standard output carries the result and nothing else; progress, warnings and errors go to standard error. An
error is one line and an exit code (`errors.py`). At the top only the standard library is imported, so that
`--help` answers at once. Nothing is decided here that the Python API could not do as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onnxprune.commands import bench, report, sensitivity
from onnxprune.commands.common import Add, Parser
from onnxprune.commands.common import add_general as _add_general
from onnxprune.commands.common import add_samples as _add_samples
from onnxprune.commands.common import add_statistics as _add_statistics
from onnxprune.commands.common import as_json as _json
from onnxprune.commands.common import check_samples as _check_samples
from onnxprune.commands.common import columns as _width
from onnxprune.commands.common import numbers as _numbers
from onnxprune.commands.common import open_subject as _open
from onnxprune.commands.common import print_out as _print
from onnxprune.commands.common import words as _words
from onnxprune.errors import BudgetError, CalibrationError, FileError, ModelError, PruneError, UsageError
from onnxprune.report.terminal import Status, change, plain, si, summary, surgery_words, table

if TYPE_CHECKING:
    from onnxprune.api import Settings, Subject
    from onnxprune.plan import PrunePlan
    from onnxprune.report.result import Result
    from onnxprune.targets import Target

ROWS = 40  # of a table, without -v

ABOUT = """\
Prune a CNN given as an ONNX file (never changed): a smaller, faster file with nearly the same outputs.

  onnxprune MODEL --ratio 0.5 --calib samples.npz [-o OUT]     the main job
  onnxprune inspect MODEL                                      what can be pruned, and why not the rest
  onnxprune plan MODEL ... -o plan.json                        decide, and write the decision down
  onnxprune apply MODEL PLAN [--calib SAMPLES] [-o OUT]        carry a plan out
  onnxprune verify ORIGINAL PRUNED --plan PLAN [--calib ...]   check a pruned file
  onnxprune sensitivity MODEL --calib SAMPLES                  what each cut does to the outputs
  onnxprune bench A [B ...]                                    latency side by side
  onnxprune train MODEL --method csgd --recipe FILE.py         prune while training (needs torch)
  onnxprune report RESULT.json [-o OUT.html]                   a result as a page
`onnxprune COMMAND --help` tells the options of a command; those of the main job are:
"""
EXITS = """\
exit codes: 0 done, 1 our bug, 2 usage, 3 bad model, 4 bad samples, 5 nothing to prune, 6 ratio or check
missed, 7 reading or writing failed, 8 provider not available, 130 interrupted, 143 terminated
"""


# ---- options ---------------------------------------------------------------------------------------------


def _round_to(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number") from None


def _rare(text: str, brief: bool) -> str:
    """Help that the main help leaves to `onnxprune prune --help`."""
    return argparse.SUPPRESS if brief else text


def _add_decisions(parser: Parser, *, several: bool = False, brief: bool = False) -> None:
    """What decides; `brief` leaves the rarer ones to `onnxprune prune --help`."""
    add = parser.add_argument_group("what to remove").add_argument
    add("--ratio", type=float, metavar="R", help="share to remove (default 0.5)")
    if several:
        add("--ratios", type=_numbers, metavar="LIST", help="several at once, one file each: 0.3,0.5,0.7")
        add("--speedup", type=float, metavar="X", help="instead: X times as fast, measured here")
        add("--latency-ms", type=float, metavar="T", help="instead: a run takes T ms, measured here")
        add("--size-mb", type=float, metavar="S", help="instead: the file has S megabytes (10^6 bytes)")
        add("--max-drop", type=float, metavar="D", help="instead: cut until the metric of --eval drops by D")
        add("--eval", metavar="SPEC", help="file.py:function of a model's path, or .npz with labels (top-1 %%)")
    add("--lossless", action="store_true", help="no ratio: remove only what changes no output")
    add("--of", metavar="WHAT", help="of macs (default), params, channels or latency")
    add("--criterion", metavar="NAME", help="elimination (default with --calib), lasso, similarity, l1, ...")
    add("--allocation", metavar="NAME", help="adaptive (default with --calib), uniform or global")
    add("--round-to", type=_round_to, default="auto", metavar="N", help="widths are multiples of N (or auto)")
    add("--min-width", type=int, default=1, metavar="N", help=_rare("no group gets narrower than N", brief))
    _add_names(add)
    add(
        "--methods",
        type=_words,
        metavar="LIST",
        help="of channels,blocks,rank (default: rank only where time counts); or 3c",
    )
    add("--keep-block", metavar="REGEX", help=_rare("never drop blocks with a node whose name matches", brief))
    add("--best-effort", action="store_true", help="get as far as possible when R is out of reach")
    _add_statistics(add)


def _add_names(add: Add) -> None:
    add("--include", metavar="REGEX", help="cut only groups whose name or weights match")
    add("--exclude", metavar="REGEX", help="never cut groups whose name or weights match")


def _add_report(add: Add) -> None:
    add("--report", metavar="FILE", help="write a page about the result too: .html")


def _add_output(add: Add, written: str = "NAME.pruned.onnx beside the input") -> None:
    add("-o", "--output", metavar="FILE", help=f"where to write (default {written})")
    add("--force", action="store_true", help="replace an existing file")


def _add_making(add: Add, *, brief: bool = False) -> None:
    add("--repair", metavar="NAME", help="refit (default with --calib), distill, statistics, merge (else), none")
    more = {  # the main help leaves these to `onnxprune prune --help`
        "epochs": "of --repair distill: passes over the samples (default 40)",
        "augment": "of --repair distill: flip,shift=2,mixup=0.5 (default none)",
        "recipe": "of --repair distill: file.py with labelled data and a loss",
    }
    kinds = {"epochs": ("N", int), "augment": ("LIST", _words), "recipe": ("FILE", str)}
    for name, text in more.items():
        add(f"--{name}", metavar=kinds[name][0], type=kinds[name][1], help=_rare(text, brief))
    add(
        "--bench",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="measure latency (default: with --calib, without --json)",
    )


def _prune_parser(name: str = "") -> Parser:
    about = "The main job: decide, cut, repair, check, measure, write." if name else ABOUT
    usage = f"{name} MODEL [--ratio R] [--calib SAMPLES] [-o OUT] [options]".strip()
    parser = Parser(name, usage, about, EXITS)
    parser.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)  # the usage line says it
    _add_decisions(parser, several=True, brief=not name)
    _add_samples(parser)
    add = parser.add_argument_group("repair, timing, result").add_argument
    _add_making(add, brief=not name)
    _add_output(add)
    add("--dry-run", action="store_true", help="analyse and plan; write nothing")
    add("--plan-out", metavar="FILE", help="write the plan too, as JSON")
    _add_report(add)
    _add_general(parser)
    return parser


def _inspect_parser() -> Parser:
    parser = Parser("inspect", "inspect MODEL [options]", "What can be pruned, and why the rest cannot.")
    parser.add_argument("model", metavar="MODEL")
    _add_statistics(parser.add_argument_group("analysis").add_argument)
    _add_samples(parser)
    _add_general(parser)
    return parser


def _plan_parser() -> Parser:
    about = "Decide which channels go, and write that down as JSON (without -o: on standard output)."
    parser = Parser("plan", "plan MODEL [--ratio R] [--calib SAMPLES] [-o plan.json] [options]", about)
    parser.add_argument("model", metavar="MODEL")
    _add_decisions(parser)
    _add_samples(parser)
    _add_output(parser.add_argument_group("result").add_argument, "standard output")
    _add_general(parser, json_help="print the plan, also when -o writes it")
    return parser


def _apply_parser() -> Parser:
    about = "Carry a plan out: the same bytes as the command that made it."
    parser = Parser("apply", "apply MODEL PLAN [--calib SAMPLES] [-o OUT] [options]", about)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("plan", metavar="PLAN", help="written by `onnxprune plan` or --plan-out")
    _add_samples(parser)
    add = parser.add_argument_group("repair, timing, result").add_argument
    _add_making(add)
    _add_output(add)
    _add_general(parser)
    return parser


def _train_parser() -> Parser:
    about = (
        "Train so that the cut costs nothing, then cut: csgd makes channels the same, gsm lets channels die,\n"
        "trp makes layers of low rank. Or cut, refit and train: gates finds the widths and the blocks that go by\n"
        "training, tune takes those of `prune`. The original teaches; a recipe adds labels and a loss. On the\n"
        'processor; needs torch (pip install "onnxprune[train]").'
    )
    parser = Parser("train", "train MODEL --method NAME [--recipe FILE.py] [--calib SAMPLES] [options]", about)
    parser.add_argument("model", metavar="MODEL")
    add = parser.add_argument_group("what to remove").add_argument
    add("--method", required=True, metavar="NAME", help="csgd, gsm, trp, gates or tune")
    add("--ratio", type=float, default=0.5, metavar="R", help="share to remove (default 0.5)")
    add("--of", default="macs", metavar="WHAT", help="of macs (default), params or channels")
    _add_names(add)
    _add_statistics(add)
    add = parser.add_argument_group("training").add_argument
    add("--recipe", metavar="FILE", help="file.py with batches() of (samples, labels) and loss(outputs, labels)")
    add("--steps", type=int, default=2000, metavar="N", help="of the optimizer (default 2000)")
    add("--batch", type=int, default=64, metavar="N", help="samples of a step without a recipe (default 64)")
    add("--lr", type=float, metavar="R", help="highest learning rate (default: the method's)")
    add("--augment", type=_words, default=(), metavar="LIST", help="without a recipe: flip,shift=2,mixup=0.5")
    add("--checkpoint", metavar="FILE", help="go on from it if it is there; written every 20 seconds")
    add("--metrics", metavar="FILE", help="a line of JSON every hundred steps is added to it")
    _add_samples(parser)
    add = parser.add_argument_group("timing, result").add_argument
    add("--bench", action="store_true", help="measure latency")
    _add_output(add)
    _add_report(add)
    _add_general(parser)
    return parser


def _verify_parser() -> Parser:
    about = (
        "Check a pruned file: the plan's cut computes what the masked original computes (surgery), the\n"
        "file has the sizes that the plan says, and its outputs stay close to the original's (fidelity)."
    )
    parser = Parser("verify", "verify ORIGINAL PRUNED --plan PLAN [--calib SAMPLES] [options]", about)
    parser.add_argument("model", metavar="ORIGINAL")
    parser.add_argument("pruned", metavar="PRUNED")
    parser.add_argument("--plan", required=True, metavar="PLAN", help="what was kept")
    parser.add_argument("--min-cosine", type=float, metavar="X", help="fail (exit 6) below this cosine")
    parser.add_argument("--min-top1", type=float, metavar="X", help="fail (exit 6) below this agreement")
    parser.add_argument(
        "--all", action="store_true", help="use every sample, not only the quarter held out when pruning"
    )
    _add_samples(parser)
    _add_general(parser)
    return parser


# ---- commands --------------------------------------------------------------------------------------------


def _prune(args: argparse.Namespace, status: Status) -> None:
    if args.dry_run and (args.plan_out or args.report):
        raise UsageError("--dry-run writes nothing; drop --plan-out and --report, or use `onnxprune plan`")
    _check_samples(args)
    if args.ratios is not None:
        _sweep(args, status)
        return
    from onnxprune import api

    settings, target = _settings(args), _target(args)
    output = _output(args)
    if target is not None and args.dry_run:
        raise UsageError("a target is reached by measuring what was cut; --dry-run goes with --ratio")
    if not args.dry_run:
        _check_outputs(args, output, args.plan_out, args.report)
    subject = _open(args, status)
    status.phase("plan")
    if args.dry_run:
        plan = api.make_plan(subject, settings, status.progress)
        _show_plan(args, subject, plan, "dry run, nothing written")
        return
    if target is None:
        result = api.plan_and_apply(subject, settings, bench=_wants_bench(args), progress=status.progress)
    else:
        result = api.reach(subject, settings, target, metric=args.eval, progress=status.progress)
        if result.latency is None and _wants_bench(args):
            result = api.measure_latency(result, subject, settings, status.progress)
    _check_faster(args, result)
    _save(args, result, status)
    if args.plan_out:
        _write_text(result.plan.to_json(), args.plan_out, args)
    if args.report:
        _write_text(result.to_html(), args.report, args)
    _show_result(args, result, output, status)


def _sweep(args: argparse.Namespace, status: Status) -> None:
    """A whole trade-off curve from one look at the samples: one file a ratio."""
    other = args.plan_out or args.report or args.dry_run or args.lossless
    if args.ratio is not None or other or _target(args) is not None:
        raise UsageError("--ratios stands for itself; drop --ratio, --lossless, --plan-out, --report and --dry-run")
    from onnxprune import api
    from onnxprune.report.terminal import sweep_table

    settings = _settings(args)
    base = Path(_output(args))
    outputs = [str(base.with_name(f"{base.stem}-{ratio:g}{base.suffix}")) for ratio in args.ratios]
    _check_outputs(args, *outputs)
    subject = _open(args, status)
    status.phase("plan")
    bench = args.bench if args.bench is not None else bool(args.calib) and not args.json
    results = []
    for result, output in zip(
        api.sweep(subject, args.ratios, settings, bench=bench, progress=status.progress), outputs, strict=True
    ):
        status.phase("write")
        result.save(output, force=args.force)
        results.append(result)
    status.close()
    for text in dict.fromkeys(w for r in results for w in r.warnings if not args.quiet):
        status.say(f"warning: {text}")
    if args.json:
        _print(_json({"schema": 1, "kind": "onnxprune sweep", "results": [r.to_dict() for r in results]}))
    else:
        _print(sweep_table(results, outputs, _width()))


def _apply(args: argparse.Namespace, status: Status) -> None:
    _check_samples(args)
    from onnxprune import api

    output = _output(args)
    _check_outputs(args, output, sources=[args.plan])
    plan = _read_plan(args.plan)
    settings = api.Settings(repair=args.repair, **_training(args), seed=_seed(args, plan), threads=args.threads)
    subject = _open(args, status, plan)
    status.phase("cut")
    result = api.apply_plan(subject, plan, settings, bench=_wants_bench(args), progress=status.progress)
    _save(args, result, status)
    _show_result(args, result, output, status)


def _plan(args: argparse.Namespace, status: Status) -> None:
    _check_samples(args)
    from onnxprune import api

    settings = _settings(args)
    if args.output:
        _check_outputs(args, args.output)
    subject = _open(args, status)
    status.phase("plan")
    plan = api.make_plan(subject, settings, status.progress)
    status.close()
    if args.output:
        _write_text(plan.to_json(), args.output, args)
    if args.json or not args.output:
        _print(plan.to_json())
    else:
        _show_plan(args, subject, plan, f"wrote {plain(args.output)}")


def _train(args: argparse.Namespace, status: Status) -> None:
    _check_samples(args)
    from onnxprune import api
    from onnxprune.training import TrainSettings, train_and_prune

    chosen = TrainSettings(
        args.method, ratio=args.ratio, of=args.of, steps=args.steps, batch=args.batch, lr=args.lr, augment=args.augment,
        recipe=args.recipe, include=args.include, exclude=args.exclude, seed=args.seed or 0, threads=args.threads,
        checkpoint=args.checkpoint and Path(args.checkpoint), metrics=args.metrics and Path(args.metrics),
    )  # fmt: skip
    output = _output(args)
    _check_outputs(args, output, args.report)
    subject = _open(args, status)
    result = train_and_prune(subject, chosen, status.progress)
    if args.bench:
        result = api.measure_latency(result, subject, chosen.deciding(), status.progress)
    _save(args, result, status)
    if args.report:
        _write_text(result.to_html(), args.report, args)
    _show_result(args, result, output, status)


def _inspect(args: argparse.Namespace, status: Status) -> None:
    _check_samples(args)
    from onnxprune.inspection import inspection, render

    subject = _open(args, status)
    status.phase("count")
    found = inspection(subject)
    status.close()
    _print(_json(found) if args.json else render(found, None if args.verbose else ROWS, _width()))


def _verify(args: argparse.Namespace, status: Status) -> None:
    _check_samples(args)
    if not args.calib and (args.min_cosine is not None or args.min_top1 is not None):
        raise UsageError("--min-cosine and --min-top1 need samples; give --calib")
    from dataclasses import asdict

    from onnxprune import api
    from onnxprune.graph import files
    from onnxprune.inspection import recheck
    from onnxprune.measure.verify import check_fidelity

    plan = _read_plan(args.plan)
    subject = _open(args, status, plan)
    pruned = files.read_model(args.pruned)
    status.phase("surgery")
    surgery, sizes = recheck(subject, plan, pruned)
    fidelity = None
    if subject.calibration is not None:
        status.phase("fidelity")
        data = subject.calibration
        held = data if args.all else data.split(seed=_seed(args, plan))[1]
        fidelity = check_fidelity(subject.model, pruned, held.batches(api.BATCH), held_out=not held.shared)
    status.close()
    missed = list(sizes[:1])
    inexact = subject.channels.inexact
    if not surgery.exact and not inexact:
        missed.append(f"the cut differs from the {surgery.against} by {surgery.worst:.1e}")
    if fidelity is not None and args.min_cosine is not None and not fidelity.cosine >= args.min_cosine:
        missed.append(f"cosine {fidelity.cosine:.4f} is below {args.min_cosine:g}")
    if fidelity is not None and args.min_top1 is not None:
        if fidelity.top1 is None:
            raise UsageError("--min-top1 needs a model whose output is a vector of scores")
        if not fidelity.top1 >= args.min_top1:
            missed.append(f"top-1 agreement {fidelity.top1:.1%} is below {args.min_top1:.1%}")
    if args.json:
        content = {
            "schema": 1,
            "kind": "onnxprune verification",
            "surgery": asdict(surgery),
            "inexact": list(inexact),
            "sizes_match": not sizes,
            "fidelity": None if fidelity is None else asdict(fidelity),
            "missed": missed,
        }
        _print(_json(content))
    else:
        _print(_verification(surgery, sizes, fidelity, every=args.all, inexact=len(inexact)))
    if missed:
        raise BudgetError(f"{args.pruned}: {'; '.join(missed)}")


def _verification(surgery: Any, sizes: Sequence[str], fidelity: Any, *, every: bool, inexact: int = 0) -> str:
    lines = [
        f"surgery      {surgery_words(surgery, inexact)}",
        f"sizes        {'NOT as planned: ' + plain(sizes[0]) if sizes else 'as planned'}",
    ]
    if fidelity is None:
        lines.append("fidelity     not checked; give --calib")
    else:
        top1 = "" if fidelity.top1 is None else f"top-1 agreement {fidelity.top1:.1%}, "
        kind = "samples" if every else "held-out samples"
        lines.append(
            f"fidelity     {top1}cosine {fidelity.cosine:.4f}, SQNR {fidelity.sqnr_db:.1f} dB "
            f"on {fidelity.samples} {kind}"
        )
    return "\n".join(lines) + "\n"


COMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[argparse.Namespace, Status], None]]] = {
    "prune": (partial(_prune_parser, "prune"), _prune),
    "inspect": (_inspect_parser, _inspect),
    "plan": (_plan_parser, _plan),
    "apply": (_apply_parser, _apply),
    "train": (_train_parser, _train),
    "verify": (_verify_parser, _verify),
    "sensitivity": (sensitivity.parser, sensitivity.run),
    "bench": (bench.parser, bench.run),
    "report": (report.parser, report.run),
}


# ---- steps that commands share ---------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> Settings:
    from onnxprune.api import Settings

    if args.lossless and args.ratio is not None:
        raise UsageError("--lossless takes no --ratio; what can go without changing an output is what it is")
    return Settings(
        ratio=0.5 if args.ratio is None else args.ratio,
        lossless=args.lossless,
        of=args.of,
        criterion=args.criterion,
        allocation=args.allocation,
        repair=getattr(args, "repair", None),
        **_training(args),
        round_to=args.round_to,
        min_width=args.min_width,
        include=args.include,
        exclude=args.exclude,
        **({} if args.methods is None else {"methods": args.methods}),
        keep_block=args.keep_block,
        best_effort=args.best_effort,
        prune_statistics=args.prune_statistics,
        seed=args.seed or 0,
        threads=args.threads,
    )


def _training(args: argparse.Namespace) -> dict[str, Any]:
    """What was said about training."""
    return {k: v for k in ("epochs", "augment", "recipe") if (v := getattr(args, k, None)) is not None}


def _target(args: argparse.Namespace) -> Target | None:
    """The target that was asked for instead of a ratio."""
    from onnxprune.targets import OPTIONS, Target

    given = [kind for kind in OPTIONS if getattr(args, kind) is not None]
    if len(given) > 1 or (given and args.ratio is not None):
        names = [OPTIONS[kind] for kind in given] + (["--ratio"] if args.ratio is not None else [])
        raise UsageError(f"{' and '.join(names)}: one target at a time")
    if args.eval is not None and given != ["max_drop"]:
        raise UsageError("--eval says what --max-drop measures; give --max-drop too")
    return Target(given[0], getattr(args, given[0])) if given else None


def _check_faster(args: argparse.Namespace, result: Result) -> None:
    """A model that is slower than the original is not what anyone wants: nothing is written."""
    if result.latency is None or args.best_effort:
        return
    c = result.latency.comparisons[0]
    if c.verdict == "slower":
        raise BudgetError(
            f"the pruned model is slower than the original: {c.speedup:.2f}x [{c.low:.2f}, {c.high:.2f}]; nothing was "
            "written; try --of latency or --speedup, or add --best-effort to have it anyway"
        )


def _output(args: argparse.Namespace) -> str:
    if args.output:
        return str(args.output)
    model = Path(args.model)
    return str(model.with_name(f"{model.stem if model.suffix == '.onnx' else model.name}.pruned.onnx"))


def _check_outputs(args: argparse.Namespace, *outputs: str | None, sources: Sequence[str] = ()) -> None:
    """Refuse an output before the work is done."""
    from onnxprune.graph import files

    given = [args.model, *sources, *([args.calib] if args.calib and Path(args.calib).exists() else [])]
    if not Path(args.model).exists():
        return  # reading it says so better
    for output in filter(None, outputs):
        files.ensure_writable(output, force=args.force, sources=given)
        folder = Path(output).parent
        if not os.access(folder, os.W_OK):
            raise FileError(f"{output}: the folder {folder} cannot be written to; choose another")
    if len({os.path.realpath(o) for o in outputs if o}) < len([o for o in outputs if o]):
        raise UsageError(
            "two outputs would go to one file; choose another -o, --plan-out or --report, or other --ratios"
        )


def _wants_bench(args: argparse.Namespace) -> bool:
    return args.bench if args.bench is not None else bool(args.calib) and not args.json


def _is_follower() -> bool:
    """Whether `torchrun` started this process beside others, and another one writes what all have made."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"


def _save(args: argparse.Namespace, result: Result, status: Status) -> None:
    if _is_follower():
        return
    status.phase("write")
    result.save(_output(args), force=args.force)


def _seed(args: argparse.Namespace, plan: PrunePlan) -> int:
    """The plan's seed, so that the same samples are held out; --seed overrides it."""
    stored = plan.settings.get("seed", 0)
    return args.seed if args.seed is not None else stored if isinstance(stored, int) else 0


def _read_plan(path: str) -> PrunePlan:
    from onnxprune.plan import PrunePlan

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UsageError(f"{path}: not a plan; write one with `onnxprune plan MODEL`") from error
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{path}: cannot be read: {reason}; check the path") from error
    try:
        return PrunePlan.from_json(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: not a plan; write one with `onnxprune plan MODEL`") from error


def _write_text(text: str, path: str, args: argparse.Namespace) -> None:
    from onnxprune.graph import files

    if not _is_follower():
        files.atomic_write_text(text, path, force=args.force, sources=[args.model])


# ---- printing --------------------------------------------------------------------------------------------


def _show_result(args: argparse.Namespace, result: Result, output: str, status: Status) -> None:
    status.close()
    if _is_follower():
        return
    if not args.quiet:
        for text in result.warnings:
            status.say(f"warning: {text}")
    if args.json:
        _print(result.to_json())
    else:
        _print(summary(result, warnings=False, width=min(_width() or 100, 120)))
        _print(f"wrote        {plain(output)}\n")
        for more in filter(None, (getattr(args, "plan_out", None), getattr(args, "report", None))):
            _print(f"             {plain(more)}\n")


def _show_plan(args: argparse.Namespace, subject: Subject, plan: PrunePlan, ending: str) -> None:
    """What the plan would do: totals, the groups that it cuts, and every layer that gets cheaper."""
    from onnxprune.planned import planned

    channels = subject.channels
    keep = plan.keep()
    found = planned(subject, plan)
    totals = {"macs": found.macs, "params": found.params}
    groups = [(g.name, g.width, len(keep.get(g.name, range(g.width)))) for g in channels.groups]
    if args.json:
        content = {
            "schema": 1,
            "kind": "onnxprune dry run",
            "macs": dict(zip(("before", "after"), totals["macs"], strict=True)),
            "params": dict(zip(("before", "after"), totals["params"], strict=True)),
            "groups": [{"name": n, "before": b, "after": a} for n, b, a in groups],
            "layers": found.to_json(),
            "plan": json.loads(plan.to_json()),
        }
        _print(_json(content))
        return
    rows = [("", "original", "planned", "change")]
    for title, of in (("MACs", "macs"), ("parameters", "params")):
        before, after = totals[of]
        rows.append((title, si(before), si(after), change(before, after)))
    _print("\n".join(f"{r[0]:<13}{r[1]:>12}{r[2]:>12}{r[3]:>10}" for r in rows) + "\n\n")
    cut = [(plain(n), str(b), str(a), change(b, a)) for n, b, a in groups if a < b]
    more = None if args.verbose else ROWS
    _print(table(("group", "width", "kept", "change"), cut, "<>>>", most=more, width=_width()))
    layers = [
        (plain(c.layer), si(c.macs_before), si(c.macs_after), change(c.macs_before, c.macs_after), c.what)
        for c in found.layers
        if c.macs_after != c.macs_before
    ]
    if layers:
        head = ("layer", "MACs", "planned", "change", "what")
        _print("\n" + table(head, layers, "<>>><", most=more, width=_width()))
    _print(f"\n{len(cut)} of {len(groups)} groups would be cut; {ending}\n")


# ---- from the outside in ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; never raises."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a name that the terminal cannot spell must not stop us
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    status = Status(sys.stderr)
    debug = "--debug" in argv
    try:
        with _terminated(), warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            try:
                _dispatch(argv, status)
                sys.stdout.flush()
            finally:
                status.close()
        return 0
    except SystemExit as stop:  # --help, --version, SIGTERM
        code = stop.code if isinstance(stop.code, int) else 0
        if code == 143:
            status.fail(f"terminated while: {status.now}")
        return code
    except BrokenPipeError:  # the reader of our output has gone: whatever was to be written is
        with contextlib.suppress(Exception):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except BaseException as error:
        if debug:
            import traceback

            traceback.print_exc()
        code, text = _explain(error, status.now)
        status.fail(text)
        return code


def _dispatch(argv: list[str], status: Status) -> None:
    if not argv:
        raise UsageError("no model given; try `onnxprune MODEL --ratio 0.5`, or `onnxprune --help`")
    if argv[0] in COMMANDS:
        make_parser, command = COMMANDS[argv[0]]
        parser, rest = make_parser(), argv[1:]
    else:
        parser, command, rest = _prune_parser(), _prune, argv
    args = parser.parse_intermixed_args(rest)
    status.set(quiet=args.quiet, verbose=args.verbose)
    command(args, status)


def _explain(error: BaseException, phase: str) -> tuple[int, str]:
    """Exit code and words for whatever stopped us."""
    if isinstance(error, PruneError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, f"interrupted while: {phase}"
    if isinstance(error, MemoryError):
        kind = CalibrationError if phase in ("calibrate", "repair", "fidelity") else ModelError
        remedy = "use fewer --samples or a machine with more"
        return kind.exit_code, f"out of memory while: {phase}; {remedy}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return FileError.exit_code, f"{where}{error.strerror or error}; check the path and its permissions"
    return 1, (
        f"unexpected {type(error).__name__} while: {phase}: {error}; this is our bug: please report it with "
        f"what --debug prints"
    )


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM becomes SystemExit(143), so that temporary files are removed on the way out."""

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(143)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
