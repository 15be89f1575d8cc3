"""Residual blocks: which are found, what is left when they go, and that dropping one is the masked original."""

import numpy as np
import pytest

from onnxprune import api
from onnxprune.channels import Analysed
from onnxprune.decide.adaptive import BlockMove, adaptive
from onnxprune.decide.blocks import all_blocks, find_appended, find_blocks, may_go
from onnxprune.decide.limits import Ladder, Limits
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph.model import Graph
from onnxprune.measure.cost import CostModel
from onnxprune.measure.surgery import check_surgery
from onnxprune.pipeline.block_trials import drop_of, edit_of
from onnxprune.pipeline.planner import Planner
from onnxprune.plan import DropBlock, KeepChannels, Origin, PrunePlan
from tests.channels import surgery
from tests.rewrite.steps import bypass, drop_blocks

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
    assert [(b.add, b.shortcut) for b in find_blocks(Analysed(graph, channels, {}))] == ROWS[name][2]


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row[2]])
@pytest.mark.parametrize("width", [8, 4])
def test_a_drop_is_the_masked_original(name, width):
    model = model_of(name)
    subject = api.open_model(model)
    blocks = find_blocks(subject.net)
    stream = next(g for g in subject.channels.groups if any(s.tensor == "w9" for s in g.slices))
    keep = () if width == 8 else (KeepChannels(stream.name, 8, tuple(range(width))),)
    for count in range(1, len(blocks) + 1):
        drops = tuple(drop_of(b, subject.channels) for b in blocks[:count])
        plan = PrunePlan(subject.digest, (*keep, *drops))
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
    (block,) = find_blocks(subject.net)
    drop = drop_of(block, subject.channels)
    left = bypass(drop_blocks(model, [drop]), [drop])
    assert [n.op_type for n in left.graph.node] == ["Identity"] and left.graph.output[0].name == "z"
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 8)).astype(np.float32)
    assert np.array_equal(surgery.run(left, {"x": x})[0], x)


@pytest.mark.parametrize("pattern, left", [("^b$", 0), ("nothing", 1), (None, 1)])
def test_blocks_to_keep(pattern, left):
    graph, channels = surgery.find(model_of("basic"))
    assert len(find_blocks(Analysed(graph, channels, {}), pattern)) == left


def test_a_bad_pattern_is_refused():
    graph, channels = surgery.find(model_of("basic"))
    with pytest.raises(UsageError, match="keep-block"):
        find_blocks(Analysed(graph, channels, {}), "(")


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
    (block,) = find_blocks(subject.net)
    drop = drop_of(block, subject.channels)
    bad = type(drop)(**{**vars(drop), **change})
    with pytest.raises(UsageError, match=words):
        api.apply_plan(subject, PrunePlan(subject.digest, (bad,)), api.Settings(repair="none"))


def test_nothing_is_edited_in_place():
    model = model_of("basic")
    before = model.SerializeToString()
    subject = api.open_model(model)
    drop = drop_of(find_blocks(Analysed(Graph(model), subject.channels, {}))[0], subject.channels)
    drop_blocks(model, [drop])
    assert model.SerializeToString() == before


@pytest.mark.parametrize("repair", ["none", "merge", "statistics", "refit"])
def test_no_repair_brings_a_block_back(repair):
    samples = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(model_of("basic"), calibration=None if repair == "merge" else samples)
    drop = drop_of(find_blocks(subject.net)[0], subject.channels)
    result = api.apply_plan(subject, PrunePlan(subject.digest, (drop,)), api.Settings(repair=repair))
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Conv"]


DENSE = (
    "a1 = Conv(c1, p1) b1 = BatchNormalization(a1, s, t, m, var) r1 = Relu(b1) d1 = Conv<pads=[1,1,1,1]>(r1, q1) "
    "c2 = Concat<axis=1>(c1, d1) a2 = Conv(c2, p2) r2 = Relu(a2) d2 = Conv<pads=[1,1,1,1]>(r2, q2) "
    "z = Concat<axis=1>(c2, d2)"
)
WEIGHTS = (
    "float[8,8,1,1] p1, float[8] s, float[8] t, float[8] m, float[8] var, float[4,8,3,3] q1, "
    "float[8,12,1,1] p2, float[4,8,3,3] q2, float[4,16,1,1] w8"
)
TWO = "float[4,8,1,1] p1, float[4,8,3,3] q1, float[4,8,1,1] w8, float[4,16,1,1] w16, float[4,12,1,1] w12"
ALONE = "a1 = Conv(h, p1) r1 = Relu(a1) d1 = Conv<pads=[1,1,1,1]>(h, q1) b1 = Sigmoid(d1)"

