"""The table of criteria: what an entry says it needs is what it sees, and what is missing is named before any work."""

import numpy as np
import pytest

from onnxprune import api, prune
from onnxprune.decide import criteria
from onnxprune.decide.criteria import CRITERIA, NEEDS, criterion
from onnxprune.decide.selection import Choice
from onnxprune.errors import UsageError
from tests.channels.surgery import model_of

NET = """(float[N,3,6,6] x) => (float[] y) <float[8,3,3,3] a, float[8] s, float[8,8,3,3] b, float[4,8,1,1] c>
    { h = Conv<pads=[1,1,1,1]>(x, a, s) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) t = Relu(i) y = Conv(t, c) }"""
SAMPLES = np.random.default_rng(0).standard_normal((40, 3, 6, 6)).astype(np.float32)


@pytest.fixture
def mine():
    """Enters a criterion for one test, whose scores are the channels' numbers. Returns the evidence it was shown."""

    def enter(answer=lambda group, evidence: np.arange(float(group.width)), **says):
        shown = {}

        @criterion("mine", help="of a test", **says)
        def judge(group, evidence):
            shown[group.name] = evidence
            return answer(group, evidence)

        return shown

    yield enter
    CRITERIA.pop("mine", None)


@pytest.mark.parametrize("allocation", ["uniform", "global", "adaptive"])
def test_one_s_own_criterion_gets_the_moments_that_it_needs(mine, allocation):
    shown = mine(needs="moments")
    result = prune(model_of(NET), 0.4, calibration=SAMPLES, criterion="mine", allocation=allocation, round_to=1)
    assert result.plan.settings["criterion"] == "mine" and set(shown) == {"a", "b"}
    read = {"a": "r", "b": "t"}
    for group, evidence in shown.items():
        moments = evidence.moments[read[group]]
        assert moments.square.shape == (8,) and (moments.square > 0).all()
    for cut in result.plan.narrowed():  # scores are the numbers: the first ones go
        assert cut.keep == tuple(range(8 - len(cut.keep), 8))


NEEDED = {
    "moments": lambda e: len(e.moments) == 2,
    "curves": lambda e: e.curves is not None and set(e.energies) == {"a", "b"},
    "likeness": lambda e: e.likeness is not None,
    "samples": lambda e: True,
}


@pytest.mark.parametrize("need", NEEDED)
def test_what_is_needed_is_gathered_and_nothing_else(mine, need):
    shown = mine(needs={need})
    prune(model_of(NET), 0.4, calibration=SAMPLES, criterion="mine", allocation="uniform", round_to=1, repair="none")
    assert len(shown) == 2
    for evidence in shown.values():
        assert NEEDED[need](evidence)
        assert not any(there(evidence) for other, there in NEEDED.items() if other not in (need, "samples"))


def test_gradients_reach_one_s_own_criterion(mine):
    pytest.importorskip("torch")
    shown = mine(lambda group, e: np.abs(e.gradients[group.name].sums).max(0), needs="gradients")
    prune(model_of(NET), 0.4, calibration=SAMPLES, criterion="mine", allocation="uniform", round_to=1, threads=1)
    for name, evidence in shown.items():
        found = evidence.gradients[name]
        assert found.sums.shape == found.squares.shape and found.sums.shape[1] == 8 and (found.squares > 0).any()


def test_samples_are_needed_unless_an_entry_says_what_it_does_without(mine):
    mine(needs="moments")
    with pytest.raises(UsageError, match="--criterion mine needs samples; give --calib"):
        prune(model_of(NET), 0.4, criterion="mine")
    shown = mine(needs="moments", without_samples="weights alone")
    assert prune(model_of(NET), 0.4, criterion="mine", round_to=1).plan.keep()
    assert [dict(e.moments) for e in shown.values()] == [{}, {}]


@pytest.mark.parametrize("needs", [{"sklearn"}, {"gradients"}])
def test_a_package_that_is_missing_is_named_before_any_work(mine, monkeypatch, needs):
    mine(needs=needs)
    monkeypatch.setattr(criteria, "find_spec", lambda module: None)
    (package,) = (NEEDS[need].package for need in needs)
    with pytest.raises(UsageError, match=f"needs {package.name} - pip install {package.name}"):
        api.Settings(criterion="mine")


def test_what_is_no_score_a_channel_is_refused(mine):
    mine(lambda group, evidence: np.zeros(3))
    with pytest.raises(UsageError, match=r"'mine': scores of shape \(3,\) for group 'a'; return one a channel, \(8,\)"):
        prune(model_of(NET), 0.4, criterion="mine")


@pytest.mark.parametrize("allocation", ["uniform", "adaptive"])
def test_a_choice_of_one_s_own_is_made_for_the_width(mine, allocation):
    """Not nested: the even channels of four, the last ones of any other number."""

    def even(width):
        return np.arange(0, 8, 2) if width == 4 else np.arange(8 - width, 8)

    mine(lambda group, evidence: Choice(np.arange(8), even))
    result = prune(
        model_of(NET), 0.6, calibration=SAMPLES, criterion="mine", allocation=allocation, round_to=4, methods=("channels",)
    )  # fmt: skip
    assert {cut.keep for cut in result.plan.narrowed()} == {(0, 2, 4, 6)}


def test_names_that_are_not_there():
    with pytest.raises(UsageError, match="unknown criterion 'elimnation'; did you mean elimination"):
        api.Settings(criterion="elimnation")
    with pytest.raises(UsageError, match="unknown need 'moment'; did you mean moments"):
        criterion("mine", help="", needs="moment")
    assert "mine" not in CRITERIA


@pytest.mark.parametrize("name", CRITERIA)
def test_every_entry_says_what_it_is(name):
    entry = CRITERIA[name]
    assert entry.name == name and entry.help and "\n" not in entry.help and entry.needs <= set(NEEDS)
    assert entry.without_samples is None or any(NEEDS[need].samples for need in entry.needs)


def test_which_criteria_need_samples():
    needed = [name for name, entry in CRITERIA.items() if entry.needs_samples]
    assert needed == ["elimination", "lasso", "similarity", "similarity-independent", "taylor", "fisher", "obd"]
    assert [not CRITERIA[criteria.BY_DEFAULT[there]].needs_samples or there for there in (True, False)] == [True, True]
