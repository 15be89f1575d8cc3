"""Competing plans: the one whose network is closest to the original, on samples that were not fitted, is taken."""

import numpy as np
import pytest

from onnxprune.channels import Analysed, find_channels
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.pipeline.compare import Compared, Contest
from onnxprune.plan import KeepChannels, PrunePlan
from onnxprune.rewrite.apply import Mending
from onnxprune.rewrite.repair.table import REPAIRS
from tests.channels.surgery import feeds_of, model_of

NET = (
    "(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[5,8,1,1] v> "
    "{ h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) c = Conv(r, v) y = GlobalAveragePool(c) }"
)


def subject():
    """A net whose channels 4..7 are copies of 0..3."""
    graph = Graph(model_of(NET))
    w = graph.value(("h", 1))
    graph.set_constant(("h", 1), np.concatenate([w[:4], w[:4]]))
    graph = Graph(graph.export())
    return graph, find_channels(graph, observe(graph, feeds_of(graph.model, N=1)))


def plan(channels, *kept):
    (group,) = channels.groups
    return PrunePlan("", (KeepChannels(group.name, group.width, kept),))


@pytest.mark.parametrize("repair", ["refit", "statistics", "none"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_plan_that_does_least_damage_wins(repair, turned):
    graph, channels = subject()
    good, bad = plan(channels, 0, 1, 2, 7), plan(channels, 0, 1, 4, 5)
    if repair == "none":
        good = plan(channels, 0, 1, 2, 3, 4, 5)  # without a repair, more channels are better
    feeds = [feeds_of(graph.model, seed=k, N=64) for k in (1, 2)]
    net, mending = Analysed(graph, channels, feeds[0]), Mending(REPAIRS[repair], feeds[:1])
    plans = [bad, good] if turned else [good, bad]
    assert Contest(Compared(net, mending, feeds[1:])).best(plans) is good


def test_equal_plans_are_not_told_apart():
    graph, channels = subject()
    first, second = plan(channels, 0, 1, 2, 3), plan(channels, 0, 1, 2, 3)
    feeds = [feeds_of(graph.model, N=32)]
    net, repair = Analysed(graph, channels, feeds[0]), REPAIRS["refit"]
    assert Contest(Compared(net, Mending(repair, feeds), feeds)).best([first, second]) is first


def test_each_plan_is_judged_once():
    _, channels = subject()
    first, second, seen = plan(channels, 0, 1, 2, 3), plan(channels, 0, 1, 4, 5), []
    contest = Contest(lambda p: seen.append(p) or np.full(2, float(len(seen))))
    assert contest.best([first, second]) is first and contest.best([second, first]) is first and len(seen) == 2


def test_plans_are_compared_after_less_work():
    """And so is what comes before layers are made of two, as all is repaired again then."""
    refit = REPAIRS["refit"]
    assert refit.judge.run is not refit.run and refit.judge.again is not refit.again
    assert refit.lead.run is refit.judge.run and refit.lead.again is refit.again
    each = refit, refit.judge, refit.glance
    assert len({r.run for r in each}) == len({r.again for r in each}) == 3
    assert refit.judge.lead.run is refit.judge.run and refit.glance.lead.run is refit.glance.run
    same = REPAIRS["statistics"]
    assert same.judge is same.lead is same.glance is same
