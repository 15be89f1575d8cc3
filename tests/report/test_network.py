"""Both networks side by side: every layer once, bars as wide as channels, what is gone in place; harmless and small."""

import copy
import json
import re

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.measure.outline import MOST, VERSION, Outline, Side, Spot, outline, spots_of
from onnxprune.plan import DropBlock, Factorize, PrunePlan
from onnxprune.report.page import render
from onnxprune.report.pages.drawing import DRAWN, LEAST, THIN, drawings
from onnxprune.report.pages.layers import layer_rows
from onnxprune.report.pages.layout import blocks_of, collapsed, lay_out, short
from tests.channels import surgery
from tests.report.test_page import read

TEXT = """(float[N,4,6,6] x) => (float[N,3] y)
<float[16,4,3,3] w, float[16] c, float[32,16,3,3] v, float[16,32,3,3] d, float[3,16] g>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, c)  b = Relu(a)  h = Conv <pads = [1, 1, 1, 1]> (b, v)  i = Relu(h)
  e = Conv <pads = [1, 1, 1, 1]> (i, d)  s = Add(b, e)  r = Relu(s)  p = GlobalAveragePool(r)  f = Flatten(p)
  y = Gemm <transB = 1> (f, g) }"""


@pytest.fixture(scope="module")
def model():
    return surgery.model_of(TEXT)


@pytest.fixture(scope="module")
def told(model):
    return json.loads(onnxprune.prune(model, 0.5, round_to=1).to_json())


def edited(model, *edits):
    subject = onnxprune.open_model(model)
    return json.loads(onnxprune.apply_plan(subject, PrunePlan(subject.digest, edits)).to_json())


@pytest.fixture(scope="module")
def dropped(model):
    return edited(model, DropBlock("s", 1, 1, 4, 16))


def spots(told):
    return told["network"]["spots"]


def side(channels, *reads, op="Conv", macs=1.0):
    return Side(op, (), channels, macs, 0, reads)


def same(node, channels, *reads, **more):
    return Spot(node, side(channels, *reads, **more), side(channels, *reads, **more))


def drawn(page, view):
    """Views of a page: {column: [(class, width)]} and the classes of the rows."""
    (part,) = re.findall(rf'<div class="net view-{view}">(.*?)</ol>', page, re.S)
    columns = {
        name: re.findall(r'<rect class="(\w+)" x="-?\d+" y="\d+" width="(\d+)"', body)
        for name, body in re.findall(r'class="(before|after)">(.*?)</svg>', part, re.S)
    }
    return columns, re.findall(r'<li class="([a-z ]+)" tabindex="0".*?<bdi>(.*?)</bdi>', part)


def test_every_layer_and_join_is_told_once_with_its_readers(told):
    found = [(s["node"], s["before"]["op"], s["before"]["then"], s["before"]["reads"]) for s in spots(told)]
    assert found == [
        ("x", "Input", [], []),
        ("a", "Conv", ["Relu"], [0]),
        ("h", "Conv", ["Relu"], [1]),
        ("e", "Conv", [], [2]),
        ("s", "Add", ["Relu", "GlobalAveragePool", "Flatten"], [1, 3]),
        ("y", "Gemm", [], [4]),
    ]
    assert told["network"]["version"] == VERSION


def test_what_it_tells_adds_up(told):
    widths = {g["name"]: (g["before"], g["after"]) for g in told["groups"]}
    channels = {s["node"]: (s["before"]["channels"], s["after"]["channels"]) for s in spots(told)}
    assert {channels["a"], channels["h"]} == set(widths.values())
    assert channels["a"] == channels["e"] == channels["s"] and channels["y"] == (3, 3)
    for key in ("before", "after"):
        for what in ("macs", "params"):
            assert sum(s[key][what] for s in spots(told)) == told[key][what]


def test_every_layer_is_drawn_once_and_as_wide_as_it_has_channels(told):
    page = render(told, name="m")
    columns, rows = drawn(page, 2)
    assert [name.split()[0] for _, name in rows] == [s["node"] for s in spots(told)]
    left = [int(width) for kind, width in columns["before"]]
    widest = max(s["before"]["channels"] for s in spots(told))
    for width, spot in zip(left, spots(told), strict=True):
        assert width == max(LEAST, round(max(left) * spot["before"]["channels"] / widest))
    right = {kind: [int(w) for k, w in columns["after"] if k == kind] for kind in ("kept", "went")}
    assert len(right["kept"]) == len(spots(told))
    for width, spot in zip(right["kept"], spots(told), strict=True):
        assert abs(width - max(left) * spot["after"]["channels"] / widest) <= LEAST
    cut = [s for s in spots(told) if s["after"]["channels"] < s["before"]["channels"]]
    assert len(right["went"]) == len(cut) > 2
    table = re.findall(r'<td role="cell" class="mono" title="(.*?)"', page)
    assert table == [s["node"] for s in spots(told) if s["before"]["macs"]]


