"""A model's first runs take no more than they may, and end no process but their own."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from onnxprune.errors import ModelError
from onnxprune.graph import rehearsal
from onnxprune.graph.model import Graph
from onnxprune.graph.rehearsal import Rehearsal
from onnxprune.graph.shapes import observe
from onnxprune.graph.stated import stated_macs
from onnxprune.measure.cost import count_macs
from onnxprune.pipeline.opened import open_model
from onnxprune.runtime import child
from onnxprune.runtime.child import Caps, Stopped
from onnxprune.timing.latency import bench
from tests.synthetic import Net, residual

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a child may hold is known on Linux")
SECONDS = 2.0


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(rehearsal, "CAPS", Caps(SECONDS, 500 << 20))


def hostile(text: str, **constants: object) -> onnx.ModelProto:
    """A network whose output is y, beside nodes that do harm: they read r, (1, 8, 4, 4), and constants by name."""
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {{
            a = Conv <kernel_shape = [1, 1]> (x, W1)
            r = Relu (a)
            {text}
            y = Conv <kernel_shape = [1, 1]> (r, W2)
        }}""")
    held = {"W1": np.ones((8, 3, 1, 1), np.float32), "W2": np.ones((2, 8, 1, 1), np.float32), **constants}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in held.items())
    made = {o for n in model.graph.node for o in n.output}
    read = {i for n in model.graph.node for i in n.input}
    ends = sorted(made - read - {"y"})
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in ends)
    return model


def doubled(op: str, *others: str, times: int = 40) -> str:
    """A chain, each of whose links is twice as large as the one before."""
    lines = []
    for k in range(times):
        before = f"d{k - 1}" if k else "r"
        lines.append(f"d{k} = {op} ({', '.join([before, *others] if others else [before, before])})")
    return "\n".join(lines)


BODY = "(int64 i, bool go, float[1, 8, 4, 4] v) => (bool on, float[1, 8, 4, 4] w)"
LOOP = f"q = Loop ({{}}, yes, r) <body = rounds {BODY} {{{{ on = Identity (go) w = {{}} }}}}>"
YES = {"yes": np.array(True)}
LONG = {"n": np.array(2**62)}
LOW, MINUS = np.full(4, np.iinfo(np.int64).min), np.full(4, -1)


def nested_loops(depth: int) -> str:
    text = "o = Sin (v)"
    for k in range(depth):
        ports = f"(int64 i{k}, bool g{k}, float[1, 8, 4, 4] v{k}) => (bool h{k}, float[1, 8, 4, 4] o{k})"
        text = text.replace("(v)", f"(v{k})").replace("o =", f"o{k} =", 1) if not k else text
        text = f"o = Loop (n, yes, v) <body = b{k} {ports} {{ h{k} = Identity (g{k}) {text} }}>"
        text = text.replace("o =", f"o{k + 1} =", 1).replace("yes, v)", f"yes, v{k + 1})") if k < depth - 1 else text
    return text.replace("yes, v)", "yes, r)").replace("o =", "q =", 1)


