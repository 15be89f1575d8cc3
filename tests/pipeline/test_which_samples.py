"""Which samples serve what: nothing is reported, or decided, on the samples that it was fitted on.

The samples say it themselves. Each part of them (learn, judge, held) is made so that whoever looks at another part
comes to another outcome; that holds whatever the functions in between are called.
"""

import json

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.pipeline.planner import Planner
from onnxprune.plan import Factorize, KeepChannels, PrunePlan
from onnxprune.samples.partition import Partition
from tests.channels import surgery

SMALL = """(float[N,3,5,5] x) => (float[N,4] y) <float[6,3,3,3] w, float[6] b, float[4,6] v>
    { h = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, v) }"""
ALL = {"learn", "judge", "held"}


def numbered(model, count, seed=0, **shapes):
    """Part -> the numbers of the samples in it, for so many samples of these shapes."""
    marks = {
        name: np.arange(count, dtype=np.float32).reshape(-1, *[1] * len(shape)) * np.ones(shape, np.float32)
        for name, shape in shapes.items()
    }
    parted, first = Partition.of(api.open_model(model, calibration=marks).calibration, seed), next(iter(shapes))
    return {
        part: {int(v.flat[0]) for feeds in getattr(parted, part).batches(1) for v in feeds[first]}
        for part in ("fit", *ALL)
    }


@pytest.mark.parametrize("seed", [0, 3])
def test_the_parts_are_disjoint_and_a_quarter_is_held_back(seed):
    found = numbered(surgery.model_of(SMALL), 64, seed, x=(3, 5, 5))
    assert {k: len(v) for k, v in found.items()} == {"fit": 48, "learn": 36, "judge": 12, "held": 16}
    assert found["learn"] | found["judge"] == found["fit"] and found["fit"] | found["held"] == set(range(64))


HALF = (KeepChannels("w", 6, (0, 2, 3)),)
REPAIRS = {  # name: (repair, whether channels went by likeness, edits)
    "refit": ("refit", False, HALF),
    "statistics": ("statistics", False, HALF),
    "merge": ("merge", False, HALF),
    "statistics, of what was merged": ("statistics", True, HALF),
    "factors alone": ("none", False, (Factorize("h", "channel", 2),)),
    "factors refitted": ("refit", False, (Factorize("h", "channel", 2),)),
}


def roles(repair, by_likeness, edits, seed=3):
    """(the samples that change the file, those that change only what is said of it): each is changed in its turn."""
    model = surgery.model_of(SMALL)
    x = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32)

    def outcome(samples):
        subject = api.open_model(model, calibration=samples)
        plan = PrunePlan(subject.digest, edits, by_likeness=by_likeness)
        result = api.apply_plan(
            subject, plan, api.Settings(repair=repair, seed=seed, epochs=1, threads=1, metadata=False)
        )
        assert result.fidelity.samples == 1 and result.fidelity.held_out
        return result.model.SerializeToString(), result.fidelity

    file, said = outcome(x)
    makes, judges = set(), set()
    for k in range(len(x)):
        other = x.copy()
        other[k] = 2 * other[k] + 1
        changed = outcome(other)
        makes |= {k} if changed[0] != file else set()
        judges |= {k} if changed[0] == file and changed[1] != said else set()
    expected = numbered(model, 4, seed, x=(3, 5, 5))
    return {"fit": makes, "held": judges}, {k: expected[k] for k in ("fit", "held")}


@pytest.mark.parametrize("name", REPAIRS)
def test_every_sample_makes_the_model_or_judges_it_and_none_does_both(name):
    found, expected = roles(*REPAIRS[name])
    assert found == expected


def test_one_sample_alone_is_both_and_says_so():
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 5)).astype(np.float32)
    result = api.prune(surgery.model_of(SMALL), 0.5, calibration=x, round_to=2)
    assert result.fidelity.samples == 1 and not result.fidelity.held_out


def test_what_is_verified_is_what_was_held_back(tmp_path, capsys):
    onnx.save(surgery.model_of(SMALL), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(0).standard_normal((16, 3, 5, 5)).astype(np.float32))
    model, out, plan = (str(tmp_path / n) for n in ("m.onnx", "p.onnx", "plan.json"))
    samples = ["--calib", str(tmp_path / "s.npz"), "--json"]
    assert main([model, "--ratio", "0.5", "--seed", "3", "--plan-out", plan, "-o", out, *samples]) == 0
    made = json.loads(capsys.readouterr().out)["fidelity"]
    assert main(["verify", model, out, "--plan", plan, *samples]) == 0
    assert json.loads(capsys.readouterr().out)["fidelity"] == made and made["samples"] == 4


