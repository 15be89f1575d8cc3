"""The same bytes wherever trials are made: sensitivity, plans and sweeps through an engine that pickles everything."""

import pickle

import numpy as np
import pytest

import onnxprune
from onnxprune import Settings
from onnxprune.elsewhere.backends import BACKENDS, Backend
from onnxprune.elsewhere.tasks import evaluate
from onnxprune.measure.stepwise import Runner, Stops
from onnxprune.pipeline.opened import open_model
from tests.channels.surgery import model_of

TEXT = """(float[N,4,6,6] x) => (float[N,3] y)
<float[16,4,3,3] w, float[16] c, float[16,16,3,3] v, float[16] d, float[16,16,3,3] u, float[3,16] g>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, c)  b = Relu(a)  e = Conv <pads = [1, 1, 1, 1]> (b, v, d)  h = Relu(e)
  k = Conv <pads = [1, 1, 1, 1]> (h, u)  s = Add(b, k)  r = Relu(s)  p = GlobalAveragePool(r)  f = Flatten(p)
  y = Gemm <transB = 1> (f, g) }"""
X = np.random.default_rng(0).standard_normal((40, 4, 6, 6)).astype(np.float32)


@pytest.fixture
def sent(monkeypatch):
    """What was sent to the engine "fake": kinds of items."""
    items_of = []

    class Engine:
        def __init__(self, address):
            self.sent = set()

        def run(self, parcel, items):
            self.sent.add(parcel.key)
            assert len(self.sent) == 1, "model and samples travel once"
            parcel = pickle.loads(pickle.dumps(parcel))
            items_of.extend(items)
            # Backwards: what comes of an item does not depend on what was made before.
            found = [pickle.loads(pickle.dumps(evaluate(parcel, item))) for item in reversed(items)]
            yield from reversed(found)

        def close(self):
            pass

    monkeypatch.setitem(BACKENDS, "fake", Backend("fake", "", "pickle", Engine, lambda: (), "HOST"))
    return items_of


def test_a_subject_travels_whole():
    subject = open_model(model_of(TEXT), calibration=[{"x": X[:3]}, {"x": X[3:40]}])
    there = pickle.loads(pickle.dumps(subject))
    assert (there.digest, there.samples_digest) == (subject.digest, subject.samples_digest)
    assert there.graph.model is there.model and there.model == subject.model
    for one, other in zip(vars(subject.partition(3)).values(), vars(there.partition(3)).values(), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert np.array_equal(one.first(99)["x"], other.first(99)["x"])


def test_sensitivity_is_the_same_bytes(sent, tmp_path):
    here = onnxprune.sensitivity(model_of(TEXT), X, widths=(0.75, 0.5))
    there = onnxprune.sensitivity(model_of(TEXT), X, widths=(0.75, 0.5), backend="fake", store=str(tmp_path))
    assert there.to_json() == here.to_json() and {item[0] for item in sent} == {"group", "block"}
    count = len(sent)
    again = onnxprune.sensitivity(model_of(TEXT), X, widths=(0.75, 0.5), backend="fake", store=str(tmp_path))
    assert again.to_json() == here.to_json() and len(sent) == count, "all of it is in the store"


def test_sensitivity_that_goes_on_is_the_same_bytes(tmp_path):
    whole = onnxprune.sensitivity(model_of(TEXT), X, widths=(0.5,), methods=("channels",))
    onnxprune.sensitivity(
        model_of(TEXT), X, widths=(0.5,), methods=("channels",), include="u$", path=tmp_path / "s.json"
    )
    onnxprune.sensitivity(model_of(TEXT), X, widths=(0.5,), methods=("channels",), path=tmp_path / "s.json")
    kept = onnxprune.sensitivity(model_of(TEXT), X, widths=(0.5,), methods=("channels",), path=tmp_path / "s.json")
    assert kept.rows == whole.rows


def test_a_plan_is_the_same_bytes_and_says_nothing_of_the_place(sent, tmp_path):
    subject = open_model(model_of(TEXT), calibration=X)
    here = onnxprune.make_plan(subject, 0.4, Settings())
    there = onnxprune.make_plan(subject, 0.4, Settings(backend="fake", address="HOST", store=str(tmp_path)))
    assert there.to_json() == here.to_json() and {item[0] for item in sent} == {"group", "block", "rank", "plan"}
    kept = onnxprune.make_plan(subject, 0.4, Settings(store=str(tmp_path)))
    assert kept.to_json() == here.to_json()


def test_a_sweep_is_the_same_bytes(sent):
    subject = open_model(model_of(TEXT), calibration=X)
    here = list(onnxprune.sweep(subject, [0.2, 0.4], Settings()))
    there = list(onnxprune.sweep(subject, [0.2, 0.4], Settings(backend="fake")))
    bytes_of = [[r.model.SerializeToString(deterministic=True) for r in results] for results in (here, there)]
    assert bytes_of[0] == bytes_of[1] and [kind for kind, _ in sent][-2:] == ["result"] * 2
    told = [[{k: v for k, v in r.to_dict().items() if k != "run"} for r in results] for results in (here, there)]
    assert told[0] == told[1]


def test_what_is_timed_is_timed_here(sent, monkeypatch):
    timed = []
    monkeypatch.setattr("onnxprune.pipeline.plans.measure_latency", lambda result, *rest: timed.append(1) or result)
    subject = open_model(model_of(TEXT), calibration=X)
    list(onnxprune.sweep(subject, [0.2], Settings(backend="fake"), bench=True))
    assert timed == [1] and ("result" in {kind for kind, _ in sent})


def test_what_needs_this_machine_stays_here(sent):
    subject = open_model(model_of(TEXT), calibration=X)
    onnxprune.make_plan(subject, 0.4, Settings(backend="fake", repair="none"))
    assert sent
    sent.clear()
    from onnxprune.pipeline.asked import elsewhere_of

    for own in ({"recipe": "r.py"}, {"minutes": 1.0}):
        settings = Settings.__new__(Settings)
        settings.__dict__.update(vars(Settings(backend="fake")) | own)
        assert elsewhere_of(settings).idle


def test_a_place_is_reached_by_the_same_stops_whatever_came_before(monkeypatch):
    subject = open_model(model_of(TEXT), calibration=X)
    ran, real = [], Runner._run

    def run(self, stop, wanted):
        ran.append((self.position, stop))
        real(self, stop, wanted)

    monkeypatch.setattr(Runner, "_run", run)
    keys = [k for k in subject.graph.nodes]
    fed = list(subject.partition(0).held.batches(8))

    for before in ((), (keys[6],), (keys[1], keys[4]), (keys[5], keys[0])):
        stops = Stops(subject.graph, fed, [keys[4], keys[2]])
        for key in before:
            stops.at(key)
        assert stops.at(keys[3]).position == 3 and stops.at(keys[5]).position == 5
        ran.clear()
        stops = Stops(subject.graph, fed, [keys[4], keys[2]])
        stops.at(keys[5])
        assert ran == [(0, 2), (2, 4), (4, 5)]
        ran.clear()
        stops.at(keys[3])
        assert ran == [(0, 2), (2, 3)], "anew, by the same stops"