TIME = [
    ("no end", LOOP.format('""', "Sin (v)"), YES),
    ("2^62 rounds", LOOP.format("n", "Sin (v)"), {**YES, **LONG}),
    ("rounds of nothing", LOOP.format("n", "Identity (v)"), {**YES, **LONG}),
    ("on constants", LOOP.format('""', "Sin (v)").replace("yes, r", "yes, c"), {**YES, "c": np.ones((1, 8, 4, 4), "f")}),
    ("loops in loops", nested_loops(6), {**YES, "n": np.array(1000)}),
    ("an inner loop", LOOP.format("one", "Abs (u) u = Loop (\"\", yes, v) <body = inner (int64 j, bool g, float[1, 8, 4, 4] s)"
     " => (bool h, float[1, 8, 4, 4] t) { h = Identity (g) t = Sin (s) }>").replace("w = Abs (u) u =", "u =").replace("t = Sin (s) }>", "t = Sin (s) }> w = Abs (u)"),
     {**YES, "one": np.array(1)}),
    ("behind an If", "q = If (yes) <then_branch = a () => (float[1, 8, 4, 4] z) { z = Loop (\"\", yes, r) <body = rounds "
     + BODY + " { on = Identity (go) w = Sin (v) }> }, else_branch = b () => (float[1, 8, 4, 4] e) { e = Sin (r) }>", YES),
    ("a scan of many steps", "u = Reshape (r, flat) t = Tile (u, k) q = Scan <num_scan_inputs = 1, body = steps (float[128] s, float p)"
     " => (float[128] z) { z = Sin (s) }> (u, t)", {"flat": np.array([-1]), "k": np.array([500_000])}),
]  # fmt: skip
MEMORY = [
    ("Concat", doubled("Concat <axis = 0>"), {}),
    ("Tile", doubled("Tile", "k"), {"k": np.array([2, 1, 1, 1])}),
    ("Tile in a branch", "q = If (yes) <then_branch = a () => (float[N, 8, 4, 4] d39) { " + doubled("Tile", "k") + " }, "
     "else_branch = b () => (float[1, 8, 4, 4] e) { e = Sin (r) }>", {**YES, "k": np.array([2, 1, 1, 1])}),
    ("Concat in a loop", "q = Loop (n, yes, r) <body = rounds (int64 i, bool go, float[N, 8, 4, 4] v) => (bool on, "
     "float[N, 8, 4, 4] w) { on = Identity (go) w = Concat <axis = 0> (v, v) }>", {**YES, **LONG}),
    ("what a loop gathers", "q, s = Loop (n, yes, r) <body = rounds (int64 i, bool go, float[1, 8, 4, 4] v) => (bool on, "
     "float[1, 8, 4, 4] w, float[1, 8, 4, 4] z) { on = Identity (go) w = Identity (v) z = Identity (v) }>", {**YES, **LONG}),
    ("a sequence in a loop", "e = SequenceEmpty () s = Loop (n, yes, e) <body = rounds (int64 i, bool go, seq(float) v) => "
     "(bool on, seq(float) w) { on = Identity (go) w = SequenceInsert (v, r) }> q = SequenceLength (s)", {**YES, **LONG}),
    ("Expand by sizes", "s = Shape (r) t = Mul (s, k) p = GlobalAveragePool (r) q = Expand (p, t)", {"k": np.array([1, 1, 2**14, 2**14])}),
    ("ConstantOfShape by sizes", "s = Shape (r) t = Mul (s, k) q = ConstantOfShape (t)", {"k": np.array([1, 1, 2**14, 2**14])}),
    ("Range by values", "m = ReduceMax <keepdims = 0> (r) i = Cast <to = 7> (m) j = Add (i, k) q = Range (i, j, one)",
     {"k": np.array(2**40), "one": np.array(1)}),
    ("Resize", 'q = Resize (r, "", k)', {"k": np.array([1, 1, 1e5, 1e5], "f")}),
    ("Pad", "q = Pad (r, k)", {"k": np.array([0, 0, 0, 0, 0, 0, 10**5, 10**5])}),
    ("OneHot", "i = ArgMax <axis = 1> (r) q = OneHot (i, k, v)", {"k": np.array(2**30), "v": np.array([0, 1], "f")}),
    ("RandomNormal", "q = RandomNormal <shape = [100000, 100000]> ()", {}),
    ("Einsum", 'u = Reshape (r, flat) q = Einsum <equation = "a,b,c,d->abcd"> (u, u, u, u)', {"flat": np.array([-1])}),
    ("broadcasting", "u = Reshape (r, flat) t = Tile (u, k) v = Reshape (t, up) w = Reshape (t, across) q = Add (v, w)",
     {"flat": np.array([-1]), "k": np.array([4000]), "up": np.array([-1, 1]), "across": np.array([1, -1])}),
    ("an outer product", "u = Reshape (r, flat) t = Tile (u, k) v = Reshape (t, up) w = Reshape (t, across) q = MatMul (v, w)",
     {"flat": np.array([-1]), "k": np.array([4000]), "up": np.array([-1, 1]), "across": np.array([1, -1])}),
    ("padding of a Conv", "q = Conv <pads = [40000, 40000, 40000, 40000]> (r, k)", {"k": np.ones((8, 8, 3, 3), "f")}),
    ("strides of a ConvTranspose", "q = ConvTranspose <strides = [40000, 40000]> (r, k)", {"k": np.ones((8, 8, 3, 3), "f")}),
    ("MaxUnpool", "m, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) "
     "q = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (m, i, k)", {"k": np.array([1, 8, 10**5, 10**5])}),
    ("a row of constants", " ".join(f"z{k} = ConstantOfShape (s) y{k} = Add (z{k}, p)" for k in range(40))
     + " p = GlobalAveragePool (r)"
     + f" q = Sum ({', '.join(f'y{k}' for k in range(40))})", {"s": np.array([1, 8, 1000, 1000])}),
]  # fmt: skip
CRASH = [
    ("division of the least number by -1", "q = Div (a1, b1)", {"a1": LOW, "b1": MINUS}),
    ("the same at run time", "s = Shape (r) z = Sub (s, s) t = Add (z, a1) q = Div (t, b1)", {"a1": LOW, "b1": MINUS}),
    ("the same by values", "m = ReduceMax <keepdims = 0> (r) i = Cast <to = 7> (m) z = Sub (i, i) t = Add (z, a1) q = Div (t, b1)",
     {"a1": LOW, "b1": MINUS}),
    ("in a loop", "q = Loop (n, yes, a1) <body = rounds (int64 i, bool go, int64[4] v) => (bool on, int64[4] w) "
     "{ on = Identity (go) w = Div (v, b1) }>", {**YES, "n": np.array(2), "a1": LOW, "b1": MINUS}),
    ("activations for a kernel", "u = Reshape (r, s) c = Conv <pads = [1, 1]> (v, u, b) f = Flatten (c) q = Gemm (f, w)",
     {"s": np.array([1, 8, 16]), "v": np.ones((8, 8, 3), "f"), "b": np.ones(8, "f"), "w": np.ones((128, 5), "f")}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "held"), [row[1:] for row in TIME], ids=[row[0] for row in TIME])