APPENDED = {  # name: (weights, body, what reads z, (first node of a block, nodes, the Concat) of every block)
    "dense layers": (WEIGHTS, f"c1 = Identity(h) {DENSE}", "w8", [("q1", 4, "c2"), ("q2", 3, "z")]),
    "branches of one Concat": (TWO, f"{ALONE} z = Concat<axis=1>(r1, b1)", "w8", [("q1", 2, "z")]),
    "beside what they read": (TWO, f"{ALONE} z = Concat<axis=1>(h, b1, r1)", "w16", [("p1", 2, "z"), ("q1", 2, "z")]),
    "read elsewhere": (TWO, f"{ALONE} k = Mul(r1, b1) z = Concat<axis=1>(h, k)", "w12", [("p1", 5, "z")]),
    "one is read elsewhere": (
        TWO + ", float[4,4,1,1] w7",
        f"{ALONE} k = Conv(b1, w7) z = Concat<axis=1>(r1, b1, h, k)",
        "w20, float[4,20,1,1] w20",
        [("p1", 2, "z"), ("w7", 1, "z")],
    ),
    "a weight that a node hands on": (
        TWO, "a1 = Conv(h, p1) r1 = Relu(a1) k = Identity(q1) d1 = Conv<pads=[1,1,1,1]>(h, k) z = Concat<axis=1>(r1, d1)",
        "w8", [("k", 1, "z")],
    ),
    "an earlier layer makes some of the channels": (
        TWO + ", float[8,8,1,1] o",
        "h2 = Conv(h, o) a1 = Conv(h2, p1) d1 = Conv<pads=[1,1,1,1]>(h2, q1) c = Concat<axis=1>(a1, d1) z = Add(c, h2)",
        "w8", [("o#2", 1, "h2")],
    ),
    "pieces of one layer": (
        TWO, "a = Conv(h, p1) u, v = Split<axis=1, num_outputs=2>(a) z = Concat<axis=1>(u, h, v)", "w12", []
    ),
    "joined along another axis": (TWO, "a = Conv(h, p1) r = Relu(a) z = Concat<axis=2>(r, a)", "w4, float[4,4,1,1] w4", []),
    "pooled": (
        TWO, f"{ALONE} g = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(b1) z = Concat<axis=1>(h, g)", "w12",
        [("q1", 3, "z")],
    ),
}  # fmt: skip


def appended(name):
    weights, body, reader, _ = APPENDED[name]
    reader, *more = reader.split(", ", 1)
    weights = ", ".join([weights, *more])
    head = f"(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w0, {weights}> "
    return surgery.model_of(head + f"{{ {STEM} {body} y = Conv(z, {reader}) }}")


@pytest.mark.parametrize("name", APPENDED)
def test_which_appended_branches_are_found(name):
    graph, channels = surgery.find(appended(name))
    found = [(b.group, len(b.nodes), b.end) for b in find_appended(Analysed(graph, channels, {}))]
    assert found == APPENDED[name][3]


@pytest.mark.parametrize("name", [n for n, row in APPENDED.items() if row[3]])
def test_a_branch_that_goes_is_the_masked_original(name):
    model = appended(name)
    samples = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(model, calibration=samples)
    blocks = find_appended(subject.net)
    for gone in [blocks[:1], blocks[-1:], blocks]:
        inside = {key for b in gone for key in b.nodes}
        more = [
            KeepChannels(g.name, g.width, (0,))
            for g in subject.channels.groups
            if g.name not in {b.group for b in gone}
        ]
        for rest in ([], more):
            plan = PrunePlan(subject.digest, (*(edit_of(b, subject.channels) for b in gone), *rest))
            assert PrunePlan.from_json(plan.to_json()) == plan and plan.blocks() == tuple(b.group for b in gone)
            result = api.apply_plan(subject, plan, api.Settings(repair="none"))
            assert result.surgery.exact and result.surgery.worst < 1e-5
            assert not inside & {n.output[0] for n in result.model.graph.node}
            assert check_surgery(model, result.model, result.cuts, [subject.feeds]).exact
            for repair in ("merge", "statistics", "refit"):
                mended = api.apply_plan(subject, plan, api.Settings(repair=repair)).model
                kinds = [[n.op_type for n in m.graph.node if n.op_type != "Identity"] for m in (mended, result.model)]
                assert kinds[0] == kinds[1]


