"""The adaptive allocation: the budget is met, and hardly any other choice of widths does less damage."""

import itertools

import numpy as np
import pytest

from onnxprune import api
from onnxprune.api import open_model
from onnxprune.channels import find_channels
from onnxprune.decide.allocation import allocate
from onnxprune.decide.limits import Ladder, Limits
from onnxprune.errors import BudgetError, OutOfReachError, UsageError
from onnxprune.graph.model import Graph
from onnxprune.graph.shapes import observe
from onnxprune.measure.cost import CostModel
from onnxprune.pipeline.asked import limits_of
from onnxprune.pipeline.planner import Planner
from onnxprune.pipeline.settings import Settings
from tests.channels.surgery import feeds_of, model_of

CHAIN = """(float[N,3,8,8] x) => (float[] y)
    <float[8,3,3,3] a, float[8,8,3,3] b, float[8,8,3,3] c, float[4,8,1,1] d>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)
      j = Conv<pads=[1,1,1,1]>(s, c) t = Relu(j) y = Conv(t, d) }"""
LIMITS = Limits(round_to=1)


@pytest.fixture(scope="module")
def chain():
    model = model_of(CHAIN)
    graph = Graph(model)
    channels = find_channels(graph, observe(graph, feeds_of(model, N=1)))
    assert [g.width for g in channels.groups] == [8, 8, 8]
    return channels, CostModel(graph, channels, "macs")


def curve(rng, kind):
    """Damage at widths 0..8, falling: smooth, or with a flat stretch behind a cliff."""
    steps = rng.uniform(0, 1, 8) ** 3
    if kind == "cliff":
        steps[rng.integers(2, 6) :] = 0
    return np.append(np.cumsum(steps)[::-1], 0.0)


def total(channels, damages, widths):
    return sum(damages[g.name][w] for g, w in zip(channels.groups, widths, strict=True))


