"""`onnxprune MODEL`, `prune`, `plan` and `apply`: decide, carry out, write."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.commands.common import (
    as_json,
    check_outputs,
    check_samples,
    columns,
    inputs_of,
    open_subject,
    print_out,
    run_of,
    say_doubts,
)
from onnxprune.commands.options import (
    Add,
    Parser,
    add_gates,
    add_general,
    add_output,
    add_report,
    add_report_samples,
    add_samples,
    add_settings,
    gates_of,
    given,
    numbers,
    reader,
)
from onnxprune.commands.results import (
    ROWS,
    beside,
    kept_too_little,
    linked,
    of_plan,
    output_of,
    read_plan,
    refuse_or_save,
    saying,
    wants_bench,
    write_text,
)
from onnxprune.commands.table import COMMANDS, flags_of
from onnxprune.errors import EXITS, BudgetError, UsageError
from onnxprune.pipeline.gates import ANYWAY, Asked, Gates
from onnxprune.pipeline.goals import TARGETS, Goal, Target, goal_of
from onnxprune.pipeline.settings import REMOVE, REPAIR, RESULT, TIMING, Settings
from onnxprune.report.status import Status
from onnxprune.report.terminal import change, costs, plain, si, table

if TYPE_CHECKING:
    from onnxprune.api import Subject
    from onnxprune.plan import PrunePlan
    from onnxprune.report.result import Result

ABOUT = """\
Prune a CNN in an ONNX file: smaller, faster, nearly the same outputs. Or:
  inspect MODEL                      what can be pruned, and why not the rest
  plan MODEL -o PLAN                 decide, and write the decision down
  apply MODEL PLAN                   carry a plan out
  verify MODEL PRUNED --plan PLAN    check a pruned file
  sensitivity MODEL, search MODEL    what each cut does; try many settings
  bench A B, diff A B                latency, or layers and costs, side by side
  train MODEL, report RESULT.json    prune while training; --json as a page
  profile MODEL, demo, help TOPIC    times of a device; an example; documents