def test_a_plan_that_empties_what_others_read():
    subject = api.open_model(appended("branches of one Concat"))
    group = next(g for g in subject.channels.groups if g.name == "w0")
    with pytest.raises(UsageError, match="no channel of group 'w0'"):
        plan = PrunePlan(subject.digest, (KeepChannels(group.name, group.width, ()),))
        api.apply_plan(subject, plan, api.Settings(repair="none"))


def test_branches_to_keep():
    graph, channels = surgery.find(appended("dense layers"))
    assert [b.name for b in all_blocks(Analysed(graph, channels, {}), "^d1$")] == ["q2"]
    assert [b.name for b in all_blocks(Analysed(graph, channels, {}), "^q2$")] == ["q1"]


@pytest.mark.parametrize("methods", [("blocks",), ("channels", "blocks")])
def test_dense_layers_go_where_that_is_asked_for_and_are_counted_rightly(methods):
    samples = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(appended("dense layers"), calibration=samples)
    settings = api.Settings(methods=methods, repair="none", best_effort=True)
    planner = Planner(subject, settings)
    plan = planner.propose(0.3, "mix") or planner.propose(0.3, "channels")
    assert plan.blocks() or "channels" in methods
    result = api.apply_plan(subject, plan, settings)
    assert result.macs_removed == pytest.approx(1 - 1 / planner.gain(plan), abs=1e-6)
    kept = api.Settings(methods=("channels", "blocks"), keep_block="q1", exclude="q2", best_effort=True)
    assert not Planner(subject, kept).candidates.blocks


def test_a_group_that_goes_with_its_block_is_paid_for():
    """Readers of a dense layer get smaller too: the allocation knows it."""
    subject = api.open_model(appended("dense layers"))
    blocks = find_appended(subject.net)
    cost = CostModel(subject.graph, subject.channels, blocks=[b.nodes for b in blocks])
    ladders = [Ladder(g, np.ones(g.width), Limits(round_to=1)) for g in subject.channels.groups]
    damages = {g.name: np.linspace(1e3, 0, g.width + 1) for g in subject.channels.groups}
    moves = [BlockMove(b.name, 1.0, frozenset([b.group, "p1", "p2"]), b.group) for b in blocks]
    widths, standing, damage = adaptive(ladders, damages, cost, 0.2, moves)
    assert damage == 1.0 and sorted(standing) == [0, 1]
    gone = blocks[int(np.argmin(standing))].group
    assert widths[[ladder.group.name for ladder in ladders].index(gone)] == 0
    plan = PrunePlan(subject.digest, (KeepChannels(gone, 4, ()),))
    result = api.apply_plan(subject, plan, api.Settings(repair="none"))
    assert result.macs_removed == pytest.approx(cost.removed(subject.channels.alive({gone: ()}), standing), abs=1e-9)


@pytest.mark.parametrize("name", [n for n, row in APPENDED.items() if row[3]])
def test_blocks_are_tried_from_the_first_node_that_changes(name):
    """Not from one that hands on a weight, nor from one behind a layer that gets smaller."""
    samples = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(appended(name), calibration=samples)
    settings = api.Settings(methods=("blocks",), best_effort=True)
    assert api.make_plan(subject, api.Ratio(0.1), settings).blocks()


