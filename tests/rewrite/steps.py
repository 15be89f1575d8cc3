"""The steps of a rewrite, model in and model out: what tests hold against each other are files."""

from __future__ import annotations

from onnxprune.channels import Analysed
from onnxprune.graph.model import Graph
from onnxprune.plan import KeepChannels
from onnxprune.rewrite import cut as cutting
from onnxprune.rewrite import drop as dropping
from onnxprune.rewrite import factorize as factorizing
from onnxprune.rewrite.apply import edit_exactly
from onnxprune.rewrite.repair import nearest, statistics, table, without_samples
from onnxprune.rewrite.repair import refit as refitting


def task(graph, pruned, channels, alive, batches=(), feeds=(), **rest):
    return table.RepairTask(Analysed(graph, channels, dict(feeds)), Graph(pruned), alive, batches, **rest)


def cut(graph, channels, alive):
    return cutting.cut_channels(Analysed(graph, channels, {}), alive).model


def cut_merged(graph, channels, alive, far):
    return nearest.cut_merged(Analysed(graph, channels, {}), alive, far).model


def refit(graph, pruned, channels, alive, batches, *, seed=0, threads=None, **rest):
    given = task(graph, pruned, channels, alive, batches, seed=seed, threads=threads)
    return refitting.refit(given, **rest).settle().model


def repair_statistics(*given, **rest):
    return statistics.repair_statistics(task(*given, **rest)).settle().model


def repair_merge(*given, **rest):
    return without_samples.repair_merge(task(*given, **rest)).settle().model


def repair_without_samples(graph, pruned, channels, alive, feeds, *, repeat):
    given = task(graph, pruned, channels, alive, feeds=feeds, any_batch=repeat)
    return without_samples.repair_without_samples(given).settle().model


def factorize(model, edits, feeds, batches=()):
    return factorizing.factorize(Graph(model), edits, feeds, batches).settle().model


def drop_blocks(model, drops):
    return dropping.drop_blocks(Graph(model), drops).model


def bypass(model, drops):
    return dropping.bypass(Graph(model), drops).model


def apply_lossless(graph, channels, found):
    return edit_exactly(Analysed(graph, channels, {}), found.edits(channels)).model


def carry_out(graph, channels, keep, merges):
    widths = {g.name: g.width for g in channels.groups}
    edits = [*(KeepChannels(name, widths[name], tuple(kept)) for name, kept in keep.items()), *merges]
    return edit_exactly(Analysed(graph, channels, {}), edits).model
