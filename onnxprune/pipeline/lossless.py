"""The lossless cut: found from the weights, then held against the original.

What `decide.redundancy` proves holds in exact arithmetic, and so do the layers that `rewrite.fuse` makes one. Here the
outcome is also run beside the original, on random inputs of several scales and on the samples there are; edits that
move an output by more than float rounding are given up, group by group and run by run, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from onnxprune.channels import Analysed, ChannelGroup
from onnxprune.decide.limits import Limits
from onnxprune.decide.redundancy import Lossless, find_lossless
from onnxprune.measure.rounding import EQUAL_TOLERANCE
from onnxprune.measure.surgery import Surgery, check_equal
from onnxprune.plan import Edit, FuseLayers
from onnxprune.rewrite.apply import edit_exactly
from onnxprune.rewrite.fuse import find_fusions, fuse
from onnxprune.runtime.ports import Feeds

SCALES = (1.0, 0.1, 10.0)
PROBES_A_SCALE = 4
"""Random inputs a scale."""
FAST = 4
"""Widths stay multiples of this: ORT's CPU kernels leave their blocked layout where channels % 4 != 0."""


def lossless(
    net: Analysed,
    samples: Sequence[Feeds] = (),
    *,
    allows: Callable[[ChannelGroup], bool] = lambda group: True,
    step: Callable[[ChannelGroup], int] = lambda group: 1,
) -> tuple[Lossless, Surgery, tuple[str, ...]]:
    """What can go without changing an output, checked.

    Args:
        net: the network.
        samples: further inputs to check with.
        allows: whether a group may be cut.
        step: kept widths are multiples of this.

    Returns:
        What goes; the worst error of the whole; the groups whose edits were given up because they changed an output.
    """
    probes = [*probing(net.feeds), *samples]
    found = find_lossless(net.graph, net.channels, allows=allows, step=step)
    if not found.keep:
        return found, Surgery(0.0, 0, against="original"), ()
    surgery = _checked(net, found, probes)
    dropped: list[str] = []
    while not surgery.exact and found.keep:
        alone = {n: _only(net, allows, step, {n}) for n in found.keep}
        errors = {n: _checked(net, f, probes).worst for n, f in alone.items()}
        bad = [n for n, e in errors.items() if e > EQUAL_TOLERANCE] or [max(errors, key=errors.__getitem__)]
        dropped += bad
        good = set(found.keep) - set(bad)
        found = _only(net, allows, step, good)
        surgery = _checked(net, found, probes)
    return found, surgery, tuple(dropped)


def fusions(
    net: Analysed,
    edits: Sequence[Edit] = (),
    samples: Sequence[Feeds] = (),
    *,
    allows: Callable[[Collection[str]], bool] = lambda names: True,
) -> tuple[tuple[FuseLayers, ...], tuple[str, ...]]:
    """Runs of linear layers that can be one without changing an output, checked.

    Args:
        net: the network.
        edits: what is done to it before.
        samples: further inputs to check with.
        allows: whether what goes by these names may be edited.

    Returns:
        The edits, in their order; the ends of runs that were given up because an output moved.
    """
    dropped: list[str] = []
    probes = [*probing(net.feeds), *samples]
    while True:
        found: list[FuseLayers] = []
        graph = edit_exactly(net, edits)
        while more := [
            e for e, _ in find_fusions(graph, net.feeds, lambda names: allows(names) and names.isdisjoint(dropped))
        ]:
            found += more
            fuse(graph, more, net.feeds)

        def error(count: int, found: Sequence[Edit] = found) -> float:
            made = edit_exactly(net, [*edits, *found[:count]])
            return check_equal(net.model, made.model, probes).worst

        if not found or error(len(found)) <= EQUAL_TOLERANCE:
            return tuple(found), tuple(dropped)
        fine, bad = 0, len(found)
        while bad - fine > 1:
            half = (fine + bad) // 2
            fine, bad = (half, bad) if error(half) <= EQUAL_TOLERANCE else (fine, half)
        dropped.append(found[bad - 1].node)


def probing(feeds: Feeds, seed: int = 0) -> Iterable[Feeds]:
    """Random inputs of several scales, like `feeds`; what is no float stays as it is."""
    rng = np.random.default_rng(seed)
    for scale in SCALES:
        for _ in range(PROBES_A_SCALE):
            yield {
                k: (v if v.dtype.kind != "f" else (scale * rng.standard_normal(v.shape)).astype(v.dtype))
                for k, v in feeds.items()
            }


def _only(
    net: Analysed,
    allows: Callable[[ChannelGroup], bool],
    step: Callable[[ChannelGroup], int],
    names: set[str],
) -> Lossless:
    return find_lossless(net.graph, net.channels, allows=lambda g: g.name in names and allows(g), step=step)


def _checked(net: Analysed, found: Lossless, probes: Sequence[Feeds]) -> Surgery:
    return check_equal(net.model, edit_exactly(net, found.edits(net.channels)).model, probes)


def plan_lossless(
    net: Analysed, samples: Sequence[Feeds], limits: Limits, methods: Collection[str] | None = None
) -> tuple[tuple[Edit, ...], dict[str, object]]:
    """(the edits, how they came about) for a plan.

    Args:
        net: the network.
        samples: further inputs to check with.
        limits: what may be edited.
        methods: the kinds of edits that are meant: layers are fused where "merge" is one of them; None: all.
    """

    def step(group: ChannelGroup) -> int:
        size = 1 if group.width < limits.step(group) else FAST
        return size if limits.round_to == "auto" else int(limits.round_to)

    found, _, dropped = lossless(net, samples, allows=limits.allows, step=step)
    edits: tuple[Edit, ...] = found.edits(net.channels)
    fused: tuple[FuseLayers, ...] = ()
    if methods is None or "merge" in methods:
        fused, left = fusions(net, edits, samples, allows=limits.allows_any)
        dropped += left
    decided: dict[str, object] = {
        "lossless": True,
        "unread": found.unread,
        "constant": found.constant,
        "twins": found.twins,
        "fused": len(fused),
        "spared": found.spared,
        "given_up": list(dropped),
    }
    return (*edits, *fused), decided


def in_words(decided: Mapping[str, object]) -> list[str]:
    """What could go and did not, from the settings of a plan."""
    words = []
    if decided.get("spared"):
        words.append(
            f"{decided['spared']} more channels could go without changing an output, but would leave widths that run "
            "slower; --round-to 1 takes them"
        )
    if given_up := decided.get("given_up"):
        names = ", ".join(map(str, given_up)) if isinstance(given_up, list) else str(given_up)
        words.append(f"left whole, because an output moved by more than {EQUAL_TOLERANCE:g}: {names}")
    return words