def test_a_trunk_is_no_branch():
    """What is appended to the network's own input may be all of it."""
    text = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w0, float[8,8,3,3] w1, float[8,8,3,3] w2, float[4,11,1,1] w9> {
      h = Conv<pads=[1,1,1,1]>(x, w0) a = Conv<pads=[1,1,1,1]>(h, w1) b = Conv<pads=[1,1,1,1]>(a, w2)
      z = Concat<axis=1>(x, b) y = Conv(z, w9) }"""
    samples = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(surgery.model_of(text), calibration=samples)
    assert [b.name for b in find_appended(subject.net)] == ["w2"]
    assert not Planner(subject, api.Settings(methods=("channels", "blocks"))).candidates.blocks


NESTED = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w, float[4,8,1,1] p, float[4,4,3,3] a, float[4,4,3,3] b,
    float[6,4,1,1] q, float[8,14,1,1] o, float[5,8,1,1] u>
    { h0 = Conv<pads=[1,1,1,1]>(x, w) h = Relu(h0) s0 = Conv(h, p) s = Relu(s0) i0 = Conv<pads=[1,1,1,1]>(s, a)
      i1 = Relu(i0) i2 = Conv<pads=[1,1,1,1]>(i1, b) inner = Add(s, i2) k0 = Conv(inner, q) k = Relu(k0)
      c = Concat<axis=1>(h, k) d0 = Conv(c, o) d = Relu(d0) y = Conv(d, u) }"""


def test_a_block_inside_a_branch_that_goes_goes_with_it():
    """The plan drops both, as an allocation does that takes the inner one first."""
    model = surgery.model_of(NESTED)
    samples = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    subject = api.open_model(model, calibration=samples)
    blocks = {edit_of(b, subject.channels) for b in all_blocks(subject.net)}
    inner = next(e for e in blocks if isinstance(e, DropBlock) and e.block == "inner")
    outer = next(e for e in blocks if isinstance(e, KeepChannels) and e.width == 6)
    plan = PrunePlan(subject.digest, (inner, outer), Origin(settings={"methods": ("blocks",)}))
    result = api.apply_plan(subject, plan, api.Settings())
    assert result.surgery.exact and [n.op_type for n in result.model.graph.node].count("Conv") == 3
    assert result.fidelity.samples and result.macs_removed > 0.5


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, ["s1", "s2"]),
        ({"exclude": "."}, []),
        ({"exclude": "^w1$"}, ["s2"]),
        ({"exclude": "^v2$"}, []),  # of the group that both blocks write
        ({"include": "^w0$"}, []),
        ({"include": "^s2$"}, ["s2"]),
        ({"include": "^s", "exclude": "^a1$"}, ["s2"]),
        ({"include": "^w[012]$"}, ["s1"]),
        ({"include": "^[wv]"}, ["s1", "s2"]),
    ],
    ids=str,
)
def test_include_and_exclude_bind_blocks_too(options, left):
    """A block goes only where all may that goes with it; `w2`, `v2` and `w0` write one group."""
    text = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] w0, float[6,8,3,3] w1, float[8,6,3,3] w2, float[4,8,3,3] v1,
      float[8,4,3,3] v2, float[4,8,1,1] w9> { h = Conv<pads=[1,1,1,1]>(x, w0)
      a1 = Conv<pads=[1,1,1,1]>(h, w1) r1 = Relu(a1) b1 = Conv<pads=[1,1,1,1]>(r1, w2) s1 = Add(b1, h)
      a2 = Conv<pads=[1,1,1,1]>(s1, v1) r2 = Relu(a2) b2 = Conv<pads=[1,1,1,1]>(r2, v2) s2 = Add(b2, s1) y = Conv(s2, w9) }"""
    subject = api.open_model(surgery.model_of(text))
    limits = Limits(**options)
    found = all_blocks(subject.net)
    assert [b.name for b in found] == ["s1", "s2"]
    assert [b.name for b in found if may_go(b, subject.net, limits)] == left
    samples = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    sampled = api.open_model(surgery.model_of(text), calibration=samples)
    settings = api.Settings(methods=("blocks",), best_effort=True, **options)
    if left:
        assert {d.block for d in api.make_plan(sampled, api.Ratio(0.2), settings).drops()} <= set(left)
    else:
        with pytest.raises((UsageError, UnsupportedError)):
            api.make_plan(sampled, api.Ratio(0.2), settings)
