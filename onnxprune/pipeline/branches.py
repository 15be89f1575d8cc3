"""Branches that sizes decide are followed: from here on the network has the one that is taken, and no `If`.

Only where no other sizes are known to decide otherwise. A model that leaves sizes open is tried with others: if it runs
with them and takes the other branch, both are alive, and the `If` stays as it is, with what it captures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxprune.graph.branches import chosen, with_branches
from onnxprune.graph.model import Graph
from onnxprune.graph.rehearsal import Rehearsal, unless_refused
from onnxprune.graph.shapes import Observed
from onnxprune.runtime import sessions
from onnxprune.runtime.ports import Feeds, InputSpec

DEEPEST = 8
"""Branches inside branches that are followed."""


def followed(
    graph: Graph, observed: Observed, specs: Sequence[InputSpec], feeds: Feeds, first: Rehearsal
) -> tuple[Graph, Observed, list[str]]:
    """The network with the branches in it that sizes decide; what a run of it shows; and what to tell the user.

    Args:
        graph: the network.
        observed: what a run on `feeds` showed.
        specs: its inputs.
        feeds: the inputs of that run.
        first: how further runs are made.
    """
    notes: list[str] = []
    for _ in range(DEEPEST):
        taken = chosen(graph, observed)
        sized = {key: value for key, value in taken.items() if graph.constant(graph.nodes[key].input[0]) is None}
        alive, sure = _both_alive(graph, specs, feeds, sized, first) if sized else (set[str](), True)
        taken = {key: value for key, value in taken.items() if key not in alive}
        if not taken:
            break
        if not sure:
            sizes = ", ".join(f"{s.name}={','.join(map(str, feeds[s.name].shape))}" for s in specs)
            why = f"the branch is followed that inputs of these sizes take ({sizes}); what is written has no other"
            notes += [f"node {key!r} (If): {why}" for key in taken if key in sized]
        graph = Graph(with_branches(graph.model, taken))
        observed = first.observe(graph, feeds)
    return graph, observed, notes


def _both_alive(
    graph: Graph, specs: Sequence[InputSpec], feeds: Feeds, taken: dict[str, bool], first: Rehearsal
) -> tuple[set[str], bool]:
    """The keys of those that decide otherwise at some other sizes at which the model runs; and whether no others will:
    only the batch is open, and the model runs with any."""
    conditions = {key: graph.nodes[key].input[0] for key in taken}
    others = list(_other_sizes(specs, feeds))
    if not others:
        return set(), True
    names = sorted(set(conditions.values()))
    telling = sessions.with_outputs(graph.model, names)
    found, runs = set[str](), 0
    for other in others:
        with unless_refused():
            values = first.run(telling, other, names)
            found |= {key for key, name in conditions.items() if bool(np.ravel(values[name])[0]) != taken[key]}
            runs += 1
    return found, runs == len(others) and all(isinstance(d, int) for s in specs for d in s.shape[1:])


def _other_sizes(specs: Sequence[InputSpec], feeds: Feeds) -> Iterator[dict[str, np.ndarray]]:
    """The inputs with one open length changed: one more, twice and half of it."""
    open_axes = {(s.name, k): d for s in specs for k, d in enumerate(s.shape) if not isinstance(d, int)}
    for first, symbol in open_axes.items():
        alike = [at for at, d in open_axes.items() if at == first or (d == symbol and d is not None)]
        if alike[0] != first:
            continue
        length = feeds[first[0]].shape[first[1]]
        for other in sorted({length + 1, 2 * length, max(1, length // 2)} - {length}):
            changed = dict(feeds)
            for name, axis in alike:
                changed[name] = np.take(changed[name], np.arange(other) % length, axis)
            yield changed