def test_a_block_is_one_row_with_a_bar_for_each_of_its_layers(told):
    columns, rows = drawn(render(told, name="m"), 1)
    assert [state for state, _ in rows] == ["same join", "cut", "cut", "same"] and len(columns["before"]) == 6


def test_what_is_gone_is_an_outline(dropped):
    assert [s["node"] for s in spots(dropped) if s["after"] is None] == ["h", "e", "s"]
    assert spots(dropped)[-1]["after"]["reads"] == [1]
    columns, rows = drawn(render(dropped, name="m"), 2)
    assert [kind for kind, _ in columns["after"]] == ["kept", "kept", "ghost", "ghost", "ghost", "kept"]
    assert [state.split()[0] for state, _ in rows] == ["same", "same", "gone", "gone", "gone", "same"]
    columns, rows = drawn(render(dropped, name="m"), 1)
    assert [kind for kind, _ in columns["after"]] == ["kept", "kept", "ghost", "kept"]
    assert [state for state, _ in rows][2] == "gone"


def test_a_layer_made_of_two_is_there_with_what_is_new(model):
    found = edited(model, Factorize("e", "channel", 4))
    states = {s["node"]: (s["before"] is not None, s["after"] is not None) for s in spots(found)}
    assert sum(state == (False, True) for state in states.values()) == 1 and states["e"] == (True, True)
    (new,) = (k for k, s in enumerate(spots(found)) if s["before"] is None)
    assert spots(found)[new]["after"]["channels"] == 4 and spots(found)[new + 1]["after"]["reads"] == [new]
    columns, _ = drawn(render(found, name="m"), 2)
    assert [kind for kind, _ in columns["after"]].count("new") == 1 and "new" not in dict(columns["before"])

    columns, rows = drawn(render(found, name="m"), 1)
    assert len(rows) == 4 and [kind for kind, _ in columns["after"]].count("new") == 1  # inside of its block


def test_what_is_new_or_another_operator_is_told():
    found = Outline(spots=(
        same("x", 3, op="Input", macs=0.0),
        Spot("low", None, side(4, 0)),
        Spot("a", side(16, 0), side(16, 1)),
        Spot("b", side(16, 2), None),
        Spot("s", side(16, 2, 3, op="Add", macs=0.0), side(16, 2, op="Conv")),
    ))  # fmt: skip
    views = drawings(found)["views"]
    assert [row["state"] for row in views[-1]["rows"]] == ["same", "new", "same", "gone", "merged"]
    assert "Add, now Conv" in views[-1]["rows"][-1]["more"]
    before, after = views[-1]["columns"]
    assert [bar.kind for bar in before["bars"]] == ["kept"] * 4
    assert [bar.kind for bar in after["bars"]] == ["kept", "new", "kept", "ghost", "kept"]
    assert [r["state"] for r in layer_rows(found)["rows"]] == ["new", "same", "gone"]


def test_the_same_result_is_drawn_the_same(model, told):
    again = json.loads(onnxprune.prune(model, 0.5, round_to=1).to_json()) | {"run": told["run"]}
    assert again["network"] == told["network"] and render(again, name="m") == render(told, name="m")
    assert json.loads(onnxprune.Result.from_dict(told).to_json())["network"] == told["network"]


def test_a_result_from_before_has_no_drawing(told):
    old = {k: v for k, v in told.items() if k != "network"}
    newer = told | {"network": told["network"] | {"version": VERSION + 1}}
    for content in (old, newer):
        page = render(content, name="m")
        assert "Where the width went" not in page and "<table" in page
    assert onnxprune.Result.from_dict(old).network == Outline()


HOSTILE = "</title></svg><script>alert(1)</script>\"'\x1b[2J&"


def test_names_do_no_harm(told):
    found = copy.deepcopy(told)
    for spot in spots(found):
        spot["node"] += HOSTILE
        for key in ("before", "after"):
            spot[key]["op"] += HOSTILE
            spot[key]["then"] = [HOSTILE]
    page = render(found, name="m")
    assert "<script" not in page and "\x1b" not in page and "alert(1)" in read(page).text
    assert not re.search(r"\son\w+=|javascript:|<style[^>]*src|@import|url\(", page)


def test_it_can_be_read_and_reached_without_a_mouse(told):
    page = render(told, name="m")
    tags = read(page)
    assert page.count('<svg role="img" aria-labelledby="net-t1 net-d1"') == 1 and 'id="net-d1"' in page
    rows = re.findall(r"<li .*?</li>", page)
    assert len(rows) == 4 + 6 and all('tabindex="0"' in row for row in rows)
    assert "channels 16 → " in tags.text and page.count('role="row"') == 5


def network_of(count, block=4):
    """A chain of residual blocks."""
    found = [same("x", 3, op="Input", macs=0.0), same("stem", 64, 0)]
    while len(found) < count:
        start = len(found) - 1
        names = [f"/net/stage.{start % 5}/block.{start}/conv{j}/Conv_output_0" for j in range(block - 1)]
        for j, name in enumerate(names):
            was, now = side(64 * (j + 1), start + j), side(40 * (j + 1), start + j)
            found.append(Spot(name, was, now))
        end = f"/net/stage.{start % 5}/block.{start}/Add_output_0"
        found.append(same(end, 64, start, len(found) - 1, op="Add", macs=0.0))
    return Outline(spots=tuple(found))


