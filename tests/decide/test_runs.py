"""Runs in a row, and what they may become: which, in how many ways, and what that costs beside one another."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from onnxprune import api
from onnxprune.decide.adaptive import BlockMove, adaptive
from onnxprune.decide.limits import Ladder, Limits
from onnxprune.decide.runs import by_kernels, find_runs, in_rows, made_of, rows
from onnxprune.errors import PlanError, UsageError
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import count_macs
from onnxprune.measure.states import GONE, STANDS, as_one
from onnxprune.pipeline.candidates import find_candidates
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.settings import Settings
from onnxprune.pipeline.transfer import transfer, with_structure
from onnxprune.plan import DropBlock, MergeBlock, PrunePlan
from tests.channels import surgery

BLOCK = """a{k} = Conv<pads=[1,1,1,1]>({x}, wa{k}) b{k} = Relu(a{k}) c{k} = Conv<pads=[1,1,1,1]>(b{k}, wc{k})
  d{k} = Add(c{k}, {x}) r{k} = Relu(d{k})"""


def net(blocks=5, more=""):
    weights = "".join(f", float[6,6,3,3] wa{k}, float[6,6,3,3] wc{k}" for k in range(1, blocks + 1))
    body = " ".join(BLOCK.format(k=k, x=f"r{k - 1}") for k in range(1, blocks + 1))
    return f"""(float[N,3,8,8] x) => (float[N,4] y) <float[6,3,3,3] w0, float[4,6] w9{weights}> {{
      a0 = Conv<pads=[1,1,1,1]>(x, w0) r0 = Relu(a0) {body} {more}
      g = GlobalAveragePool(r{blocks}) f = Flatten(g) y = Gemm<transB=1>(f, w9) }}"""


def opened(text):
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    return api.open_model(surgery.model_of(text), calibration=x)


@pytest.fixture(scope="module")
def subject():
    return opened(net())


def joined(subject):
    return [r.name for r in in_rows(subject.net, find_runs(subject.net))]


def test_blocks_in_a_row_are_paired_from_the_end(subject):
    runs = find_runs(subject.net)
    assert [[r.name for r in row] for row in rows(subject.net, runs)] == [["d1", "d2", "d3", "d4", "d5"]]
    assert joined(subject) == ["d4..d5", "d2..d3", "d2..d5"]
    pair = in_rows(subject.net, runs)[0]
    assert pair.edit == MergeBlock("d5", "r3", (0, 1), 3, 1, 6, 4)
    assert pair.nodes == ("a4", "b4", "c4", "d4", "r4", "a5", "b5", "c5", "d5") and pair.end == "d5"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("o = Relu(r4) g2 = GlobalAveragePool(o)", ["d3..d4", "d1..d2", "d1..d4"]),
        ("o = Relu(d3) g2 = GlobalAveragePool(o)", ["d2..d3", "d4..d5"]),
    ],
    ids=["behind the ReLU", "the sum itself"],
)
def test_what_others_read_parts_a_row(more, expected):
    """What is read elsewhere must stay; a network whose second reader reaches an output."""
    text = net(more=more).replace("(float[N,4] y)", "(float[N,4] y, float[N,6,1,1] g2)")
    assert joined(opened(text)) == expected


@pytest.mark.parametrize(
    ("name", "kernels"), [("d5", [1, 3]), ("d4..d5", [1, 3, 5]), ("d2..d5", [1, 3, 5, 7])]
)  # two layers of 3x3 multiply 18 times as much as one point, four 36, eight 72; they see 5, 9 and 17 points
def test_a_run_becomes_what_it_sees_and_multiplies(subject, name, kernels):
    runs = find_runs(subject.net)
    (run,) = [r for r in (*runs, *in_rows(subject.net, runs)) if r.name == name]
    found = by_kernels(subject.net, run)
    assert [r.edit.kernel for r in found] == kernels and found[0].name == f"{name} 1x1"


def test_a_plan_may_name_any_blocks_in_a_row(subject):
    edit = MergeBlock("d4", "r0", (0, 1), 5, 1, 6, 4)  # all but the last: not one of those that are weighed
    assert made_of(subject.net, edit).name == "d1..d4"
    assert made_of(subject.net, replace(edit, source="x")) is None
    for edits in ((edit, DropBlock("d2", 0, 1, 4, 6)), (edit, replace(edit, block="d3", branch=(0, 1)))):
        with pytest.raises(UsageError, match="another edit takes a part"):
            api.apply_plan(subject, PrunePlan(subject.digest, edits), Settings(repair="none"))
    result = api.apply_plan(subject, PrunePlan(subject.digest, (edit,)), Settings(threads=1))
    assert result.surgery.exact
    assert [n.op_type for n in result.model.graph.node if n.op_type in ("Conv", "Add")] == ["Conv"] * 4 + ["Add"]


def test_a_twin_by_other_names_gets_the_same_row(subject):
    text = net()
    for k in range(6):
        for letter in "abcdr":
            text = text.replace(f"{letter}{k}", f"{letter}{letter}{k}")
    twin = opened(text)
    plan = with_structure(PrunePlan(subject.digest, (MergeBlock("d4", "r1", (0, 1), 3, 1, 6, 4),)), subject)
    plan = PrunePlan.from_json(plan.to_json())
    (edit,) = transfer(replace(plan, model_digest="another"), twin).edits
    assert edit == MergeBlock("dd4", "rr1", (0, 1), 3, 1, 6, 4)


def test_a_row_that_the_twin_lacks_is_refused(subject):
    plan = with_structure(PrunePlan("another", (MergeBlock("d4", "r1", (0, 1), 3, 1, 6, 4),)), subject)
    with pytest.raises(PlanError):
        transfer(plan, opened(net(4)))


def exact(subject, drop=(), edits=()):
    """Multiply-accumulates of what is left."""
    from onnxprune.rewrite.apply import apply_edits

    made = apply_edits(subject.net, [*(DropBlock(name, 0, 1, 4, 6) for name in drop), *edits]).model
    return count_macs(Graph(made), observe(Graph(made), subject.feeds).shapes)


def test_what_blocks_within_blocks_cost(subject):
    settings = Settings(methods=("blocks", "merge"), threads=1)
    planner = Planner(subject, settings)
    cost, everything = planner._mixed, planner.candidates.net.channels.alive({})
    names, rng = list(planner.prices.names), np.random.default_rng(0)
    assert set(names) == {f"d{k}" for k in range(1, 6)} | {"d4..d5", "d2..d3", "d2..d5"}
    for _ in range(40):
        standing = np.array([rng.choice([GONE, *as_one(len(planner.prices.merges[n])), STANDS, STANDS]) for n in names])
        for k, name in enumerate(names):
            if ".." in name and standing[k] == GONE:  # blocks in a row go one by one
                standing[k] = STANDS
        nodes = {b.name: set(b.nodes) for b in planner.candidates.blocks}
        gone = [n for n, at in zip(names, standing, strict=True) if at != STANDS]
        free = [n for n in gone if not any(nodes[n] < nodes[o] for o in gone)]
        at = dict(zip(names, standing, strict=True))
        drop = [n for n in free if at[n] == GONE]
        edits = [planner.prices.merges[n][round(at[n] * (len(planner.prices.merges[n]) + 1)) - 1]
                 for n in free if at[n] != GONE]  # fmt: skip
        assert cost(everything, standing) == pytest.approx(exact(subject, drop, edits), rel=1e-6)


def test_of_what_hurts_more_and_costs_more_nothing_is_left():
    move = BlockMove("b", 2.0, frozenset("b"), None, [("1", 3.0), ("3", 1.0), ("5", 1.5)])
    ways = as_one(3)
    assert move.states == [(0.0, 2.0), (ways[1], 1.0), (1.0, 0.0)]
    assert [move.became(s) for s in (0.0, *ways, 1.0)] == [None, "1", "3", "5", None]


def test_the_search_over_rows_is_as_good_as_all_that_there_is(subject):
    """Damages made up: every way to spend the budget on three blocks in a row, alone and together, is looked at."""
    small = opened(net(3))
    candidates = find_candidates(small.net, Settings(methods=("blocks", "merge")), "adaptive")
    rng = np.random.default_rng(3)
    planner_costs = {
        b.name: [r.edit for r in candidates.runs.values() if r.block.name == b.name] for b in candidates.blocks
    }
    from onnxprune.pipeline.prices import Prices

    names = [b.name for b in candidates.blocks]
    prices = Prices(small.net, "macs", [b.nodes for b in candidates.blocks], names, None, planner_costs)
    cost, worse = prices.model(()), 0
    ladders = [Ladder(g, np.zeros(g.width), Limits(include="(?!)")) for g in small.channels.groups]
    damages = {g.name: np.zeros(g.width + 1) for g in small.channels.groups}
    for ratio in (0.2, 0.35, 0.5, 0.65):
        moves = [
            BlockMove(b.name, rng.uniform(0.5, 2) if b.name in candidates.dropped else None, candidates.inside(b), None,
                      [(str(e.kernel), rng.uniform(0.1, 1) / e.kernel * (1 + len(b.row))) for e in planner_costs[b.name]])
            for b in candidates.blocks
        ]  # fmt: skip
        _, standing, damage = adaptive(ladders, damages, cost, ratio, moves)
        assert cost.removed(small.channels.alive({}), standing) >= ratio - 1e-9
        nodes = [set(b.nodes) for b in candidates.blocks]
        best = np.inf
        for states in itertools.product(*(m.states for m in moves)):
            at, hurt = np.array([s for s, _ in states]), [d for _, d in states]
            if cost.removed(small.channels.alive({}), at) >= ratio:
                out = [k for k, s in enumerate(at) if s != STANDS]
                best = min(best, sum(hurt[k] for k in out if not any(nodes[k] < nodes[o] for o in out)))
        assert damage >= best * (1 - 1e-9), "no less than there is"
        worse += damage > best * 1.3
    assert worse <= 1
