"""A plan that was made for one model, for its twin: the same structure, other weights, perhaps other names.

What travels: how wide every group becomes, which blocks go or become one layer, the rank of every layer, the size at
which the input is seen. Which channels stay is chosen anew, by what they are worth in the twin; where the weights that
make a group's channels are the same, they stay the same. All else (repair, samples) is the twin's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.channels import ChannelGroup
from onnxprune.channels.structure import Structure, structure_of
from onnxprune.decide.criteria import BY_DEFAULT, CRITERIA
from onnxprune.decide.limits import Limits
from onnxprune.decide.runs import ending, through
from onnxprune.decide.study import Study, look, study
from onnxprune.errors import PlanError
from onnxprune.parallel import bounded, one_blas_thread
from onnxprune.pipeline.opened import Subject
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import DropBlock, Edit, Factorize, KeepChannels, MergeBlock, PrunePlan, Resample
from onnxprune.rewrite.resample import seen_at

MOST = 3
"""Layers that a refusal names."""


def with_structure(plan: PrunePlan, subject: Subject) -> PrunePlan:
    """The plan, which knows the structure of the model that it was made for, so that it can travel."""
    named = {key: key for e in plan.edits for key in _nodes(e)}
    read = {e.source: through(subject.graph, e.source) for e in plan.merged()}
    return replace(plan, structure=_structure(subject).to_dict({**read, **named}))


def _structure(subject: Subject) -> Structure:
    return subject.graph.once("structure", subject.channels, lambda: structure_of(subject.net))


@one_blas_thread
@bounded
def transfer(plan: PrunePlan, subject: Subject, settings: Settings | None = None) -> PrunePlan:
    """The plan for another model of the same structure.

        twin = onnxprune.open_model("retrained.onnx", calibration=batches)
        result = onnxprune.apply_plan(twin, onnxprune.transfer(plan, twin))

    Args:
        plan: made for a model.
        subject: its twin.
        settings: threads, and the criterion by which channels are chosen; None of it: that of the plan.

    Raises:
        PlanError: it does not fit; the message says why.
    """
    if plan.model_digest == subject.digest:
        return plan
    if plan.lossless:
        raise PlanError(f"the plan is lossless, and what may go hangs on the weights; {REMEDY}")
    settings = settings or Settings(seed=plan.seed)
    twin = _Twin.of(plan, subject)
    edits = [twin.edit(e) for e in plan.edits if not isinstance(e, KeepChannels)]
    kept = twin.widths([e for e in plan.edits if isinstance(e, KeepChannels)])
    chosen: list[Edit] = _chosen(plan, subject, settings, kept) if kept else []
    origin = replace(plan.origin, made_for=plan.model_digest)
    found = replace(plan, model_digest=subject.digest, edits=(*chosen, *edits), origin=origin, structure={})
    return with_structure(found, subject)


@dataclass(frozen=True)
class _Width:
    """How wide a group of the twin becomes; `same`: the channels that stay, where its weights are the plan's."""

    group: ChannelGroup
    width: int
    same: tuple[int, ...] | None