# ---- what decides ---------------------------------------------------------------------------------------------

TRUNK = """h{k} = Conv(x{k}, w{k}) i{k} = Conv(h{k}, a{k}) j{k} = Relu(i{k}) b{k} = Conv(j{k}, c{k}) s{k} = Add(b{k}, h{k})
    t{k} = Relu(s{k}) p{k} = Conv(t{k}, v{k}) q{k} = Mul(p{k}, g{k})"""
WEIGHTS = "float[6,8,1,1] w{k}, float[6,6,1,1] a{k}, float[6,6,1,1] c{k}, float[4,6,1,1] v{k}"
TWINS = f"""(float[N,8,3,3] x1, float[N,8,3,3] x2, float[N,1,1,1] g1, float[N,1,1,1] g2) => (float[] y)
    <{WEIGHTS.format(k=1)}, {WEIGHTS.format(k=2)}>
    {{ {TRUNK.format(k=1)} {TRUNK.format(k=2)} y = Concat<axis=1>(q1, q2) }}"""
"""Two trunks with a residual block each; `g1` and `g2` say how much of each reaches the output."""
COUNT = 48


@pytest.fixture(scope="module")
def twins():
    """(the model, the parts of its samples): both trunks have the same weights."""
    model = surgery.model_of(TWINS)
    stored = {t.name: t for t in model.graph.initializer}
    for name in ("w", "a", "c", "v"):
        stored[f"{name}2"].raw_data = stored[f"{name}1"].raw_data
    shapes = {"x1": (8, 3, 3), "x2": (8, 3, 3), "g1": (1, 1, 1), "g2": (1, 1, 1)}
    return model, numbered(model, COUNT, **shapes)


def samples(found, gates, plain=()):
    """Samples whose gates are those of their part; in the parts `plain` the first trunk always reads the same."""
    x1, x2 = (np.random.default_rng(k).standard_normal((COUNT, 8, 3, 3)).astype(np.float32) for k in (1, 2))
    g1, g2 = np.ones((2, COUNT, 1, 1, 1), np.float32)
    for part, (first, second) in gates.items():
        at = sorted(found[part])
        g1[at], g2[at] = first, second
        if part in plain:
            x1[at] = np.linspace(-1, 1, 8, dtype=np.float32)[:, None, None]
    return {"x1": x1, "x2": x2, "g1": g1, "g2": g2}


def touched(plan):
    """Which trunk each edit is in."""
    return {e.group[-1] for e in plan.narrowed()} | {d.block[-1] for d in plan.drops()}


NOT_SEEN_BY_JUDGES = {"learn": (3, 1), "judge": (0, 1), "held": (1, 0)}
"""What the first trunk does matters most to those that learn, and not at all to those that judge."""


@pytest.mark.parametrize("methods", [("channels",), ("blocks",)], ids="+".join)
def test_damage_is_what_the_judges_see(twins, methods):
    model, found = twins
    subject = api.open_model(model, calibration=samples(found, NOT_SEEN_BY_JUDGES))
    settings = api.Settings(methods=methods, round_to=1)
    assert touched(api.make_plan(subject, api.Ratio(0.2), settings)) == {"1"}


def narrowed(subject, trunk, width=2):
    """A plan that narrows the block of one trunk."""
    group = next(g for g in subject.channels.groups if any(s.tensor == f"a{trunk}" for s in g.weights))
    return PrunePlan(subject.digest, (KeepChannels(group.name, group.width, tuple(range(width))),))


@pytest.mark.parametrize("repair", ["refit", "statistics", "none"])
def test_plans_are_compared_by_what_the_judges_see(twins, repair):
    model, found = twins
    subject = api.open_model(model, calibration=samples(found, NOT_SEEN_BY_JUDGES))
    planner = Planner(subject, api.Settings(methods=("channels",), criterion="l1", allocation="uniform", repair=repair))
    plans = [narrowed(subject, trunk) for trunk in "12"]
    assert [touched(planner.better(order)) for order in (plans, plans[::-1])] == [{"1"}] * 2


EASY_TO_JUDGE = {"learn": (1, 0.3), "judge": (1, 0.3), "held": (0, 1)}
"""The first trunk matters more; but all judges show it one picture, which a repair fitted on them learns by heart."""


