"""`onnxprune verify`: does a pruned file keep to its plan?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from onnxprune.commands.common import as_json, check_samples, open_subject, print_out
from onnxprune.commands.options import Parser, add_general, add_samples
from onnxprune.commands.results import read_plan, seed_of
from onnxprune.errors import BudgetError, UsageError
from onnxprune.report.terminal import Status, plain, surgery_words


def parser() -> Parser:
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
    add_samples(parser)
    add_general(parser)
    return parser


def run(args: argparse.Namespace, status: Status) -> None:
    check_samples(args)
    if not args.calib and (args.min_cosine is not None or args.min_top1 is not None):
        raise UsageError("--min-cosine and --min-top1 need samples; give --calib")
    from dataclasses import asdict

    from onnxprune.files.read import read_model
    from onnxprune.graph.seeds import with_seeds
    from onnxprune.measure.fidelity import check_fidelity
    from onnxprune.pipeline.inspection import recheck

    plan = read_plan(args.plan)
    subject = open_subject(args, status, plan)
    pruned = with_seeds(read_model(args.pruned))
    status.phase("surgery")
    surgery, sizes = recheck(subject, plan, pruned)
    fidelity = None
    if subject.calibration is not None:
        status.phase("fidelity")
        parts = subject.partition(seed_of(args, plan))
        assert parts is not None
        held = subject.calibration if args.all else parts.held
        fidelity = check_fidelity(subject.model, pruned, held.batches(32), held_out=not held.shared)
    status.close()
    missed = list(sizes[:1])
    inexact = subject.channels.inexact
    if not surgery.exact and not inexact:
        missed.append(f"the cut differs from the {surgery.against} by {surgery.worst:.1e}")
    if fidelity is not None and args.min_cosine is not None:
        if fidelity.cosine is None:
            raise UsageError("--min-cosine needs a model with an output of floating point")
        if not fidelity.cosine >= args.min_cosine:
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
        print_out(as_json(content))
    else:
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
        lines.append(f"fidelity     {fidelity.in_words()} on {fidelity.samples} {kind}")
    return "\n".join(lines) + "\n"