@pytest.mark.parametrize("kind", ["smooth", "cliff"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(4))
def test_hardly_any_choice_of_widths_does_less_damage(chain, kind, ratio, seed):
    channels, cost = chain
    rng = np.random.default_rng(seed)
    damages = {g.name: curve(rng, kind) for g in channels.groups}
    scores = {g.name: np.arange(8.0) for g in channels.groups}
    found = allocate(channels, scores, cost, ratio, how="adaptive", limits=LIMITS, damages=damages)
    assert found.removed >= ratio and found.met
    widths = [len(found.keep.get(g.name, range(8))) for g in channels.groups]
    best, worst = np.inf, 0.0
    for candidate in itertools.product(range(1, 9), repeat=3):
        alive = channels.alive({g.name: range(8 - w, 8) for g, w in zip(channels.groups, candidate, strict=True)})
        if cost.removed(alive) >= ratio:
            value = total(channels, damages, candidate)
            best, worst = min(best, value), max(worst, value)
    assert total(channels, damages, widths) <= best + 0.15 * (worst - best)


def test_what_does_no_damage_goes_first(chain):
    channels, cost = chain
    damages = {g.name: np.linspace(1, 0, 9) for g in channels.groups}
    free = channels.groups[1].name
    damages[free] = np.zeros(9)
    scores = {g.name: np.arange(8.0) for g in channels.groups}
    found = allocate(channels, scores, cost, 0.4, how="adaptive", limits=LIMITS, damages=damages)
    assert set(found.keep) == {free} and found.keep[free] == tuple(range(8 - len(found.keep[free]), 8))


def test_steps_that_are_not_needed_are_taken_back(chain):
    channels, cost = chain
    scores = {g.name: np.arange(8.0) for g in channels.groups}
    damages = {g.name: np.linspace(1, 0, 9) for g in channels.groups}
    found = allocate(channels, scores, cost, 0.5, how="adaptive", limits=LIMITS, damages=damages)
    for g in channels.groups:
        wider = dict(found.keep) | {g.name: range(8 - len(found.keep.get(g.name, range(8))) - 1, 8)}
        if g.name in found.keep and len(found.keep[g.name]) < 8:
            assert cost.removed(channels.alive(wider)) < 0.5


def test_adaptive_widths_are_allowed_ones(chain):
    channels, cost = chain
    limits = Limits(round_to=4, exclude="^c$")
    scores = {g.name: np.arange(8.0) for g in channels.groups}
    damages = {g.name: np.linspace(1, 0, 9) for g in channels.groups}
    found = allocate(channels, scores, cost, 0.3, how="adaptive", limits=limits, damages=damages)
    assert {len(k) for k in found.keep.values()} == {4} and "c" not in found.keep
    assert Ladder(channels.groups[0], np.arange(8.0), limits).widths == [4, 8]


def test_out_of_reach_goes_as_far_as_it_can(chain):
    channels, cost = chain
    scores = {g.name: np.arange(8.0) for g in channels.groups}
    damages = {g.name: np.linspace(1, 0, 9) for g in channels.groups}
    found = allocate(
        channels, scores, cost, 0.9, how="adaptive", limits=Limits(round_to=1, min_width=6), damages=damages
    )
    assert not found.met and {len(k) for k in found.keep.values()} == {6}


def test_adaptive_needs_damages(chain):
    channels, cost = chain
    with pytest.raises(UsageError, match="needs samples"):
        allocate(channels, {g.name: np.arange(8.0) for g in channels.groups}, cost, 0.5, how="adaptive")


@pytest.mark.parametrize(
    ("width", "on_cpu", "on_gpu"), [(4, 1, 1), (8, 4, 4), (48, 4, 4), (64, 4, 32), (128, 8, 32), (256, 16, 32)]
)
def test_widths_that_suit_the_processor(width, on_cpu, on_gpu):
    text = f"""(float[1,3,4,4] x) => (float[] y) <float[{width},3,1,1] w, float[5,{width},1,1] v>
        {{ h = Conv(x, w) r = Relu(h) y = Conv(r, v) }}"""
    [group] = open_model(model_of(text)).channels.groups
    assert (Limits().step(group), Limits(on_gpu=True).step(group)) == (on_cpu, on_gpu)
    steps = {of: limits_of(Settings(of=of, providers=("cuda",))).step(group) for of in ("macs", "latency")}
    assert steps == {"macs": on_gpu, "latency": on_cpu}


@pytest.mark.parametrize("how", ["uniform", "global"])
def test_widths_too_coarse_for_a_ratio_give_the_next_that_reaches_it(how):
    """Four layers of 8 channels in steps of 4: 35% falls between two widths, and is no reason to give up."""
    text = """(float[N,3,8,8] x) => (float[] y) <float[8,3,3,3] a, float[8,8,3,3] b, float[8,8,3,3] c, float[8,8,3,3] d,
        float[4,8,1,1] e> { h = Conv<pads=[1,1,1,1]>(x, a) i = Conv<pads=[1,1,1,1]>(h, b) r = Relu(i)
        j = Conv<pads=[1,1,1,1]>(r, c) s = Relu(j) k = Conv<pads=[1,1,1,1]>(s, d) y = Conv(k, e) }"""
    subject = api.open_model(model_of(text))
    for ratio in np.arange(0.05, 0.7, 0.05):
        removed = {}
        for best_effort in (False, True):
            settings = api.Settings(allocation=how, round_to=4, best_effort=best_effort)
            plan = api.make_plan(subject, api.Ratio(float(ratio)), settings)
            cut = api.apply_plan(subject, plan, api.Settings(repair="none"))
            removed[best_effort] = cut.macs_removed
        assert removed[False] >= ratio - 0.01, "what was asked for, or more"
        assert abs(removed[True] - ratio) <= abs(removed[False] - ratio) + 1e-9, "the closest"
    with pytest.raises(BudgetError, match="ask for less"):
        api.make_plan(subject, api.Ratio(0.95), api.Settings(allocation=how, round_to=4))


def test_a_hair_below_the_ratio_is_met_where_the_next_width_overshoots():
    """One group of 32 in steps of 16: half of it removes a hair less than half, and is what was meant."""
    samples = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    text = """(float[N,3,8,8] x) => (float[] y, float[] s) <float[32,3,3,3] a, float[8,32,3,3] b, float[1,3,1,1] c>
        { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) y = Conv<pads=[1,1,1,1]>(r, b) s = Conv(x, c) }"""
    result = api.prune(model_of(text), 0.5, calibration=samples, round_to=8, repair="none")
    assert 0.49 <= result.macs_removed < 0.5, "16 of 32"


class Kinds(Planner):
    """A planner whose plans of two kinds remove what is said here."""

    kinds = ("channels", "mix")
    shares: dict[str, float]

    def propose(self, ratio, kind):
        if self.shares[kind] < ratio and not self.settings.best_effort:
            raise OutOfReachError(f"only {self.shares[kind]:.0%}", self.shares[kind])
        return kind

    def gain(self, plan):
        return 1 / (1 - self.shares[plan])

    def better(self, plans):
        return plans[0]


@pytest.mark.parametrize("shares", [(0.3, 0.6), (0.6, 0.3)])
def test_best_effort_goes_as_far_as_any_plan(shares):
    subject = open_model(model_of(CHAIN))
    planner = Kinds(subject, Settings(best_effort=True))
    planner.shares = dict(zip(planner.kinds, shares, strict=True))
    most = planner.kinds[int(np.argmax(shares))]
    assert planner.plan(0.9) == most
    assert planner.plan(0.2) == "channels", "both reach it: the better one"
    assert planner.plan(0.5) == most, "one reaches it"
    planner.settings = Settings()
    with pytest.raises(OutOfReachError, match="only 60%"):
        planner.plan(0.9)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 1),  # every channel of `a` saves nine times what one of `b` saves
        (1e4, 1),  # numbers that are large say nothing: a group's own sum is the measure
        (1, 1e4),
    ],
)
def test_one_threshold_for_all_goes_by_the_share_of_a_score_and_by_what_it_saves(first, second):
    text = """(float[N,4,12,12] x) => (float[] y) <float[16,4,3,3] a, float[16,16,1,1] b, float[4,16,1,1] c>
        { h = Conv<pads=[1,1,1,1]>(x, a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) i = Conv(p, b) y = Conv(i, c) }"""
    model = model_of(text)
    for t in model.graph.initializer:
        if t.name in "ab":
            scores = (first if t.name == "a" else second) * np.linspace(0.5, 1.5, 16)
            value = np.ones(tuple(t.dims)) * scores.reshape(-1, 1, 1, 1)
            t.raw_data = value.astype(np.float32).tobytes()
    settings = Settings(criterion="l1", allocation="global", round_to=1)
    assert set(api.make_plan(open_model(model), api.Ratio(0.3), settings).keep()) == {"a"}
