"""The model as a module: its parameters, its batch, and the way back into the file."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from onnxprune.graph.model import Graph  # noqa: E402
from onnxprune.runtime import ports, sessions  # noqa: E402
from onnxprune.train.network import Network, as_feeds  # noqa: E402
from tests.synthetic import network as synthetic  # noqa: E402

MODEL = "benchmarks/models/resnet20_fmnist.onnx"


@pytest.fixture(scope="module")
def resnet():
    return onnx.load(MODEL)


def error(model, feeds, **how):
    want = sessions.open_session(model, threads=1).run(feeds)
    with torch.no_grad():
        got = Network(Graph(model), **how)(as_feeds(feeds))
    return max(np.abs(g.numpy() - w).max() for g, w in zip(got.values(), want, strict=True))


@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_runs_as_in_onnx_runtime(resnet, batch):
    x = np.random.default_rng(0).standard_normal((batch, 1, 28, 28), np.float32)
    assert error(resnet, {"x": x}) < 1e-4


def test_sizes_computed_at_run_time():
    model = synthetic(60)
    assert error(model, ports.default_feed(ports.input_specs(model))) < 1e-4


def test_wanted_tensors_and_only_what_they_need(resnet):
    network = Network(Graph(resnet))
    first = next(n.output[0] for n in resnet.graph.node if n.op_type == "Conv")
    with torch.no_grad():
        got = network({"x": torch.zeros(2, 1, 28, 28)}, [first, "y"])
        alone = network({"x": torch.zeros(2, 1, 28, 28)}, [first])
    assert set(got) == {first, "y"} and torch.equal(got[first], alone[first])
    assert len(network._plan((first,))) == 1 < len(network._plan((first, "y")))


def test_every_parameter_learns(resnet):
    network = Network(Graph(resnet))
    network({"x": torch.randn(2, 1, 28, 28)})["y"].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_vectors_that_an_exporter_merged_are_learned_apart(resnet):
    network = Network(Graph(resnet))
    biases = [name for use, name in network.names.items() if name.endswith("1/bias")]
    assert len(biases) == len(set(biases)) == sum(n.op_type == "BatchNormalization" for n in resnet.graph.node)


def test_a_weight_that_layers_share_stays_one():
    w = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    b = numpy_helper.from_array(np.ones(3, np.float32), "b")
    nodes = [onnx.helper.make_node("Conv", [x, "w", "b"], [y]) for x, y in (("x", "h"), ("h", "y"))]
    port = onnx.helper.make_tensor_value_info("x", 1, ["n", 3, 4, 4])
    graph = onnx.helper.make_graph(nodes, "g", [port], [onnx.helper.make_tensor_value_info("y", 1, None)], [w, b])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    network = Network(Graph(model))
    assert len(list(network.parameters())) == 2
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(2)
    back = network.to_onnx()
    assert len(back.graph.initializer) == 2 and np.all(numpy_helper.to_array(back.graph.initializer[0]) == 2)


def test_nothing_learned_nothing_changed(resnet):
    assert Network(Graph(resnet)).to_onnx().SerializeToString() == resnet.SerializeToString()


def bare(model, gone, renamed):
    """The model's bytes without the values of its weights, without `gone`, and with some weights called otherwise."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = [n for n in copy.graph.node if n.output[0] not in gone]
    weights = [t for t in copy.graph.initializer if t.name not in gone]
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    for tensor in weights:
        tensor.name = renamed.get(tensor.name, tensor.name)
        tensor.ClearField("raw_data")
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(sorted(weights, key=lambda t: t.name))
    return copy.SerializeToString(deterministic=True)


def test_weights_go_back_and_nothing_else_changes(resnet):
    network = Network(Graph(resnet))
    with torch.no_grad():
        for k, p in enumerate(network.parameters()):
            p.mul_(1 + 0.001 * (k % 7))
    back = network.to_onnx()
    x = np.random.default_rng(0).standard_normal((2, 1, 28, 28), np.float32)
    with torch.no_grad():
        want = network(as_feeds({"x": x}))["y"].numpy()
    np.testing.assert_allclose(sessions.open_session(back, threads=1).run({"x": x})[0], want, rtol=1e-4, atol=1e-4)
    # Two biases were one constant, one of them behind an Identity: now each has a value of its own.
    merged = {n.output[0]: n.input[0] for n in resnet.graph.node if n.op_type == "Identity"}
    assert len(merged) == 2
    assert bare(resnet, merged, {}) == bare(back, merged, {f"{name}_1": name for name in merged.values()})


def test_batch_norm_learns_its_statistics_only_when_asked(resnet):
    x = {"x": torch.randn(8, 1, 28, 28) + 1}
    for how, changed in (("frozen", False), ("batch", True)):
        network = Network(Graph(resnet), batch_norm=how).train()
        network(x)
        assert (network.to_onnx().SerializeToString() != resnet.SerializeToString()) == changed


def test_frozen_batch_norm_is_a_part_of_the_convolution_in_front(resnet):
    """As many passes over the maps less; values and gradients are those of a node of its own.

    In float64: where a ReLU's input is 0 but for rounding, the two may take different sides of it, and do for 1 draw of
    100 in float32."""
    x, found, steps = torch.randn(4, 1, 28, 28, dtype=torch.float64) + 1, [], []
    for how in ("frozen", "batch"):
        network = Network(Graph(resnet), batch_norm=how).eval().double()
        y = network({"x": x})["y"]
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in network.parameters())])
        steps.append(len(network._plan(("y",))))
    assert steps[1] - steps[0] == sum(n.op_type == "BatchNormalization" for n in resnet.graph.node)
    assert all((a - b).norm() < 1e-9 * b.norm() for a, b in zip(*found, strict=True))


def test_a_batch_norm_that_is_not_read_alone_stays_a_node(resnet):
    network = Network(Graph(resnet))
    first = next(n.output[0] for n in resnet.graph.node if n.op_type == "Conv")
    assert len(network._plan((first, "y"))) == len(network._plan(("y",))) + 1


def test_bfloat16_and_channels_last_are_close(resnet):
    x = np.random.default_rng(0).standard_normal((4, 1, 28, 28), np.float32)
    network = Network(Graph(resnet)).eval()
    with torch.no_grad():
        full = network(as_feeds({"x": x}))["y"]
        with torch.autocast("cpu", torch.bfloat16):
            half = network(as_feeds({"x": x}))["y"].float()
    assert (half - full).abs().max() < 0.1 * full.abs().max()
