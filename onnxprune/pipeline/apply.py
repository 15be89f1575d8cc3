"""A plan carried out: cut, proven, repaired, and compared with the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.channels import Analysed, CutSizes
from onnxprune.decide.blocks import all_blocks
from onnxprune.decide.runs import made_of
from onnxprune.errors import PlanError
from onnxprune.graph import operators, sparse
from onnxprune.graph.layers import layers
from onnxprune.graph.model import Graph
from onnxprune.graph.seeds import without_seeds
from onnxprune.graph.shapes import Observed, observe
from onnxprune.graph.work import NOTHING
from onnxprune.measure.cost import Cost, cost_of, shares_weights
from onnxprune.measure.fidelity import Fidelity, check_fidelity
from onnxprune.measure.likeness import likeness
from onnxprune.measure.outline import Seen, outline, spots_of
from onnxprune.measure.trained import Trained
from onnxprune.measure.verdict import KEPT
from onnxprune.numerics import on_disk
from onnxprune.parallel import bounded, one_blas_thread
from onnxprune.pipeline.asked import Progress, counted, unmatched
from onnxprune.pipeline.block_trials import edit_of
from onnxprune.pipeline.countable import doubt
from onnxprune.pipeline.finishing import AT_A_TIME, Finishing, check_finish, finish_of
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.origin import provenance_of, sign
from onnxprune.pipeline.proof import check_repaired, cut_and_prove
from onnxprune.pipeline.refused import refused
from onnxprune.pipeline.repairs import REPAIR_SAMPLES, repair_for
from onnxprune.pipeline.settings import Settings
from onnxprune.pipeline.timed import measure_latency
from onnxprune.plan import DropBlock, KeepChannels, PrunePlan
from onnxprune.protobuf.serialize import byte_size
from onnxprune.report.result import Result
from onnxprune.rewrite.apply import Mending, alive_after, apply_edits, without_blocks
from onnxprune.rewrite.factorize import factorable
from onnxprune.rewrite.quantized import floating
from onnxprune.rewrite.repair.nearest import cut_merged
from onnxprune.rewrite.repair.table import NONE, Repair
from onnxprune.rewrite.resample import seen_at
from onnxprune.runtime import ports
from onnxprune.samples.calibration import Calibration
from onnxprune.samples.partition import Partition

PROBED = 8
"""Samples on which the cut is proven."""
SHARED = (
    "there are more parameters than before: weights that several layers share are cut and repaired for each of "
    "them (--of params counts that)"
)
FLOATS_FIRST = (
    "the model is quantized, and networks lose less when they are pruned before that: where there is a file in floats, "
    "prune it with --quantize int8"
)


Tell = Callable[[Trained], None]


@dataclass(frozen=True)
class Tuning:
    """What is done last with the repaired network: other weights of the same sizes, or the same where that is better.

    Attributes:
        run: (network, samples to judge by, whom to tell what came of it) -> network.
        sampled: whether it is judged by samples, and not by a recipe's labels.
    """

    run: Callable[[Graph, Calibration | None, Tell], Graph]
    sampled: bool


@one_blas_thread
@bounded
def apply_plan(
    subject: Subject,
    plan: PrunePlan,
    settings: Settings | None = None,
    *,
    original: Subject | None = None,
    tune: Tuning | None = None,
    bench: bool = False,
    stop_early: bool = False,
    on_trial: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Cut, check the surgery, repair, and compare with the original.

    Args:
        subject: what the plan was made for.
        plan: what to do.
        settings: how to repair, and the seed.
        original: what the subject was trained from, if it was: costs and fidelity are compared with that.
        tune: what else is done with the repaired network.
        stop_early: give up as soon as random input seems to decide the outputs: for callers who have another plan.
        on_trial: whether half of what is held will judge the result: nothing is reported on that.
        bench, progress: as for `prune`.

    Raises:
        UsageError: the plan was made for another model.
        BudgetError: the cut model differs from the masked original (our bug: nothing is returned).
    """
    settings, first = settings or Settings(), original or subject
    check_plan(subject, plan)
    check_finish(subject, settings)
    if bench:
        subject.check_timing(settings)
    net, parts = subject.net, subject.partition(settings.seed)
    seen = seen_at(net, plan.edits)
    cut = cut_and_prove(net, plan, None if parts is None else parts.held.first(PROBED), stop_early=stop_early)
    repair, words = chosen_repair(subject, plan, settings)
    if parts is not None and (on_trial or _judged_by_samples(repair, settings, tune)):
        parts = parts.on_trial(settings.seed)
    warnings = [*subject.warnings, *first.doubts, *cut.warnings, *words]
    warnings += unmatched(net, exclude=settings.exclude, keep_block=settings.keep_block)
    if parts is None and not plan.lossless and original is None:
        warnings.append(_unsampled(repair))
    merges = repair.merges_likest and plan.by_likeness
    start = _merged(seen, plan, parts, settings) if parts is not None and merges else cut.graph
    graph, trained = _mended(subject, plan, repair, parts, settings, tune, progress, start)
    if parts is None and repair.name != NONE:
        check_repaired(net, graph.model)
    graph = _finished(subject, graph, parts, settings, progress)
    fidelity = None
    if parts is not None:
        held = counted(parts.held, "verify", progress, net.batch)
        fidelity = check_fidelity(
            first.graph, graph.model, held, shapes=first.net.shapes, said=first.said, held_out=not parts.held.shared
        )
    sign(graph.model, first, plan, settings, repair.name)
    looks = spots_of(first.graph, first.channels.shapes, first.channels.ran)
    before, (after, looks_after) = first.cost(), _cost(seen, plan, graph, first)
    warnings += filter(None, [doubt(before)])
    if after.params > before.params and shares_weights(net.graph, net.channels):
        warnings.append(SHARED)
    keep = plan.keep()
    result = Result(
        model=first.whole_of(graph.model),
        barrier=first.barrier,
        source=first.path,
        before=before,
        after=after,
        surgery=cut.surgery,
        fidelity=fidelity,
        latency=None,
        plan=plan,
        cuts=cut.cuts,
        pinned=net.channels.pinned,
        groups=tuple((g.name, g.width, len(keep.get(g.name, range(g.width)))) for g in net.channels.groups),
        repair=repair.name,
        training=trained,
        refused=refused(net, plan, repair),
        inexact=() if cut.surgery.exact else net.channels.inexact,
        warnings=tuple(warnings),
        notes=_notes(net, settings, fidelity),
        network=outline(looks, looks_after),
        feeds=net.feeds,
        made=provenance_of(first, settings, repair.name),
    )
    return measure_latency(result, subject, settings, progress) if bench else result


