"""Prices by widths are the prices of the very channels."""

import numpy as np
import pytest

from onnxprune.channels import find_channels
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import CostModel, WidthCost
from tests.channels.surgery import feeds_of, model_of

NET = """(float[N,3,8,8] x) => (float[] y)
    <float[8,3,3,3] a, float[8,1,3,3] b, float[6,8,1,1] c, float[6,6,3,3] d, float[4,6] e>
    { h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1], group=8>(h, b) j = Conv(i, c)
      k = Conv<pads=[1,1,1,1]>(j, d) s = Add(j, k) g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, e) }"""


@pytest.mark.parametrize("of", ["macs", "params", "channels"])
def test_prices_by_widths(of):
    model = model_of(NET)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    cost = CostModel(graph, channels, of)
    by_width = WidthCost(cost, channels.groups)
    for widths in ([g.width for g in channels.groups], [3, 2], [5, 6], [1, 1]):
        alive = channels.alive({g.name: range(w) for g, w in zip(channels.groups, widths, strict=True)})
        assert by_width.removed(np.array(widths)) == pytest.approx(cost.removed(alive), abs=1e-12)
        singles = [cost.per_unit(alive)[g.units[0]] for g in channels.groups]
        assert by_width.per_channel(np.array(widths)) == pytest.approx(singles)
