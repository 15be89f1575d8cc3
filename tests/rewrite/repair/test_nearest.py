"""Merging: exact for twins, whatever reads them, and nothing else moves."""

import numpy as np
import pytest

from onnxprune.channels import Analysed, find_channels
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.likeness import likeness
from onnxprune.runtime.sessions import open_session
from tests.channels.surgery import feeds_of
from tests.decide.test_selection import NETS, planted, twins
from tests.rewrite.steps import cut, cut_merged


def distances(graph, channels, feeds):
    seen = likeness(Analysed(graph, channels, {}), lambda n: [feeds])
    return {g.name: seen.distance(g) for g in channels.groups}


@pytest.mark.parametrize("name", [n for n in NETS if n != "a grouped reader"])
@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (1, 3, 4, 6)])
def test_twins_are_merged_without_a_trace(name, kept):
    model, feeds = planted(NETS[name], twins)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    far = distances(graph, channels, feeds)
    alive = channels.alive({channels.groups[0].name: kept})
    wanted, merged, plain = (
        open_session(m).run(feeds)[0]
        for m in (model, cut_merged(graph, channels, alive, far), cut(graph, channels, alive))
    )
    assert np.abs(merged - wanted).max() < 1e-5 * np.abs(wanted).max() < np.abs(plain - wanted).max()


def test_nothing_moves_when_all_stay():
    model, feeds = planted(NETS["bias"], lambda graph: None)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    whole = channels.alive({})
    far = distances(graph, channels, feeds)
    assert (
        cut_merged(graph, channels, whole, far).SerializeToString() == cut(graph, channels, whole).SerializeToString()
    )