@dataclass(frozen=True)
class _Twin:
    """What the plan's names are called in the twin.

    Attributes:
        subject: the twin.
        structure: its structure.
        known: the structure that the plan remembers; empty where names are all there is.
        places, groups: mark -> name in the twin.
    """

    subject: Subject
    structure: Structure
    known: Mapping[str, Any]
    places: Mapping[str, str]
    groups: Mapping[str, str]

    @classmethod
    def of(cls, plan: PrunePlan, subject: Subject) -> _Twin:
        own, known = _structure(subject), plan.structure
        if known:
            _same_layers(known.get("layers", ()), own.layers)
        return cls(
            subject,
            own,
            known,
            {mark: key for key, mark in own.places.items()},
            {mark: name for name, mark in own.groups.items()},
        )

    def place(self, key: str) -> str:
        """A node of the plan's model in the twin."""
        mark = self.known.get("places", {}).get(key)
        found = self.places.get(mark) if mark is not None else key if key in self.subject.graph.nodes else None
        if found is None:
            raise PlanError(f"the model has nothing that stands where {key!r} stood in the plan's model; {REMEDY}")
        return found

    def group(self, name: str) -> str:
        """A group of the plan's model in the twin."""
        mark = self.known.get("groups", {}).get(name)
        names = {g.name for g in self.subject.channels.groups}
        found = self.groups.get(mark) if mark is not None else name if name in names else None
        if found is None:
            raise PlanError(f"the model has no group of channels like {name!r} of the plan's model; {REMEDY}")
        return found

    def widths(self, edits: Sequence[KeepChannels]) -> list[_Width]:
        """What becomes of the twin's groups."""
        groups, found = {g.name: g for g in self.subject.channels.groups}, []
        for e in edits:
            group = groups[self.group(e.group)]
            if group.width != e.width:
                raise PlanError(f"group {group.name!r} has {group.width} channels, the plan's had {e.width}; {REMEDY}")
            before = self.known.get("weights", {}).get(e.group)
            same = before is not None and before == self.structure.weights[group.name]
            found.append(_Width(group, len(e.keep), e.keep if same or not e.keep else None))
        return found

    def edit(self, e: Edit) -> Edit:
        """An edit of the twin, of blocks or ranks."""
        if isinstance(e, Factorize):
            return replace(e, node=self.place(e.node))
        if isinstance(e, DropBlock):
            return self._block(e)
        if isinstance(e, MergeBlock):
            return self._run(e)
        if isinstance(e, Resample):
            return self._seen(e)
        raise PlanError(f"the plan has an edit of {type(e).__name__}, which hangs on the weights; {REMEDY}")

    def _seen(self, e: Resample) -> Resample:
        name = e.input if e.input in self.subject.feeds else next(iter(self.subject.feeds))
        found = replace(e, input=name)
        seen_at(self.subject.net, [found])  # or it is refused
        return found

    def _run(self, e: MergeBlock) -> MergeBlock:
        graph, name = self.subject.graph, self.place(e.block)
        inner = e.source in self.known.get("places", {})  # or an input of the model, or all that is known is names
        read = self.place(e.source) if inner else through(graph, e.source)
        for run in ending(self.subject.net, name):
            if through(graph, run.edit.source) == read and run.edit.branch == e.branch:
                return replace(run.edit, kernel=e.kernel)
        raise PlanError(f"{name!r} ends no run of layers that can become one; {REMEDY}")

    def _block(self, e: DropBlock) -> DropBlock:
        from onnxprune.decide.blocks import all_blocks
        from onnxprune.pipeline.block_trials import edit_of

        name = self.place(e.block)
        drops = [edit_of(b, self.subject.channels) for b in all_blocks(self.subject.net) if b.name == name]
        fitting = [d for d in drops if isinstance(d, DropBlock) and d.length == e.length]
        found = next((d for d in fitting if d.branch == e.branch), fitting[0]) if fitting else None
        if found is None:
            raise PlanError(f"{name!r} ends no residual block of {e.length} channels; {REMEDY}")
        return found


REMEDY = "write a plan for this model with `onnxprune plan`"


def _same_layers(known: Sequence[str], own: Sequence[str]) -> None:
    """Refuse a model with other layers."""
    more, less = Counter(own) - Counter(known), Counter(known) - Counter(own)
    if more or less:

        def said(some: Counter[str]) -> str:
            names = [f"{n} of {label}" if n > 1 else label for label, n in sorted(some.items())]
            return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")

        parts = [f"it lacks {said(less)}" if less else "", f"it has {said(more)}" if more else ""]
        raise PlanError(f"the model is no twin of the plan's: {', '.join(filter(None, parts))}; {REMEDY}")


def _nodes(e: Edit) -> list[str]:
    """The nodes that an edit names."""
    if isinstance(e, Factorize):
        return [e.node]
    return [e.block] if isinstance(e, DropBlock | MergeBlock) else []


def _chosen(plan: PrunePlan, subject: Subject, settings: Settings, widths: Sequence[_Width]) -> list[Edit]:
    """The channels that stay."""
    scored: Study | None = None
    found: list[Edit] = []
    for w in widths:
        keep = w.same
        if keep is None:
            scored = scored or _scores(plan, subject, settings)
            order = np.argsort(-scored.scores[w.group.name], kind="stable")[: w.width]
            keep = scored.kept(w.group.name, tuple(sorted(int(k) for k in order)))
        found.append(KeepChannels(w.group.name, w.group.width, keep))
    return found


def _scores(plan: PrunePlan, subject: Subject, settings: Settings) -> Study:
    """What the twin's channels are worth, by the criterion of the plan where that can be had."""
    sampled = subject.calibration is not None
    name = settings.criterion or str(plan.origin.settings.get("criterion", BY_DEFAULT[sampled]))
    usable = name in CRITERIA and "gradients" not in CRITERIA[name].needs
    if not usable or (CRITERIA[name].needs_samples and not sampled):
        name = BY_DEFAULT[sampled]
    parts = subject.partition(settings.seed)
    seen = look(
        subject.net,
        parts,
        criterion=name,
        adaptive=False,
        limits=Limits(1),
        threads=settings.threads,
        seed=settings.seed,
    )
    return study(seen, Limits(1))
