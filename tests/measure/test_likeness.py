"""How alike channels are: twins are near, channels that have nothing to do with each other are not."""

import numpy as np
import pytest

from onnxprune.measure.likeness import likeness
from tests.decide.test_selection import NETS, analysed, planted, twins


def test_uncorrelated_channels_are_the_farther_apart():
    model, feeds = planted(NETS["bias"], twins)
    net = analysed(model, feeds)
    seen = likeness(net, lambda n: [feeds])
    measured, independent = (seen.distance(net.channels.groups[0], correlated=c) for c in (True, False))
    pairs = np.arange(4), np.arange(4, 8)
    assert (measured[pairs] < 1e-4).all() and (independent[pairs] > 1e-2).all()
    for d in (measured, independent):
        assert np.allclose(d, d.T) and np.allclose(np.diag(d), 0)
        assert d.sum() / (8 * 7) == pytest.approx(1)  # relative to the mean distance in the layer