"""


FASTER = "try --of latency or --speedup, or add --best-effort to have it anyway"


def _add_goals(add: Add, *, several: bool = False) -> None:
    """What to aim at; `several`: also ratios in a row and what is reached by measuring."""
    add("--ratio", type=float, metavar="R", help="share to remove (default 0.5)")
    if several:
        add("--ratios", type=numbers, metavar="LIST", help="several at once, one file each: 0.3,0.5,0.7")
        for kind in TARGETS.values():
            read = reader(Asked.read) if kind.by_metric else float
            add(kind.option, dest=kind.name, type=read, metavar=kind.metavar, help=f"instead: {kind.help}")
        add("--eval", metavar="SPEC", help="file.py:function of a path, or labelled .npz")
    add("--lossless", action="store_true", help="no ratio: remove only what changes no output")


def _add_bench(add: Add) -> None:
    text = "measure latency (default with --calib, not --json)"
    add("--bench", action=argparse.BooleanOptionalAction, default=None, help=text)


def _exits() -> str:
    return "exit codes: " + ", ".join(f"{code} {text}" for code, text in EXITS.items())


def _more() -> str:
    """The options that the main help does not explain, by the command whose help does."""
    shown = {flag for a in parser()._actions if a.help is not argparse.SUPPRESS for flag in a.option_strings}
    found: dict[str, str] = {}
    for name, (make, _) in COMMANDS.items():
        own = [flag for flag in flags_of(make()) if flag not in {*shown, "--help"}]
        shown.update(own)
        if own:
            found[name] = " ".join(own)
    first, *rest = [f"{name}  {flags}" for name, flags in found.items()]
    return f"more options, which `onnxprune COMMAND --help` explains:\n  {first}\n  others  {'; '.join(rest)}"


def parser(name: str = "") -> Parser:
    about = "The main job: decide, cut, repair, check, measure, write." if name else ABOUT
    usage = f"{name} MODEL [--ratio R] [--calib SAMPLES] [-o OUT] [options]".strip()
    parser = Parser(name, usage, about, _exits if name else _more)
    parser.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)  # the usage line says it
    add, brief = parser.add_argument_group("what to remove").add_argument, not name
    _add_goals(add, several=True)
    add_settings(add, "prune", REMOVE, brief=brief)
    add_samples(parser, brief=brief)
    add = parser.add_argument_group("repair, timing, result").add_argument
    add_settings(add, "prune", REPAIR, brief=brief)
    _add_bench(add)
    add_settings(add, "prune", TIMING, brief=brief)
    add_output(add)
    add_gates(add, brief=brief)
    add_settings(add, "prune", RESULT, brief=brief)
    add("--dry-run", action="store_true", help="analyse and plan; write nothing")
    add("--plan-out", metavar="FILE", help="write the plan too, as JSON")
    add_report(add)
    add_report_samples(add, brief=brief)
    add("--plot", metavar="FILE", help=argparse.SUPPRESS if brief else "with --ratios, draw the curve: .svg or .png")
    add_general(parser, add if brief else None)
    return parser


def plan_parser() -> Parser:
    about = "Decide which channels go, and write that down as JSON (without -o: on standard output)."
    parser = Parser("plan", "plan MODEL [--ratio R] [--calib SAMPLES] [-o plan.json] [options]", about)
    parser.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    add = parser.add_argument_group("what to remove").add_argument
    _add_goals(add)
    add_settings(add, "plan", REMOVE)
    add_samples(parser)
    timing = parser.add_argument_group("timing").add_argument
    add_settings(timing, "plan", TIMING)
    add_settings(timing, "plan", REPAIR)
    add_output(parser.add_argument_group("result").add_argument, "standard output")
    add_general(parser, json_help="print the plan, also when -o writes it")
    return parser


def apply_parser() -> Parser:
    about = "Carry a plan out: the same bytes as the command that made it."
    parser = Parser("apply", "apply MODEL PLAN [--calib SAMPLES] [-o OUT] [options]", about)
    parser.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("plan", metavar="PLAN", help="written by `onnxprune plan` or --plan-out; or a search's storage")
    parser.add_argument("--trial", type=int, metavar="N", help="the plan of that trial of `onnxprune search`")
    add_samples(parser)
    add = parser.add_argument_group("repair, timing, result").add_argument
    add("--transfer", action="store_true", help="the plan is another model's: of the same structure, by other names")
    add("--plan-out", metavar="FILE", help="write the plan that was carried out, as JSON")
    add_settings(add, "apply", REPAIR)
    _add_bench(add)
    add_settings(add, "apply", TIMING)
    add_gates(add)
    add_output(add)
    add_settings(add, "apply", RESULT)
    add_general(parser)
    return parser


def run(args: argparse.Namespace, status: Status) -> None:
    if args.dry_run and beside(args):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name, _ in beside(args))
        raise UsageError(f"--dry-run writes nothing; drop {flags}, or use `onnxprune plan`")
    check_samples(args)
    if args.ratios is not None:
        _sweep(args, status)
        return
    if args.plot:
        raise UsageError("--plot draws a curve over several ratios; give --ratios too, or --report for one result")
    if args.report_samples and not (args.report or args.json):
        raise UsageError("--report-samples says what a page shows; give --report too")
    from onnxprune import api
    from onnxprune.pipeline.reach import change as change_of

    goal, gates, metric = _goal(args), _gates(args), _metric(args)
    settings = goal.serve(Settings(**given(args, "prune")))
    output = output_of(args)
    if isinstance(goal, Target) and args.dry_run:
        raise UsageError("a target is reached by measuring what was cut; --dry-run goes with --ratio")
    if not args.dry_run:
        check_outputs(args, output, *(path for _, path in beside(args)))
    subject = open_subject(args, status)
    status.phase("plan")
    if args.dry_run:
        plan = api.make_plan(subject, goal, settings, status.progress)
        say_doubts(args, subject, status)
        _show_plan(args, subject, plan, settings, "dry run, nothing written")
        return
    if isinstance(goal, Target):
        result = api.reach(subject, goal, settings, metric=metric, progress=status.progress)
        if result.latency is None and wants_bench(args):
            result = api.measure_latency(result, subject, settings, status.progress)
    else:
        result = api.plan_and_apply(subject, goal, settings, bench=wants_bench(args), progress=status.progress)
    _check_faster(args, result)
    result = api.pictured(result, subject, settings, args.report_samples)
    drop = saying(status, partial(change_of, subject, settings, metric, result.runs))
    refuse_or_save(args, result, output, status, gates=gates, drop=drop)


def _sweep(args: argparse.Namespace, status: Status) -> None:
    """A whole trade-off curve from one look at the samples: one file a ratio."""
    other = args.plan_out or args.summary or args.dry_run or args.lossless or args.report_samples
    if args.ratio is not None or other or _target(args) is not None:
        raise UsageError(
            "--ratios stands for itself; drop --ratio, --lossless, --plan-out, --summary, --report-samples and "
            "--dry-run"
        )
    if args.plot:
        from onnxprune.report import plots

        plots.require(args.plot)
    from onnxprune import api
    from onnxprune.report.terminal import sweep_table

    settings = Settings(**given(args, "prune"))
    base = Path(output_of(args))
    outputs = [str(base.with_name(f"{base.stem}-{ratio:g}{base.suffix}")) for ratio in args.ratios]
    check_outputs(args, *outputs, args.report, args.plot)
    subject = open_subject(args, status)
    status.phase("plan")
    results, slower, ruined = [], [], []
    files: list[str | None] = []
    gates = gates_of(args)
    found = api.sweep(subject, args.ratios, settings, bench=wants_bench(args), progress=status.progress)
    for result, output in zip(found, outputs, strict=True):
        results.append(result)
        files.append(None)
        if _is_slower(args, result):
            slower.append(output)
            continue
        if missed := kept_too_little(args, result.fidelity, gates):
            ruined.append(f"{output}: {'; '.join(missed)}")
            continue
        status.phase("write")
        files[-1] = str(result.save(output, force=args.force))
    status.close()
    for text in dict.fromkeys(w for r in results for w in r.warnings if not args.quiet):
        status.say(f"warning: {text}")
    for text in dict.fromkeys(note for r in results for note in r.notes if not args.quiet):
        status.say(text)
    swept = _swept(results, args, files)
    _draw_sweep(args, results, swept, files)
    if args.json:
        print_out(as_json(swept, args))
    else:
        print_out(sweep_table(results, outputs, columns()))
    said = [f"slower than the original and not written: {', '.join(slower)}; {FASTER}"] if slower else []
    said += [f"not written: {', '.join(ruined)}; cut less, or {ANYWAY} to have them as they are"] if ruined else []
    if said:
        raise BudgetError("; ".join(said))


def _swept(results: Sequence[Result], args: argparse.Namespace, files: Sequence[str | None]) -> dict[str, Any]:
    """A sweep as plain values; its run is said once."""
    each = [{k: v for k, v in r.to_dict().items() if k != "run"} for r in results]
    return {"schema": 1, "kind": "onnxprune sweep", "results": each, "run": run_of(args, files)}


def _draw_sweep(
    args: argparse.Namespace, results: Sequence[Result], swept: dict[str, Any], files: Sequence[str | None]
) -> None:
    """The page and the picture, where they are asked for."""
    if args.report:
        from onnxprune.report.page import render

        written = [path for path in files if path]
        page = render(swept, name=Path(args.model).name, files=linked(args.report, args, *written))
        write_text(page, args.report, args)
    if args.plot:
        from onnxprune.files.write import atomic_write_bytes
        from onnxprune.report import plots, sweep_plot

        picture = plots.encoded(sweep_plot.draw(results), args.plot)
        atomic_write_bytes(picture, args.plot, force=args.force, sources=inputs_of(args))


def run_apply(args: argparse.Namespace, status: Status) -> None:
    check_samples(args)
    from onnxprune import api

    output = output_of(args)
    plan = read_plan(args.plan, args.trial, args.model)
    check_outputs(args, output, *(path for _, path in beside(args)))
    carried = {"seed": plan.seed, "batch": plan.batch, "providers": plan.providers}  # unless told otherwise
    settings = Settings(**{**carried, **given(args, "apply")})
    subject = open_subject(args, status, plan)
    status.phase("cut")
    with of_plan(args.plan):
        plan = api.transfer(plan, subject, settings) if args.transfer else plan
        result = api.apply_plan(subject, plan, settings, bench=wants_bench(args), progress=status.progress)
    refuse_or_save(args, result, output, status)


def run_plan(args: argparse.Namespace, status: Status) -> None:
    check_samples(args)
    from onnxprune import api

    goal = _goal(args)
    settings = goal.serve(Settings(**given(args, "plan")))
    if args.output:
        check_outputs(args, args.output)
    subject = open_subject(args, status)
    status.phase("plan")
    plan = api.make_plan(subject, goal, settings, status.progress)
    say_doubts(args, subject, status)
    status.close()
    text = plan.to_json(run_of(args))
    if args.output:
        write_text(text, args.output, args)
    if args.json or not args.output:
        print_out(text)
    else:
        _show_plan(args, subject, plan, settings, f"wrote {plain(args.output)}")


def _goal(args: argparse.Namespace) -> Goal:
    """What was asked for."""
    if args.lossless and args.ratio is not None:
        raise UsageError("--lossless takes no --ratio; what can go without changing an output is what it is")
    target = _target(args) if hasattr(args, "eval") else None
    return goal_of(0.5 if args.ratio is None else args.ratio, target, args.lossless)


def _asked(args: argparse.Namespace) -> tuple[list[Target], list[Target]]:
    """The targets that were asked for, and those that are gates: a drop beside another goal."""
    given = {name: value for name in TARGETS if (value := getattr(args, name)) is not None}
    found = [Target(name, v.value if isinstance(v, Asked) else v) for name, v in given.items()]
    alone = len(found) == 1 and args.ratio is None and not args.lossless
    return ([t for t in found if alone or not t.entry.by_metric], [t for t in found if not alone and t.entry.by_metric])


def _metric(args: argparse.Namespace) -> str | None:
    """What a drop is measured in: what --eval names, or the figure of the outputs that --max-drop names.

    Raises:
        UsageError: both of them, and the file has no labels that a figure could be of.
    """
    named = [(name, v.figure) for name in TARGETS if isinstance(v := getattr(args, name), Asked) and v.figure]
    if not named:
        return args.eval
    name, figure = named[0]
    if args.eval is None:
        return figure
    if not args.eval.endswith(".npz"):
        raise UsageError(f"{TARGETS[name].option} {figure}=… says what is measured, and --eval too; drop one")
    return f"{args.eval}:{figure}"


def _gates(args: argparse.Namespace) -> Gates:
    """What the outcome must keep."""
    _, gates = _asked(args)
    found = gates_of(args, **{t.kind: t.value for t in gates})
    needing = [flag for flag in found.given() if not (args.eval and flag in [t.entry.option for t in gates])]
    if needing and not args.calib:
        raise UsageError(f"{needing[0]} needs samples; give --calib")
    return found


def _target(args: argparse.Namespace) -> Target | None:
    """The target that was asked for instead of a ratio."""
    asked, gates = _asked(args)
    if len(asked) > 1 or (asked and args.ratio is not None):
        names = [t.entry.option for t in asked] + (["--ratio"] if args.ratio is not None else [])
        raise UsageError(f"{' and '.join(names)}: one target at a time")
    if args.eval is not None and not any(t.entry.by_metric for t in (*asked, *gates)):
        by_metric = " or ".join(kind.option for kind in TARGETS.values() if kind.by_metric)
        raise UsageError(f"--eval says what {by_metric} measures; give {by_metric} too")
    return asked[0] if asked else None


def _is_slower(args: argparse.Namespace, result: Result) -> bool:
    """Whether it was timed, and found to be what nobody wants: slower than the original."""
    return not (result.latency is None or args.best_effort) and result.latency.comparisons[0].verdict == "slower"


def _check_faster(args: argparse.Namespace, result: Result) -> None:
    """A model that is slower than the original is not what anyone wants: nothing is written."""
    if _is_slower(args, result):
        assert result.latency is not None
        c = result.latency.comparisons[0]
        raise BudgetError(
            f"the pruned model is slower than the original: {c.speedup:.2f}x [{c.low:.2f}, {c.high:.2f}]; nothing was "
            f"written; {FASTER}"
        )


def _show_plan(args: argparse.Namespace, subject: Subject, plan: PrunePlan, settings: Settings, ending: str) -> None:
    """What the plan would do: totals, the groups that it cuts, and every layer that gets cheaper."""
    from onnxprune.pipeline.preview import preview

    channels = subject.channels
    keep = plan.keep()
    found = preview(subject, plan, settings)
    before, after = asdict(found.before), asdict(found.after)
    groups = [(g.name, g.width, len(keep.get(g.name, range(g.width)))) for g in channels.groups]
    if args.json:
        content = {
            "schema": 1,
            "kind": "onnxprune dry run",
            "macs": {"before": before["macs"], "after": after["macs"]},
            "params": {"before": before["params"], "after": after["params"]},
            "uncounted": before["uncounted"],
            "uncounted_time": before["uncounted_time"],
            "groups": [{"name": n, "before": b, "after": a} for n, b, a in groups],
            "layers": found.to_json(),
            "plan": json.loads(plan.to_json()),
        }
        print_out(as_json(content, args))
        return
    planned = {key: after[key] for key in ("macs", "params")}  # a plan has no file yet
    print_out(costs(before, planned, title="planned") + "\n")
    cut = [(plain(n), str(b), str(a), change(b, a)) for n, b, a in groups if a < b]
    more = None if args.verbose else ROWS
    print_out(table(("group", "width", "kept", "change"), cut, "<>>>", most=more, width=columns()))
    layers = [
        (plain(c.layer), si(c.macs_before), si(c.macs_after), change(c.macs_before, c.macs_after), c.what)
        for c in found.layers
        if c.macs_after != c.macs_before
    ]
    if layers:
        head = ("layer", "MACs", "planned", "change", "what")
        print_out("\n" + table(head, layers, "<>>><", most=more, width=columns()))
    smaller = "".join(f"the network would see {plain(e.in_words())}; " for e in plan.resampled())
    print_out(f"\n{smaller}{len(cut)} of {len(groups)} groups would be cut; {ending}\n")
