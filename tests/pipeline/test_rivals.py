"""Plans against simple rivals, and sweeps in which no larger cut is better than a smaller one."""

from dataclasses import replace

import numpy as np
import pytest

from onnxprune import api
from onnxprune.errors import BudgetError
from onnxprune.pipeline import planner as planning
from onnxprune.pipeline import plans as sweeping
from onnxprune.pipeline.compare import Contest
from onnxprune.pipeline.opened import open_model
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.plans import _falling
from onnxprune.pipeline.rivals import hopeful, simple, unbeaten
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import KeepChannels, Origin, PrunePlan
from tests.channels.surgery import model_of

TEXT = """(float[N,3,8,8] x) => (float[N,5] y)
    <float[32,3,3,3] a, float[16,32,3,3] b, float[16,16,3,3] e, float[5,16] c>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)
      j = Conv<pads=[1,1,1,1]>(s, e) t = Relu(j) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, c) }"""
X = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def subject():
    return open_model(model_of(TEXT), calibration=X)


@pytest.fixture(scope="module")
def planner(subject):
    return Planner(subject, Settings(threads=1, round_to=1))


def plan(width):
    return PrunePlan("", (KeepChannels("g", 32, tuple(range(width))),), Origin(ratio=1 - width / 32))


def contest(**hurt):
    """One in which plans by width do the damages that are given."""
    known = {plan(int(name[1:])).edits: np.array(value, float) for name, value in hurt.items()}
    return Contest(lambda plan: known[plan.edits])


def test_a_rival_is_taken_where_it_is_better_by_more_than_chance():
    own = [1.0, 1.1, 0.9, 1.0]
    for rival, wins in (([0.5, 0.6, 0.4, 0.5], True), ([0.2, 2.0, 0.9, 0.5], False), ([0.99, 1.09, 0.89, 0.99], False)):
        found = unbeaten(contest(w16=own, w20=rival), plan(16), [plan(20)])
        assert found == (plan(20) if wins else plan(16))
    assert unbeaten(contest(w16=[np.inf, 1.0], w20=[9.0, 9.0]), plan(16), [plan(20)]) == plan(20)
    assert unbeaten(contest(w16=[9.0, 9.0], w20=[np.inf, 1.0]), plan(16), [plan(20)]) == plan(16)
    assert unbeaten(contest(), plan(16), [plan(16)]) == plan(16), "nothing to compare, nothing is run"


def test_a_larger_cut_that_is_better_at_all_serves_the_smaller_ratio():
    better = unbeaten(contest(w16=[1.0, 1.0], w8=[0.9, 1.09]), plan(16), [], plan(8))
    assert better.edits == plan(8).edits and better.origin.ratio == 0.5, "the ratio that was asked for"
    assert unbeaten(contest(w16=[1.0, 1.0], w8=[1.0, 1.01]), plan(16), [], plan(8)) == plan(16)
    found = unbeaten(contest(w16=[1.0, 1.0], w20=[0.5, 0.5], w8=[0.6, 0.6]), plan(16), [plan(20)], plan(8))
    assert found == plan(20), "of all three the best"


def test_the_rivals_reach_the_ratio(planner):
    uniform, alone = simple(planner.study, planner._alone, 0.3)
    widths = {g.name: g.width for g in planner.study.channels.groups}
    assert uniform.met and alone.met
    shares = [1 - len(keep) / widths[name] for name, keep in uniform.keep.items()]
    assert max(shares) - min(shares) < 0.1
    (cut,) = [name for name, keep in alone.keep.items() if len(keep) < widths[name]]
    assert planner.study.damages is not None and cut in widths
    assert len(simple(planner.study, planner._alone, 0.9)) <= 1, "no group is worth that alone"