def _notes(net: Analysed, settings: Settings, fidelity: Fidelity | None) -> tuple[str, ...]:
    """What else a user should know of the outcome."""
    how = finish_of(settings)
    lost = fidelity is not None and fidelity.verdict not in (None, KEPT)
    notes = ("" if how is None else how.said, FLOATS_FIRST if lost and floating(net) is not None else "")
    return tuple(filter(None, notes))


def chosen_repair(subject: Subject, plan: PrunePlan, settings: Settings) -> tuple[Repair, list[str]]:
    """The repair that a plan's outcome gets, and what the user should know of the choice."""
    sampled, net = subject.calibration is not None, subject.net
    return repair_for(settings.repair, sampled=sampled, lossless=plan.lossless, has_weights=lambda: _has_weights(net))


def _has_weights(net: Analysed) -> bool:
    """Whether any layer has weights in floating point, or integers that stand for such."""
    net = floating(net) or net
    return any(layer.weight is not None for layer in layers(net.graph, net.shapes))


def _unsampled(repair: Repair) -> str:
    """What to expect without samples."""
    done = "nothing was repaired" if repair.name == NONE else "the repair went by random inputs"
    return (
        f"no calibration data: scores are from weights alone, {done}, and accuracy will suffer; "
        "give --calib with a few hundred unlabelled samples"
    )


def _cost(net: Analysed, plan: PrunePlan, graph: Graph, first: Subject) -> tuple[Cost, tuple[Seen, ...]]:
    """What the outcome costs, and looks like; what tells random nodes apart while models are compared is taken out of
    it, and what was sparse is packed again."""
    seen = _sizes(graph, CutSizes(net.channels, alive_after(net, plan.edits)), net)
    without_seeds(graph.model)
    found, looks = cost_of(graph, seen.shapes, seen.ran), spots_of(graph, seen.shapes, seen.ran)
    sparse.pack(graph.model, first.sparse)
    return replace(found, bytes=byte_size(first.whole_of(graph.model))), looks


def _merged(net: Analysed, plan: PrunePlan, parts: Partition, settings: Settings) -> Graph:
    """The cut network with every removed channel merged into the likest kept one: where a repair of statistics starts
    from."""
    net = floating(net) or net
    seen = likeness(net, parts.fit.batches, threads=settings.threads, seed=settings.seed)
    far = {g.name: seen.distance(g) for g in net.channels.groups}
    return without_blocks(net, cut_merged(net, alive_after(net, plan.edits), far), plan.edits)


