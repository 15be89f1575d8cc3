"""`onnxprune verify`: does a pruned file keep to its plan?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from onnxprune.commands.common import as_json, check_samples, open_subject, print_out
from onnxprune.commands.options import Parser, add_gates, add_general, add_samples, gates_of
from onnxprune.commands.results import kept_too_little, of_plan, read_plan, seed_of
from onnxprune.errors import BudgetError, UsageError
from onnxprune.report.status import Status
from onnxprune.report.terminal import costs, fidelity_said, plain, said_lines, surgery_words


def parser() -> Parser:
    about = (
        "Check a pruned file: the plan's cut computes what the masked original computes (surgery), the\n"
        "file has the sizes that the plan says, and its outputs stay close to the original's (fidelity)."
    )
    parser = Parser("verify", "verify ORIGINAL PRUNED --plan PLAN [--calib SAMPLES] [options]", about)
    parser.add_argument("model", metavar="ORIGINAL", help=argparse.SUPPRESS)
    parser.add_argument("pruned", metavar="PRUNED", help=argparse.SUPPRESS)
    parser.add_argument("--plan", required=True, metavar="PLAN", help="what was kept")
    add_gates(parser.add_argument)
    parser.add_argument(
        "--all", action="store_true", help="use every sample, not only the quarter held out when pruning"
    )
    add_samples(parser)
    add_general(parser)
    return parser


def run(args: argparse.Namespace, status: Status) -> None:
    check_samples(args)
    gates = gates_of(args)
    if gates.given() and not args.calib:
        raise UsageError(f"{gates.given()[0]} needs samples; give --calib")
    from dataclasses import asdict

    from onnxprune.files.read import read_model
    from onnxprune.graph.rehearsal import Rehearsal
    from onnxprune.graph.seeds import with_seeds
    from onnxprune.graph.sparse import unpacked
    from onnxprune.graph.unfused import unfused
    from onnxprune.measure.fidelity import check_fidelity
    from onnxprune.pipeline.inspection import recheck

    plan = read_plan(args.plan)
    subject = open_subject(args, status, plan)
    pruned, _ = unpacked(with_seeds(unfused(subject.part_of(read_model(args.pruned)))))
    Rehearsal(args.pruned, args.trusted).run(pruned, subject.feeds)
    status.phase("surgery")
    with of_plan(args.plan):
        surgery, sizes, after = recheck(subject, plan, pruned)
    before = asdict(subject.cost())
    fidelity = None
    if subject.calibration is not None:
        status.phase("fidelity")
        parts = subject.partition(seed_of(args, plan))
        assert parts is not None
        held = subject.calibration if args.all else parts.held
        fidelity = check_fidelity(
            subject.graph,
            pruned,
            held.batches(32),
            shapes=subject.net.shapes,
            said=subject.said,
            held_out=not held.shared,
        )
    status.close()
    missed = list(sizes[:1])
    inexact = subject.channels.inexact
    if not surgery.exact and not inexact:
        missed.append(f"the cut differs from the {surgery.against} by {surgery.worst:.1e}")
    missed += kept_too_little(args, fidelity, gates)
    if args.json:
        content = {
            "schema": 1,
            "kind": "onnxprune verification",
            "before": before,
            "after": None if after is None else asdict(after),
            "surgery": asdict(surgery),
            "inexact": list(inexact),
            "sizes_match": not sizes,
            "fidelity": None if fidelity is None else asdict(fidelity),
            "missed": missed,
        }
        print_out(as_json(content, args))
    else:
        if after is not None:
            print_out(costs(before, asdict(after)) + "\n")
        print_out(_verification(surgery, sizes, fidelity, every=args.all, inexact=len(inexact)))
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
        kind = "samples" if every else "held-out samples"
        lines += said_lines(fidelity_said(fidelity, kind))
    return "\n".join(lines) + "\n"
