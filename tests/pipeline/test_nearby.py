"""Plans near a plan: what is tried, and what is taken."""

from dataclasses import replace

import numpy as np

import onnxprune
from onnxprune import api
from onnxprune.errors import OutOfReachError
from onnxprune.pipeline import looking
from onnxprune.pipeline import planner as planning
from onnxprune.pipeline.compare import Contest
from onnxprune.pipeline.nearby import AFTER, BARREN, BROOD, Tried, nearby
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.settings import Settings
from onnxprune.plan import KeepChannels, PrunePlan
from tests.channels import surgery

NET = """(float[N,3,12,12] x) => (float[N,6] y)
    <float[16,3,3,3] a, float[16,16,3,3] b, float[16,16,3,3] c, float[6,16] v, float m = {3}>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) g = Conv<pads=[1,1,1,1]>(r, b) s = Relu(g)
      k = Conv<pads=[1,1,1,1]>(s, c) t = Relu(k) p = GlobalAveragePool(t) f = Flatten(p) z = Gemm<transB=1>(f, v) y = Mul(z, m) }"""
WANTED = np.array([2.0, -1.0])
"""Logarithms of the factors that do least damage."""


def made(factors):
    keep = (round(1000 * float(np.log(v))) + 100_000 * k for k, v in enumerate(factors.values(), 1))
    return PrunePlan("", (KeepChannels("g", 1 << 20, tuple(keep)),))


def hurt(plan):
    at = np.array(plan.edits[0].keep, float) / 1000 - (100, 200)
    return np.full((2, 1), float(np.square(at - WANTED).sum()))


def of_any_kind(kind, factors):
    return made(factors)


def test_the_search_goes_to_where_damage_is_least(monkeypatch):
    monkeypatch.setattr("onnxprune.pipeline.nearby.BARREN", 1000)
    contest = Contest(hurt)
    first = made({"a": 1.0, "b": 1.0})
    found = nearby(contest, {"mix": first}, ["a", "b"], of_any_kind, 40 * BROOD).plan
    assert hurt(found).mean() < 0.1 < 4 < hurt(first).mean()
    assert len(contest.judged()) == 1 + 40 * BROOD


def test_the_factors_of_another_ratio_come_first_and_fewer_after_them(monkeypatch):
    monkeypatch.setattr("onnxprune.pipeline.nearby.BARREN", 1000)
    first, known = made({"a": 1.0, "b": 1.0}), Tried("mix", made({"a": 9.0, "b": 9.0}), WANTED + 0.1, np.zeros((2, 1)))
    contest = Contest(hurt)
    found = nearby(contest, {"mix": first}, ["a", "b"], of_any_kind, 8 * BROOD, known=known)
    assert hurt(found.plan).mean() <= hurt(made(dict(zip("ab", np.exp(known.factors), strict=True)))).mean() < 0.1
    assert len(contest.judged()) == 2 + 8 * BROOD // AFTER
    other = nearby(Contest(hurt), {"channels": first}, ["a", "b"], of_any_kind, 8 * BROOD, known=known)
    assert hurt(other.plan).mean() > 0.1, "of a kind that is not asked for"


def test_a_plan_that_nothing_beats_is_kept():
    contest = Contest(lambda plan: np.full((2, 1), float(plan is not first)))
    first = made({"a": 1.0, "b": 1.0})
    assert nearby(contest, {"mix": first}, ["a", "b"], of_any_kind, 3 * BROOD).plan is first
    assert nearby(contest, {"mix": first}, ["a", "b"], lambda kind, factors: None, 3 * BROOD).plan is first
    assert nearby(Contest(hurt), {"mix": first}, ["a", "b"], of_any_kind, BROOD - 1).plan is first


def test_where_nothing_is_won_it_is_left_at_that():
    contest = Contest(lambda plan: np.full((2, 1), 1.0 if plan is first else 0.97))
    first = made({"a": 1.0, "b": 1.0})
    found = nearby(contest, {"mix": first}, ["a", "b"], of_any_kind, 9 * BROOD).plan
    assert found is first  # three percent are not enough
    assert len(contest.judged()) == 1 + (1 + BARREN) * BROOD  # the first brood is better by a little


def kinds_asked(penalty, broods):
    """(what was found, the kinds that were asked for, in order) where the kind "mix" does so much more damage."""
    asked = []

    def propose(kind, factors):
        asked.append(kind)
        return replace(made(factors), seed=int(kind == "channels"))

    starts = {kind: propose(kind, {"a": 1.0, "b": b}) for kind, b in (("mix", 1.0), ("channels", 1.001))}
    asked.clear()
    contest = Contest(lambda plan: hurt(plan) + penalty * (1 - plan.seed))
    return nearby(contest, starts, ["a", "b"], propose, broods * BROOD).plan, asked


def test_kinds_that_begin_alike_take_their_turns_the_best_first(monkeypatch):
    monkeypatch.setattr("onnxprune.pipeline.nearby.ALIKE", 2.0)
    found, asked = kinds_asked(penalty=4, broods=20)
    turn = asked.index("mix")
    assert found.seed == 1 and BARREN * BROOD < turn < len(asked) <= 20 * BROOD and set(asked[turn:]) == {"mix"}


def test_a_kind_that_begins_worse_is_left_out():
    found, asked = kinds_asked(penalty=0.6, broods=20)
    assert found.seed == 1 and set(asked) == {"channels"}