def _mended(
    subject: Subject,
    plan: PrunePlan,
    repair: Repair,
    parts: Partition | None,
    settings: Settings,
    tune: Tuning | None,
    progress: Progress | None,
    start: Graph,
) -> tuple[Graph, tuple[Trained, ...]]:
    """(the network that is mended, what came of training)."""
    told: list[Trained] = []
    judges = None if parts is None else parts.trial
    mending = replace(_mending(subject, repair, parts, settings, progress), judges=judges, tell=told.append)
    if tune is not None:
        mending = replace(mending, finish=lambda graph: tune.run(graph, judges, told.append))
    return apply_edits(subject.net, plan.edits, mending, start=start), tuple(told)


def _finished(
    subject: Subject, graph: Graph, parts: Partition | None, settings: Settings, progress: Progress | None
) -> Graph:
    """The finished network in the format that it is to have."""
    how = finish_of(settings)
    if how is None:
        return graph
    told = (lambda k, n: progress(how.name, k, n)) if progress else None
    return Graph(Finishing(how, settings, _fitted_on(subject, parts, AT_A_TIME), told)(graph.model))


def _fitted_on(
    subject: Subject, parts: Partition | None, at_a_time: int | None = None
) -> Sequence[Mapping[str, np.ndarray]]:
    """Samples that a repair in closed form is fitted on, at most so many at a time."""
    size = min(subject.net.batch, at_a_time or subject.net.batch)
    return () if parts is None else on_disk.kept(parts.fit.take(REPAIR_SAMPLES).batches(size))


def _judged_by_samples(repair: Repair, settings: Settings, tune: Tuning | None) -> bool:
    """Whether something trains that is judged by samples, and not by a recipe's labels."""
    return tune.sampled if tune is not None else repair.trains and settings.recipe is None


def _mending(
    subject: Subject, repair: Repair, parts: Partition | None, settings: Settings, progress: Progress | None
) -> Mending:
    """How the cut network is mended."""

    def report(phase: str) -> Callable[[int, int], None] | None:
        return (lambda k, n: progress(phase, k, n)) if progress and phase else None

    return Mending(
        repair,
        _fitted_on(subject, parts),
        None if parts is None else parts.fit,
        all(map(ports.open_batch, subject.specs)),
        {name: getattr(settings, name) for name in repair.options},
        settings.threads,
        settings.seed,
        report=report,
    )


def _sizes(graph: Graph, cut: CutSizes, net: Analysed) -> Observed:
    """The sizes of the outcome's tensors. It is run once where it has some that the cut alone does not know: layers
    that were made of two, what gives a MatMul a bias, and weights behind DequantizeLinear; or does what only a run
    tells."""
    nodes = graph.nodes.values()
    known = all(o in cut.shapes for n in nodes for o in n.output if o and graph.constant(o) is None)
    known = known and not any(operators.of(n).dequantizes for n in nodes)
    known = known and net.channels.ran == NOTHING
    return Observed(cut.shapes, {}) if known else observe(graph, net.feeds)


def check_plan(subject: Subject, plan: PrunePlan) -> None:
    """Refuse a plan that was made for another model."""
    if plan.model_digest != subject.digest:
        raise PlanError("the plan was made for another model; write one for this model with `onnxprune plan`")
    known = {g.name: g.width for g in subject.channels.groups}
    found = all_blocks(subject.net) if plan.blocks() else ()
    blocks = {edit_of(b, subject.channels) for b in found}
    for e in plan.edits:
        if isinstance(e, DropBlock) and e not in blocks:
            raise PlanError(f"the plan drops block {e.block!r}, which is no residual block of the model")
        if isinstance(e, KeepChannels) and not e.keep and e not in blocks:
            raise PlanError(f"the plan keeps no channel of group {e.group!r}, which others than Concats read")
    seen_at(subject.net, plan.edits)
    _mergeable(subject, plan)
    if plan.fused() and not plan.lossless:
        raise PlanError(
            f"the plan fuses what ends at {plan.fused()[0].node!r} and is not lossless; fuse in a plan of its own"
        )
    factorable(subject.graph, plan.factorized())
    for e in plan.narrowed():
        if known.get(e.group) != e.width:
            raise PlanError(f"the plan names group {e.group!r} with {e.width} channels, which the model lacks")


def _mergeable(subject: Subject, plan: PrunePlan) -> None:
    """Refuse merges that the model has no run of layers for, and two edits of one block."""
    inside: set[str] = set()
    for e in plan.merged():
        run = made_of(subject.net, e)
        if run is None:
            raise PlanError(f"the plan merges block {e.block!r}, which is no run of layers of the model")
        if not inside.isdisjoint(run.nodes) or any(d.block in run.nodes for d in plan.drops()):
            raise PlanError(f"the plan merges block {e.block!r}, of which another edit takes a part")
        inside.update(run.nodes)
    for f in plan.factorized():
        if f.node in inside:
            raise PlanError(f"the plan factorizes {f.node!r}, which is inside a block that it merges")