def test_what_has_no_end_is_ended(hasty, text, held):
    model, begin = hostile(text, **held), time.process_time()
    with pytest.raises(Stopped, match=r"^model: its first run took more than 2 s; .*--trusted"):
        open_model(model)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(("text", "held"), [row[1:] for row in MEMORY], ids=[row[0] for row in MEMORY])
def test_what_grows_is_ended_before_it_has_grown(hasty, text, held):
    model, before = hostile(text, **held), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=r"more than 0\.5 GiB of memory|would make a tensor|more than 2 s"):
        open_model(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB, here


def dies(model: onnx.ModelProto) -> bool:
    """Whether this ONNX Runtime dies of it; another may refuse it."""
    script = """import sys, numpy, onnxruntime
onnxruntime.InferenceSession(sys.stdin.buffer.read()).run(None, {"x": numpy.ones((1, 3, 4, 4), "f")})"""
    env = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([sys.executable, "-c", script], input=model.SerializeToString(), env=env, capture_output=True)
    return done.returncode < 0


@pytest.mark.parametrize(("text", "held"), [row[1:] for row in CRASH], ids=[row[0] for row in CRASH])
def test_what_crashes_is_told(text, held):
    model = hostile(text, **held)
    with pytest.raises(ModelError, match=r"^model: ") as caught:
        open_model(model)
    if not dies(model):  # it is refused, by another of its runs perhaps with a crash
        return
    assert isinstance(caught.value, Stopped)
    assert re.search(r": its first run crashed \(SIG(FPE|ABRT|SEGV)\); ", str(caught.value))
    with pytest.raises(Stopped, match=r"^model 1: its first run crashed"):
        bench([model], rounds=10)


def slow(layers: int, size: int) -> onnx.ModelProto:
    """Convolutions and nothing else, each with a weight of its own."""
    net, x = Net(), "x"
    for k in range(layers):
        x = net.conv(x, 64 if k else 3, 64, 3)
    return net.model(x, size)


def test_honest_work_has_its_time(monkeypatch):
    """As long as the file says it multiplies, and no longer."""
    model, feeds = slow(6, 256), {"x": np.zeros((1, 3, 256, 256), np.float32)}
    monkeypatch.setattr(rehearsal, "CAPS", Caps(0.01))
    monkeypatch.setattr(rehearsal, "BYTES_PER_SECOND", 1e12)
    monkeypatch.setattr(rehearsal, "NODES_PER_SECOND", 1e12)
    run = Rehearsal("m.onnx")
    monkeypatch.setattr(rehearsal, "LEAST_SECONDS", 0.0)
    run.run(model, feeds)
    monkeypatch.setattr(rehearsal, "MACS_PER_SECOND", 1e15)
    with pytest.raises(Stopped, match=r"^m\.onnx: its first run took more than 0\.01"):
        run.run(model, feeds)


def test_many_nodes_have_their_time(monkeypatch):
    """Sizes that no file tells ask for no time of their own: 17,000 nodes of such a file took 11 s on a busy machine."""
    seen = []
    monkeypatch.setattr(rehearsal, "Child", lambda job, args, caps, **_: seen.append(caps.seconds) or Refusing())
    with pytest.raises(ModelError, match="not at this size"):
        Rehearsal("m.onnx").run(onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto()] * 17_000)), {})
    assert seen[0] > 20