def test_rivals_that_promise_far_more_damage_than_the_plan_does_are_not_tried(planner, monkeypatch):
    rivals = simple(planner.study, planner._alone, 0.3)
    promised = [sum(float(planner.study.damages[g][len(keep)]) for g, keep in a.keep.items()) for a in rivals]
    assert hopeful(rivals, planner.study, max(promised)) == rivals
    assert hopeful(rivals, planner.study, 0.4 * min(promised)) == []
    assert hopeful(rivals, planner.study, float("nan")) == rivals == hopeful(rivals, planner.study, float("inf"))
    judged, own = [], planner.propose(0.3, planner.kinds[0])
    contest = Contest(lambda plan: judged.append(plan.edits) or np.full(4, 0.4 * min(promised)))
    monkeypatch.setattr(planner.looking, "contest", contest)
    assert planner._unbeaten(own, 0.3, None) == own and judged == [own.edits]


def test_groups_that_may_not_be_cut_are_no_rivals(subject):
    limited = Planner(subject, Settings(threads=1, round_to=1, exclude="^(a|b)$"))
    for allocation in simple(limited.study, limited._alone, 0.1):
        barred = [g for g in limited.study.channels.groups if not limited.candidates.limits.allows(g)]
        assert barred and all(len(allocation.keep.get(g.name, range(g.width))) == g.width for g in barred)


def test_a_plan_gives_way_to_one_group_alone(planner, monkeypatch):
    uniform, alone = (planner._plan(a, 0.3, {}) for a in simple(planner.study, planner._alone, 0.3))
    own = planner.better([p for kind in planner.kinds if (p := planner.propose(0.3, kind)) is not None])
    hurt = {own.edits: np.full(4, 1.0), uniform.edits: np.full(4, 2.0), alone.edits: np.full(4, 0.1)}
    monkeypatch.setattr(planner.looking, "contest", Contest(lambda plan: hurt[plan.edits]))
    wanted = own if own.edits == alone.edits else alone
    assert planner.plan(0.3).edits == wanted.edits


class Steps:
    """Planner whose plan of a ratio is that of the larger one where so said."""

    subject = None

    def __init__(self, taken=(), missed=()):
        self.taken, self.missed, self.asked = taken, missed, []

    def plan(self, ratio, larger=None, *, learns=False):
        self.asked.append(ratio)
        if ratio in self.missed:
            raise BudgetError(f"no {ratio}")
        own = plan(round(32 * (1 - ratio)))
        return own if ratio not in self.taken else replace(larger, origin=own.origin)


def test_plans_of_a_sweep_are_made_from_the_largest_down(monkeypatch):
    monkeypatch.setattr(sweeping, "with_structure", lambda plan, subject: plan)  # there is no model
    planner = Steps(taken=(0.25, 0.375), missed=(0.75,))
    plans, missed = _falling(planner, [0.25, 0.75, 0.5, 0.375, 0.125])
    assert planner.asked == [0.75, 0.5, 0.375, 0.25, 0.125]
    assert {ratio: of for ratio, (_, of) in plans.items()} == {0.5: 0.5, 0.375: 0.5, 0.25: 0.5, 0.125: 0.125}
    assert str(missed[0.75]) == "no 0.75"


def test_a_sweep_is_monotone_and_says_which_plan_serves_twice(subject, monkeypatch):
    monkeypatch.setattr(planning, "unbeaten", lambda contest, plan, rivals, larger=None: (
        plan if larger is None else replace(larger, origin=replace(larger.origin, ratio=plan.origin.ratio))
    ))  # fmt: skip
    first, second = api.sweep(subject, [0.2, 0.5], Settings(threads=1, round_to=1))
    assert first.plan.edits == second.plan.edits and first.macs_removed == second.macs_removed
    assert first.notes == ("ratio 0.2 takes the plan of 0.5, which does less damage than its own",) and not second.notes
    assert (first.plan.origin.ratio, second.plan.origin.ratio) == (0.2, 0.5)


def test_a_sweep_stops_where_a_ratio_is_out_of_reach(subject):
    results = api.sweep(subject, [0.2, 0.99], Settings(threads=1, round_to=1, min_width=8, repair="none"))
    assert next(results).macs_removed >= 0.19
    with pytest.raises(BudgetError, match="only"):
        next(results)
