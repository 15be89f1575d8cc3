"""C-SGD: after training, merging a cluster and cutting its other members changes no output."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnxprune.channels import Analysed, find_channels  # noqa: E402
from onnxprune.graph.model import Graph  # noqa: E402
from onnxprune.graph.shapes import observe  # noqa: E402
from onnxprune.runtime.sessions import open_session  # noqa: E402
from onnxprune.train.csgd import csgd  # noqa: E402
from onnxprune.train.loop import Training  # noqa: E402
from tests.rewrite.steps import cut  # noqa: E402
from tests.train.test_distill import batches, small  # noqa: E402

HOW = Training(steps=150, lr=0.03, warmup=5, optimizer="sgd", check_every=10**9, clip=None, bf16=False)
HELD = batches(1, seed=5)[0]


def trained(how, strength):
    model = small()
    feeds = {"x": np.zeros((2, 3, 8, 8), np.float32)}
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds))
    x = torch.from_numpy(batches(1)[0]["x"])
    goal = torch.from_numpy(open_session(model, threads=1).run({"x": x.numpy()})[0])

    def loss(network, step):
        got = next(iter(network({"x": x}).values()))
        return (got - goal).square().mean() / goal.square().mean()

    widths = {g.name: g.width // 2 for g in channels.groups}
    return channels, csgd(Analysed(graph, channels, feeds), widths, loss, how, strength=strength)


def moved(channels, merged):
    """Largest change of an output from the trained model to the merged and cut one, and the largest output."""
    pruned = cut(Graph(merged.model), channels, channels.alive(merged.keep))
    want, got = (open_session(m, threads=1).run(HELD)[0] for m in (merged.trained, pruned))
    return np.abs(want - got).max(), np.abs(want).max()


def test_the_cut_changes_no_output():
    channels, merged = trained(HOW, 3.0)
    assert {g.name: len(merged.keep[g.name]) for g in channels.groups} == {g.name: 4 for g in channels.groups}
    assert merged.spread < 1e-5
    change, size = moved(channels, merged)
    assert change < 1e-4 and size > 0.01


def test_members_stay_apart_where_nothing_draws_them():
    channels, merged = trained(replace(HOW, steps=10), 0.0)
    assert merged.spread > 1e-2 and moved(channels, merged)[0] > 1e-2