def test_honest_activations_have_their_room(monkeypatch):
    model, feeds = slow(3, 1024), {"x": np.zeros((1, 3, 1024, 1024), np.float32)}
    monkeypatch.setattr(rehearsal, "CAPS", Caps(60, 100 << 20))
    Rehearsal("m.onnx").run(model, feeds)
    monkeypatch.setattr(rehearsal, "MACS_PER_BYTE", 1e15)
    with pytest.raises(Stopped, match=r"0\.1 GiB of memory"):
        Rehearsal("m.onnx").run(model, feeds)


def test_work_is_what_the_file_says():
    net = Net()
    x = residual(net, net.op("MaxPool", net.conv("x", 3, 8, 3), kernel_shape=[2, 2], strides=[2, 2]))
    model = net.model(x, 16)
    feeds = {"x": np.zeros((1, 3, 16, 16), np.float32)}
    assert stated_macs(model, feeds) == count_macs(Graph(model), observe(Graph(model), feeds).shapes) > 0
    twice = net.model(net.op("Conv", x, "w2", kernel_shape=[3, 3], pads=[1] * 4), 16)  # a weight that is read already
    assert stated_macs(twice, feeds) == stated_macs(model, feeds)


def test_what_is_blown_up_is_no_work():
    square = "e = Expand (one, n) q = MatMul (e, e)"
    model = hostile(square, one=np.ones((1, 1), "f"), n=np.array([5000, 5000]))
    plain = stated_macs(model, {"x": np.zeros((1, 3, 4, 4), np.float32)})
    assert plain == 16 * (3 * 8 + 8 * 2)
    turned = hostile(
        "t = Transpose (w) u = Reshape (r, s) q = MatMul (u, t)", w=np.ones((5, 8), "f"), s=np.array([16, 8])
    )
    assert stated_macs(turned, {"x": np.zeros((1, 3, 4, 4), np.float32)}) == plain + 16 * 8 * 5


def test_behind_a_size_that_cannot_be_inferred_there_is_some_work():
    """Every layer of a detector stands behind a Resize to a size that is worked out on the way: it was allowed none."""
    sizes = (
        "m = ReduceMax <keepdims = 0> (x) i = Cast <to = 7> (m) u = Unsqueeze (i, zero) v = Concat <axis = 0> (n, u, u)"
    )
    model = hostile(
        f"{sizes} b = Resize (r, , , v) q = Conv (b, w)",
        zero=np.array([0]), n=np.array([1, 8]), w=np.ones((5, 8, 1, 1), np.float32),
    )  # fmt: skip
    x = np.zeros((1, 3, 4, 4), np.float32)
    assert stated_macs(model, {"x": x}) == 16 * (3 * 8 + 8 * 2) + x.size * 5 * 8 / 64


def test_the_trusted_have_no_child(monkeypatch):
    monkeypatch.setattr(child, "Child", lambda *_, **__: pytest.fail("a child"))
    monkeypatch.setattr(rehearsal, "Child", lambda *_, **__: pytest.fail("a child"))
    model = hostile("")
    assert open_model(model, trusted=True).graph.outputs == ("y",)
    assert bench([model], rounds=10, trusted=True).timings


def test_both_ways_show_the_same():
    net = Net()
    model = net.model(residual(net, net.conv("x", 3, 8, 3)), 16)
    here, there = (open_model(model, trusted=trusted) for trusted in (True, False))
    assert dict(here.channels.shapes) == dict(there.channels.shapes)
    assert list(here.channels.shapes) == list(there.channels.shapes)
    assert here.channels.groups[0].name == there.channels.groups[0].name
    assert all(np.array_equal(here.feeds[k], there.feeds[k]) for k in here.feeds)


def test_what_only_fails_is_told_as_ever():
    with pytest.raises(ModelError, match=r"^model: cannot be run with x .*indices element out of") as caught:
        open_model(hostile("q = Gather (r, k)", k=np.array([2**40])))
    assert not isinstance(caught.value, Stopped)


def test_time_that_was_spent_in_vain_is_gone(monkeypatch):
    """However many sizes are tried, the file has its seconds once."""
    monkeypatch.setattr(rehearsal, "CAPS", Caps(10.0))
    seen = []
    monkeypatch.setattr(rehearsal, "Child", lambda job, args, caps, **_: seen.append(caps.seconds) or Refusing())
    run = Rehearsal("m.onnx")
    for _ in range(3):
        with pytest.raises(ModelError):
            run.run(hostile(""), {})
    assert seen[0] > 10 > seen[1] > seen[2] and seen[0] - seen[2] > 0.2


class Refusing:
    def result(self):
        time.sleep(0.12)
        raise ModelError("not at this size")
