"""The adaptive allocation against all there is to choose from: widths, a residual block, a branch, a layer made of two."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from onnxprune import api
from onnxprune.decide.adaptive import BlockMove, path
from onnxprune.decide.allocation import allocate
from onnxprune.decide.blocks import all_blocks
from onnxprune.decide.limits import Ladder, Limits
from onnxprune.measure.cost import CostModel, PairCost, switches
from onnxprune.timing.node_times import NodeTimes, Stairs
from tests.channels import surgery

TEXT = """(float[1,3,6,6] x) => (float[] y) <float[4,3,3,3] w0, float[4,4,3,3] w1, float[4,4,3,3] w2, float[3,4,3,3] p,
    float[4,7,3,3] q, float[5,4,1,1] v>
    { h = Conv<pads=[1,1,1,1]>(x, w0) a = Conv<pads=[1,1,1,1]>(h, w1) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w2)
      s = Add(b, h) c = Conv<pads=[1,1,1,1]>(s, p) t = Relu(c) z = Concat<axis=1>(s, t)
      d = Conv<pads=[1,1,1,1]>(z, q) e = Relu(d) y = Conv(e, v) }"""
HALF = Stairs((0.25, 0.5, 0.75, 1.0), (0.5, 0.5, 1.0, 1.0))
TIMES = NodeTimes(
    {"h": 2.0, "a": 3.0, "b": 3.0, "c": 2.0, "d": 5.0, "y": 1.0}, {k: {0: HALF} for k in "abcd"}, {}, 16.0, 0.0
)


@dataclass(frozen=True)
class Pair:
    """A layer that may be made of two."""

    layer: str
    damages: np.ndarray


@pytest.fixture(scope="module")
def net():
    opened = api.open_model(surgery.model_of(TEXT))
    graph, channels = opened.graph, opened.channels
    assert {g.name: g.width for g in channels.groups} == {"w0": 4, "w1": 4, "p": 3, "q": 4}
    blocks = all_blocks(opened.net)
    assert {b.name for b in blocks} == {"s", "p"}
    return graph, channels, sorted(blocks, key=lambda b: b.name == "p")


def world(net, of, seed):
    """What may go, what it does and what it costs: (channels, cost, damages, blocks, pairs)."""
    graph, channels, blocks = net
    rng = np.random.default_rng(seed)
    damages = {g.name: np.append(np.cumsum(rng.uniform(0, 1, g.width) ** 3)[::-1], 0.0) for g in channels.groups}
    ways = np.sort(rng.uniform(500, 15000, (2, 3)), axis=0)
    cost = CostModel(graph, channels, of, blocks=[b.nodes for b in blocks], times=TIMES if of == "latency" else None,
                     pairs=[] if of == "latency" else [PairCost("d", ways)])  # fmt: skip
    inside = {"s": {"w1", "a", "r", "b", "s"}, "p": {"p", "c", "t"}}
    moves = [BlockMove(b.name, 2 * rng.uniform(0.1, 1), frozenset(inside[b.name]), b.group) for b in blocks]
    pairs = [] if of == "latency" else [Pair("d", np.append(-np.sort(-rng.uniform(0, 1, 2)), 0.0))]
    return channels, cost, damages, moves, pairs


def choices(channels, cost, damages, moves, pairs):
    """Every state there is: (share of the cost that goes, damage)."""
    names = [g.name for g in channels.groups]
    states = [switches(len(p.damages)) for p in pairs]
    for widths in itertools.product(*(range(1, g.width + 1) for g in channels.groups)):
        own = dict(zip(names, widths, strict=True))
        for standing in itertools.product((0, 1), repeat=len(moves)):
            gone = {name for m, stays in zip(moves, standing, strict=True) if not stays for name in m.inside}
            emptied = {m.group for m, stays in zip(moves, standing, strict=True) if not stays and m.group}
            keep = {n: () if n in emptied else range(w) for n, w in own.items()}
            hurt = sum(damages[n][w] for n, w in own.items() if n not in gone)
            hurt += sum(m.damage for m, stays in zip(moves, standing, strict=True) if not stays)
            for state in itertools.product(*(range(len(s)) for s in states)):
                now = np.array([*standing, *(s[i] for s, i in zip(states, state, strict=True))], float)
                more = sum(p.damages[i] for p, i in zip(pairs, state, strict=True) if p.layer not in gone)
                yield cost.removed(channels.alive(keep), now), hurt + more


def regret(net, of, seed, ratio):
    """How much more damage the allocation does than the best choice, as a share of the worst."""
    channels, cost, damages, moves, pairs = world(net, of, seed)
    scores = {g.name: np.arange(g.width, 0, -1.0) for g in channels.groups}
    found = allocate(channels, scores, cost, ratio, how="adaptive", limits=Limits(round_to=1), damages=damages,
                     blocks=moves, ranks=pairs)  # fmt: skip
    assert found.removed >= ratio
    states = list(choices(channels, cost, damages, moves, pairs))
    within = [hurt for removed, hurt in states if removed >= ratio]
    assert any(abs(removed - found.removed) < 1e-9 and abs(hurt - found.damage) < 1e-9 for removed, hurt in states)
    return (found.damage - min(within)) / (max(within) - min(within))


@pytest.mark.parametrize("of", ["macs", "params", "latency"])
def test_the_way_down_is_all_that_goes_with_more_damage(net, of):
    channels, cost, damages, moves, pairs = world(net, of, 3)
    ladders = [Ladder(g, np.arange(g.width, dtype=float), Limits()) for g in channels.groups]
    way = path(ladders, damages, cost, 0.9, moves, pairs)
    removed, damage = map(np.array, zip(*way, strict=True))
    assert (
        way[0] == pytest.approx((0.0, 0.0), abs=1e-6) and (np.diff(removed) > 0).all() and (np.diff(damage) >= 0).all()
    )
    assert removed[-2] < 0.9 and len(way) > 4
    for share in (0.3, 0.5):  # the search does no more damage than the way promises
        found = allocate(channels, {g.name: np.arange(g.width, dtype=float) for g in channels.groups}, cost, share,
                         how="adaptive", damages=damages, blocks=moves, ranks=pairs)  # fmt: skip
        assert found.damage <= damage[np.argmax(removed >= share)] + 1e-9