def test_two_hundred_layers_are_small(told):
    found = network_of(270)
    assert sum(1 for s in found.spots if s.before.macs) >= 200
    text = json.dumps(told | {"network": {"version": 1, "spots": json_of(found), "left_out": 0}})
    page = render(json.loads(text), name="m")
    assert len(page.encode()) < 400_000
    assert len(json.dumps(json_of(found))) < 320 * len(found.spots)


def json_of(found):
    return json.loads(json.dumps(found.spots, default=lambda thing: vars(thing)))


def test_very_large_networks_are_drawn_by_blocks_or_not_at_all():
    found = drawings(network_of(DRAWN + 200))
    assert [view["name"] for view in found["views"]] == ["blocks"]
    chain = [same("x", 3, op="Input", macs=0.0), *(same(f"c{k}", 8, k) for k in range(DRAWN + 1))]
    found = drawings(Outline(spots=tuple(chain)))
    assert not found["views"] and "too many to draw" in found["left_out"]
    assert "2500 layers and joins" in drawings(Outline(left_out=2500))["left_out"]


def test_too_many_layers_are_counted(told):
    graph = onnx.parser.parse_graph(
        "g (float[1,4] x0) => (float[1,4] y) <float[4,4] w> { "
        + " ".join(f"x{k + 1} = MatMul(x{k}, w)" for k in range(MOST + 2)) + f" y = Relu(x{MOST + 2}) }}"
    )  # fmt: skip
    from onnxprune.graph.model import Graph

    graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    seen = spots_of(Graph(model), {f"x{k}": (1, 4) for k in range(MOST + 3)})
    assert outline(seen, seen) == Outline(left_out=MOST + 3)
    page = render(told | {"network": {"version": 1, "spots": [], "left_out": MOST + 3}}, name="m")
    assert f"The network has {MOST + 3} layers and joins: too many to draw." in page


def test_branches_stand_in_lanes_and_never_below_what_reads_them():
    found = (
        same("x", 8, op="Input", macs=0.0),
        same("a", 8, 0), same("b", 8, 0), same("c", 8, 2), same("d", 8, 0),
        same("j", 24, 1, 3, 4, op="Concat", macs=0.0),
        same("z", 8, 5),
    )  # fmt: skip
    layout = lay_out(found, [(k,) for k in range(len(found))])
    assert len({layout.lanes[k] for k in (1, 3, 4)}) == 3 and layout.lanes[2] == layout.lanes[3]
    reads = {(r, k) for k, s in enumerate(found) for r in s.before.reads}
    assert {(w.start, w.end) for w in layout.before} == reads == {(w.start, w.end) for w in layout.after}
    for wire in layout.before:
        if wire.lane is not None:
            assert not any(layout.lanes[k] == wire.lane for k in range(wire.start + 1, wire.end))
    assert blocks_of(found) == [(1, 2, 3, 4, 5)] and collapsed(found, blocks_of(found))[1] == (1, 2, 3, 4, 5)


def test_what_is_read_from_outside_is_no_block():
    found = (
        same("x", 8, op="Input", macs=0.0), same("a", 8, 0), same("b", 8, 1), same("c", 8, 2),
        same("s", 8, 1, 3, op="Add", macs=0.0), same("t", 8, 2, 4, op="Add", macs=0.0), same("y", 8, 5),
    )  # fmt: skip
    assert blocks_of(found) == [(2, 3, 4, 5)]
    order = [k for row in collapsed(found, blocks_of(found)) for k in row]
    assert sorted(order) == list(range(len(found)))


@pytest.mark.parametrize(
    ("node", "op", "says"),
    [
        ("/layer1/layer1.0/conv1/Conv_output_0", "Conv", "layer1.0/conv1"),
        ("/1/Add_output_0", "Add", "1"),
        ("/head/Conv_12_output_0", "Conv", "head"),
        ("conv2d_450.tmp_0", "Conv", "conv2d_450.tmp_0"),
        ("y", "Gemm", "y"),
        ("/", "Conv", "/"),
        ("", "Conv", ""),
    ],
)
def test_names_are_short(node, op, says):
    assert short(node, op) == says


def test_bars_of_a_large_block_stay_inside_their_row():
    tail = [same(f"n{k}", None, *([k - 1, k - 2] if k > 2 else [0, 1]), op="Add", macs=0.0) for k in range(2, 60)]
    found = Outline(spots=(same("x", 3, op="Input", macs=0.0), same("a", 8, 0), *tail))
    for view in drawings(found)["views"]:
        for column in view["columns"]:
            assert all(0 <= bar.y and bar.y + bar.height <= view["height"] for bar in column["bars"])
            assert all(0 <= bar.x and bar.x + bar.width <= 1000 and bar.height >= 1 for bar in column["bars"])
    assert len(drawings(found)["views"][0]["rows"]) == 3 and THIN
