"""Residual blocks: which are found, what is left when they go, and that dropping one is the masked original."""

import numpy as np
import pytest

from onnxprune import api
from onnxprune.blocks import drop_of
from onnxprune.decide.blocks import find_blocks
from onnxprune.errors import UsageError
from onnxprune.graph.model import Graph
from onnxprune.measure.verify import check_surgery
from onnxprune.plan import KeepChannels, PrunePlan
from onnxprune.rewrite.drop import bypass, drop_blocks
from tests.channels import surgery

HEAD = "(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w0, float[8,8,3,3] w1, float[8,8,3,3] w2, float[4,8,1,1] w9"
STEM, END = "h = Conv<pads=[1,1,1,1]>(x, w0)", "y = Conv(z, w9)"
F = "a = Conv<pads=[1,1,1,1]>({0}, w1) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w2)"

ROWS = {  # name: (more weights, body, (add, shortcut) of every block)
    "basic": ("", f"{F.format('h')} z = Add(b, h)", [("z", "h")]),
    "basic, the other way round": ("", f"{F.format('h')} z = Add(h, b)", [("z", "h")]),
    "ReLU behind": ("", f"{F.format('h')} s = Add(b, h) z = Relu(s)", [("s", "h")]),
    "pre-activation": ("", f"p = Relu(h) {F.format('p')} z = Add(b, h)", [("z", "h")]),
    "inverted with gate": (
        "float[2,8,1,1] v1, float[8,2,1,1] v2",
        f"{F.format('h')} g = GlobalAveragePool(b) g1 = Conv(g, v1) g2 = Conv(g1, v2) g3 = Sigmoid(g2) "
        "c = Mul(b, g3) z = Add(c, h)",
        [("z", "h")],
    ),
    "two in a row": (
        "float[8,8,1,1] v",
        f"{F.format('h')} s = Add(b, h) c = Conv(s, v) z = Add(c, s)",
        [("s", "h"), ("z", "s")],
    ),
    "a constant is no shortcut": ("float[8,1,1] k", f"{F.format('h')} z = Add(b, k)", []),
    "a projection maps no shape to itself": (
        "float[8,8,1,1] v",
        f"p = Conv(h, v) {F.format('h')} z = Add(b, p)",
        [],
    ),
    "the branch is read elsewhere": ("", f"{F.format('h')} s = Add(b, h) z = Mul(s, r)", []),
    "the branch reads something else": (
        "float[8,3,1,1] v",
        f"q = Conv(x, v) {F.format('h')} c = Mul(b, q) z = Add(c, h)",
        [],
    ),
    "twice the same": ("", "z = Add(h, h)", []),
    "broadcast": ("", f"{F.format('h')} g = GlobalAveragePool(b) z = Add(g, h)", []),
}


def model_of(name):
    weights, body, _ = ROWS[name]
    return surgery.model_of(f"{HEAD}{', ' if weights else ''}{weights}> {{ {STEM} {body} {END} }}")


@pytest.mark.parametrize("name", ROWS)
def test_which_are_found(name):
    graph, channels = surgery.find(model_of(name))
    assert [(b.add, b.shortcut) for b in find_blocks(graph, channels.shapes)] == ROWS[name][2]


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row[2]])
@pytest.mark.parametrize("width", [8, 4])
def test_a_drop_is_the_masked_original(name, width):
    model = model_of(name)
    subject = api.open_model(model)
    blocks = find_blocks(subject.graph, subject.channels.shapes)
    stream = next(g for g in subject.channels.groups if any(s.tensor == "w9" for s in g.slices))
    keep = () if width == 8 else (KeepChannels(stream.name, 8, tuple(range(width))),)
    for count in range(1, len(blocks) + 1):
        drops = tuple(drop_of(b, subject.channels) for b in blocks[:count])
        plan = PrunePlan(subject.digest, (*keep, *drops), {})
        assert PrunePlan.from_json(plan.to_json()) == plan
        result = api.apply_plan(subject, plan, api.Settings(repair="none"))
        assert result.surgery.exact and result.surgery.worst < 1e-5
        names = {n.output[0] for n in result.model.graph.node}
        assert not names & {b.add for b in blocks[:count]}  # no Identity is left
        again = check_surgery(model, result.model, result.cuts, [subject.feeds])
        assert again.exact
        assert len(result.model.graph.initializer) < len(model.graph.initializer)


def test_a_block_that_makes_an_output_keeps_its_name():
    model = surgery.model_of(
        f"(float[N,8,8,8] x) => (float[] z) <float[8,8,3,3] w1, float[8,8,3,3] w2> {{ {F.format('x')} z = Add(b, x) }}"
    )
    subject = api.open_model(model)
    (block,) = find_blocks(subject.graph, subject.channels.shapes)
    drop = drop_of(block, subject.channels)
    left = bypass(drop_blocks(model, [drop]), [drop])
    assert [n.op_type for n in left.graph.node] == ["Identity"] and left.graph.output[0].name == "z"
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 8)).astype(np.float32)
    assert np.array_equal(surgery.run(left, {"x": x})[0], x)


@pytest.mark.parametrize("pattern, left", [("^b$", 0), ("nothing", 1), (None, 1)])
def test_blocks_to_keep(pattern, left):
    graph, channels = surgery.find(model_of("basic"))
    assert len(find_blocks(graph, channels.shapes, pattern)) == left


def test_a_bad_pattern_is_refused():
    graph, channels = surgery.find(model_of("basic"))
    with pytest.raises(UsageError, match="keep-block"):
        find_blocks(graph, channels.shapes, "(")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"block": "nowhere"}, "no residual block"),
        ({"block": "r"}, "no residual block"),
        ({"length": 5}, "no residual block"),
        ({"branch": 1}, "no residual block"),
    ],
)
def test_a_plan_that_drops_what_is_no_block(change, words):
    subject = api.open_model(model_of("basic"))
    (block,) = find_blocks(subject.graph, subject.channels.shapes)
    drop = drop_of(block, subject.channels)
    bad = type(drop)(**{**vars(drop), **change})
    with pytest.raises(UsageError, match=words):
        api.apply_plan(subject, PrunePlan(subject.digest, (bad,), {}), api.Settings(repair="none"))


def test_nothing_is_edited_in_place():
    model = model_of("basic")
    before = model.SerializeToString()
    subject = api.open_model(model)
    drop = drop_of(find_blocks(Graph(model), subject.channels.shapes)[0], subject.channels)
    drop_blocks(model, [drop])
    assert model.SerializeToString() == before


@pytest.mark.parametrize("repair", ["none", "merge", "statistics", "refit"])
def test_no_repair_brings_a_block_back(repair):
    samples = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(model_of("basic"), calibration=None if repair == "merge" else samples)
    drop = drop_of(find_blocks(subject.graph, subject.channels.shapes)[0], subject.channels)
    result = api.apply_plan(subject, PrunePlan(subject.digest, (drop,), {}), api.Settings(repair=repair))
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Conv"]