@pytest.mark.parametrize("what", ["block", "plan"])
def test_nothing_is_repaired_on_the_judges(twins, what):
    model, found = twins
    subject = api.open_model(model, calibration=samples(found, EASY_TO_JUDGE, plain=("judge",)))
    if what == "block":
        settings = api.Settings(methods=("blocks",))
        assert touched(api.make_plan(subject, api.Ratio(0.2), settings)) == {"2"}
    else:
        planner = Planner(subject, api.Settings(methods=("channels",), criterion="l1", allocation="uniform"))
        assert touched(planner.better([narrowed(subject, 1), narrowed(subject, 2)])) == {"2"}


def test_sensitivities_are_measured_on_what_was_held_back(twins):
    model, found = twins
    gates = {"learn": (1, 1), "judge": (1, 1), "held": (0, 1)}
    rows = onnxprune.sensitivity(model, samples(found, gates), widths=[0.5]).rows
    seen = {(r.name[-1], p.damage > 1e-6) for r in rows for p in r.points}
    assert len(rows) > 4 and seen == {("1", False), ("2", True)}


LEARNT = {  # criterion: what it keeps of four channels when 0 and 1 are always 0
    "activation": (2, 3),
    "elimination": (2, 3),
    "lasso": (2, 3),
    "similarity": (0, 3),  # the first two are one cluster, and the third is nearest to it
}


@pytest.mark.parametrize("criterion", LEARNT)
def test_channels_are_ranked_by_those_that_learn(criterion):
    if criterion == "lasso":
        pytest.importorskip("sklearn")
    model = surgery.model_of(
        "(float[N,4,3,3] x) => (float[] y) <float[4,4,1,1] w, float[3,4,1,1] v> { h = Conv(x, w) y = Conv(h, v) }"
    )
    for t in model.graph.initializer:
        if t.name == "w":
            t.raw_data = np.eye(4, dtype=np.float32).tobytes()
    parts = numbered(model, COUNT, x=(4, 3, 3))
    x = np.random.default_rng(0).standard_normal((COUNT, 4, 3, 3)).astype(np.float32)
    x[:, 3] *= 1.5
    x[sorted(parts["learn"]), :2] = 0
    x[sorted(parts["judge"] | parts["held"]), 2:] = 0
    settings = api.Settings(criterion=criterion, allocation="uniform", round_to=1)
    assert api.make_plan(api.open_model(model, calibration=x), api.Ratio(), settings).keep() == {"w": LEARNT[criterion]}


def test_a_drop_is_measured_on_what_was_held_back():
    """On those samples nothing reaches the output, so every cut keeps what the original says of them."""
    model = surgery.model_of("""(float[N,6] x, float[N,1] g) => (float[N,3] y) <float[6,8] w, float[8,3] v>
        { h = Gemm(x, w) r = Relu(h) k = Gemm(r, v) y = Mul(k, g) }""")
    found = numbered(model, COUNT, x=(6,), g=(1,))
    g = np.ones((COUNT, 1), np.float32)
    g[sorted(found["held"])] = 0
    given = {"x": np.random.default_rng(0).standard_normal((COUNT, 6)).astype(np.float32), "g": g}
    subject = api.open_model(model, calibration=given)
    settings = api.Settings(criterion="l1", allocation="uniform", repair="none", round_to=1)
    result = api.reach(subject, api.Target("max_drop", 1), settings)
    assert result.macs_removed > 0.8 and "100 before, 100 after" in result.notes[0]


@pytest.mark.parametrize(("count", "held", "trial"), [(64, 8, 8), (16, 2, 2), (8, 2, 0)])
def test_what_judges_training_is_half_of_what_was_held_back(count, held, trial):
    """Nothing is reported on it, and where a half would be one sample, there is none."""
    x = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((3, 5, 5), np.float32)
    parts = Partition.of(api.open_model(surgery.model_of(SMALL), calibration=x).calibration, 0)
    apart = parts.on_trial(0)
    seen = {
        name: {int(v.flat[0]) for feeds in part.batches(1) for v in feeds["x"]}
        for name, part in (("before", parts.held), ("held", apart.held), ("trial", apart.trial))
        if part is not None
    }
    judges = seen.get("trial", set())
    assert (len(seen["held"]), len(judges)) == (held, trial)
    assert seen["held"] | judges == seen["before"] and not seen["held"] & judges
    assert apart.fit is parts.fit