def test_a_kind_out_of_reach_under_some_factors_is_passed_over(monkeypatch):
    made = planner()
    monkeypatch.setattr(planning, "NOTHING_LOST", 0.0)
    first, real = made.plan(0.8), made.propose
    few = len(made.judged())

    def propose(ratio, kind, factors=planning.NO_FACTORS):
        if factors:
            raise OutOfReachError("not with these", removed=0.1)
        return real(ratio, kind)

    monkeypatch.setattr(made, "propose", propose)
    assert made.plan(0.8).edits and len(made.judged()) == few and first.edits


def images(count):
    """Of several colours, so that they are of several classes."""
    rng = np.random.default_rng(1)
    return (2 * rng.standard_normal((count, 3, 1, 1)) + rng.standard_normal((count, 3, 12, 12))).astype(np.float32)


def planner(samples=512, **given):
    subject = api.open_model(surgery.model_of(NET), calibration=images(samples))
    return Planner(subject, Settings(threads=1, **given))


def test_near_plans_are_tried_where_judges_can_tell_and_something_is_lost(monkeypatch):
    made = planner()
    assert made.looking.views.count > 0 and made.looking.tries(8) == 8
    tried, real = [], planning.nearby
    monkeypatch.setattr(planning, "nearby", lambda *args, **more: tried.append(args) or real(*args, **more))
    first = made.plan(0.8)
    assert not tried  # hardly an answer changes
    monkeypatch.setattr(planning, "NOTHING_LOST", 0.0)
    monkeypatch.setattr("onnxprune.pipeline.nearby.SPREAD", 3.0)
    few, plan = len(made.judged()), made.plan(0.8)
    assert len(made.judged()) > few and first.edits in {p.edits for p in tried[0][1].values()}
    judged = {p.edits: damage for p, damage in made.judged()}
    assert judged[plan.edits] <= judged[first.edits]


def test_a_plan_depends_on_its_ratio_alone_unless_it_is_to_learn(monkeypatch):
    monkeypatch.setattr(planning, "NOTHING_LOST", 0.0)
    monkeypatch.setattr("onnxprune.pipeline.nearby.SPREAD", 3.0)
    made, known, real = planner(methods=("channels",)), [], planning.nearby
    alone = planner(methods=("channels",)).plan(0.7)
    monkeypatch.setattr(planning, "nearby", lambda *args, **more: known.append(more["known"]) or real(*args, **more))
    made.plan(0.8)
    assert made.plan(0.7).edits == alone.edits and known == [None, None]
    made._known = found = Tried("channels", alone, np.ones(3), np.zeros((2, 1)))
    made.plan(0.7, learns=True)
    made.plan(0.7)
    assert known[2] is found and known[3] is None


def test_a_factor_counts_for_the_group_that_it_names():
    made = planner(samples=128)
    groups = [g.name for g in made.candidates.net.channels.groups]
    dear = made.propose(0.5, "channels", {groups[0]: 1e6})
    assert groups[0] not in dear.keep() and groups[0] in made.propose(0.5, "channels", {groups[0]: 1e-6}).keep()


def test_few_or_dear_samples_are_looked_at_as_they_are(monkeypatch):
    assert not planner(samples=64).looking.views
    monkeypatch.setattr(looking, "VIEW_MACS", 1e6)
    assert not planner().looking.views and planner().looking.tries(8) == 0


def test_dear_plans_are_fitted_on_half_the_samples(monkeypatch):
    monkeypatch.setattr(looking, "VIEW_MACS", 1e6)
    usual = planner().looking.contest.compared
    monkeypatch.setattr(looking, "DEAR_MACS", 1e6)
    dear = planner().looking.contest.compared
    fitted = [sum(len(feeds["x"]) for feeds in c.mending.batches) for c in (usual, dear)]
    assert fitted == [looking.COMPARED, looking.COMPARED // 2]


def test_the_same_call_gives_the_same_model():
    one, two = (onnxprune.prune(surgery.model_of(NET), 0.7, calibration=images(256), threads=t) for t in (1, 2))
    assert one.output_digest == two.output_digest


def test_the_plan_that_is_found_is_proposed_again_until_the_target_holds(monkeypatch):
    """What it costs is known by the model of costs only."""
    monkeypatch.setattr(planning, "NOTHING_LOST", 0.0)
    subject, near, asked = api.open_model(surgery.model_of(NET), calibration=images(512)), [], []
    real = Planner.propose

    def found(contest, starts, names, propose, tries, **rest):
        near.append(propose("channels", dict.fromkeys(names, 1.0) | {names[0]: 1e-6}))
        hurt = contest.damages([near[0]])[0]
        return Tried("channels", near[0], np.log([1e-6, *[1.0] * (len(names) - 1)]), hurt)

    def propose(self, ratio, kind, factors=planning.NO_FACTORS):
        asked.append((ratio, dict(factors)))
        return real(self, ratio, kind, factors)

    monkeypatch.setattr(planning, "nearby", found)
    monkeypatch.setattr(Planner, "propose", propose)
    whole = len(subject.model.SerializeToString())
    result = onnxprune.reach(subject, onnxprune.Target("size_mb", 0.5 * whole / 1e6), Settings(threads=1))
    again = [ratio for ratio, factors in asked if 1e-6 in np.round(list(factors.values()), 12)]
    assert again[0] == again[1] == near[0].origin.ratio and result.model.ByteSize() <= 0.5 * whole
