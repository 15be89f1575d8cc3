"""Tasks sent out: results in order, errors whole, what lost workers had in hand sent anew; real engines where installed."""

import gc
import operator
import pickle
import sys
import tomllib
import types
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

import onnxprune
from onnxprune import parallel
from onnxprune.elsewhere import backends, tasks
from onnxprune.elsewhere.backends import BACKENDS, Backend, named
from onnxprune.elsewhere.spread import TRIES, Elsewhere
from onnxprune.elsewhere.tasks import Missed, Task, evaluate
from onnxprune.errors import OutOfReachError, ProviderError, UnstableError, UnsupportedError, UsageError

needs = {
    name: pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")
    for name, package in {"joblib": "joblib", "dask": "distributed"}.items()
}


def times(factor):
    """What a worker makes: a module's function of a payload."""
    if factor == 13:
        raise OutOfReachError("no such factor", 0.25)
    return lambda item: factor * item


def none_here(items):
    raise AssertionError("worked on here")


class Lost(Exception):
    """What an engine says of workers that are gone."""


class Sent(list):
    """Items that an engine was sent, call by call; what it was opened for, and how often it was closed."""

    def __init__(self):
        self.opened, self.closed = [], 0


def engine(monkeypatch, *, gone_after=(), name="fake"):
    """An engine in this process; call k loses its workers after so many results."""
    sent, left = Sent(), list(gone_after)

    class Engine:
        def __init__(self, address):
            sent.opened.append(address)

        def run(self, parcel, items):
            sent.append(list(items))
            parcel, stop = pickle.loads(pickle.dumps(parcel)), left.pop(0) if left else None
            for k, item in enumerate(items):
                if k == stop:
                    raise Lost("all of them")
                yield pickle.loads(pickle.dumps(evaluate(parcel, item)))

        def close(self):
            sent.closed += 1

    monkeypatch.setitem(BACKENDS, name, Backend(name, "", "pickle", Engine, lambda: (Lost,), "HOST"))
    return sent


def test_results_come_back_in_order(monkeypatch):
    sent = engine(monkeypatch)
    assert list(Elsewhere("fake", "HOST").results(Task(times, 3), [1, 2, 3], none_here)) == [3, 6, 9]
    assert sent == [[1, 2, 3]]
    assert list(Elsewhere().results(Task(times, 3), [1, 2], lambda items: [-i for i in items])) == [-1, -2]


def test_an_engine_is_connected_to_once_and_let_go_of(monkeypatch):
    sent = engine(monkeypatch)
    one = Elsewhere("fake", "HOST")
    assert not sent.opened
    for _ in range(3):
        list(one.results(Task(times, 3), [1], none_here))
    assert (sent.opened, sent.closed) == (["HOST"], 0)
    del one
    gc.collect()
    assert sent.closed == 1


def test_what_lost_workers_had_in_hand_is_sent_anew(monkeypatch):
    sent = engine(monkeypatch, gone_after=(2, 0, 1))
    assert list(Elsewhere("fake").results(Task(times, 3), [1, 2, 3, 4], none_here)) == [3, 6, 9, 12]
    assert sent == [[1, 2, 3, 4], [3, 4], [3, 4], [4]] and len(sent.opened) == 4


def test_workers_that_are_lost_again_and_again_end_it(monkeypatch):
    sent = engine(monkeypatch, gone_after=(1, *[0] * TRIES))
    with pytest.raises(ProviderError, match=f"lost {TRIES} times in a row"):
        list(Elsewhere("fake").results(Task(times, 3), [1, 2], none_here))
    assert len(sent) == TRIES + 1 - 1


def test_an_error_of_ours_comes_back_whole(monkeypatch):
    engine(monkeypatch)
    with pytest.raises(OutOfReachError, match="no such factor") as caught:
        list(Elsewhere("fake").results(Task(times, 13), [1], none_here))
    assert caught.value.removed == 0.25
    back = pickle.loads(pickle.dumps(Missed(UnstableError, "why", {"groups": ("a",)}))).error()
    assert isinstance(back, UnstableError) and str(back) == "why" and back.groups == ("a",)


def test_a_worker_makes_a_function_once_and_keeps_the_last(monkeypatch):
    made = []
    monkeypatch.setattr(tasks, "_unpacked", lambda parcel: made.append(parcel.key) or times(2))
    monkeypatch.setattr(tasks, "_opened", {})
    one, other = Task(times, 2).parcel, Task(times, 3).parcel
    for parcel in (one, one, other, other, one):
        evaluate(parcel, 1)
    assert made == [one.key, other.key, one.key]


def test_what_cannot_be_sent_says_so(monkeypatch):
    engine(monkeypatch)
    with pytest.raises(UnsupportedError, match=r"cannot be sent to workers: .*; drop --backend"):
        list(Elsewhere("fake").results(Task(times, lambda: 3), [1], none_here))


def test_a_worker_uses_as_many_cores_as_it_is_given(monkeypatch):
    monkeypatch.setattr(parallel, "_cores", lambda: 8)
    parcel = Task(_workers, None).parcel
    assert [evaluate(parcel, None, cores) for cores in (None, 1, 3)] == [8, 1, 3] and parallel.workers() == 8


def _workers(payload):
    return lambda item: parallel.workers()


def test_a_worker_of_another_version_says_so(monkeypatch):
    monkeypatch.setattr(tasks, "_opened", {})
    found = evaluate(replace(Task(times, 2).parcel, version="0"), 1)
    assert isinstance(found, Missed) and found.kind is ProviderError and "install the same on all" in found.text


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_says_what_it_needs(monkeypatch, name):
    project = tomllib.loads((Path(onnxprune.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    entry = BACKENDS[name]
    assert any(line.startswith(entry.package) for line in project["optional-dependencies"][name]) and entry.help
    monkeypatch.setattr(backends, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=f"needs {entry.package} - pip install {entry.package}"):
        Elsewhere(name)


def test_names_and_addresses_that_make_no_sense():
    with pytest.raises(UsageError, match="did you mean dask"):
        named("dsak")
    for name in ("threads", "processes"):
        with pytest.raises(UsageError, match="has no address"):
            named(name, "tcp://a:1")
    assert named("threads") is None and Elsewhere().idle and not Elsewhere(store="s").idle


@needs["joblib"]
def test_processes_of_this_machine():
    found = Elsewhere("processes").results(Task(operator.attrgetter, "real"), [1, 2.5], none_here)
    assert list(found) == [1, 2.5]


@needs["dask"]
def test_workers_of_a_dask_scheduler():
    from distributed import LocalCluster

    with LocalCluster(2, processes=False, threads_per_worker=1, dashboard_address=None) as cluster:
        found = Elsewhere("dask", cluster.scheduler_address).results(Task(times, 3), list(range(9)), none_here)
        assert list(found) == [3 * k for k in range(9)]


@needs["dask"]
@pytest.mark.parametrize("threads", [1, 3])
def test_a_dask_worker_uses_as_many_cores_as_it_has_threads(monkeypatch, threads):
    from distributed import LocalCluster

    monkeypatch.setattr(parallel, "_cores", lambda: 8)
    with LocalCluster(1, processes=False, threads_per_worker=threads, dashboard_address=None) as cluster:
        found = list(Elsewhere("dask", cluster.scheduler_address).results(Task(_workers, None), [1, 2], none_here))
    assert found == [threads, threads] and parallel.workers() == 8


@needs["dask"]
def test_a_scheduler_that_is_not_there(monkeypatch):
    monkeypatch.setattr(backends, "PATIENCE", 0.2)
    with pytest.raises(ProviderError, match=r"nothing answers at tcp://127\.0\.0\.1:9"):
        list(Elsewhere("dask", "tcp://127.0.0.1:9").results(Task(times, 3), [1], none_here))


def test_ray_puts_the_parcel_once(monkeypatch):
    put, called = [], []

    class Remote:
        def __init__(self, function, **how):
            self.function = function
            called.append(how)

        def remote(self, *given):
            return lambda: self.function(*given)

    class Ended(Exception):
        pass

    ray = types.ModuleType("ray")
    ray.is_initialized, ray.init = lambda: False, lambda **how: called.append(how["address"])
    ray.put = lambda value: put.append(value) or (lambda: value)
    ray.get = lambda reference: reference()
    ray.remote = lambda **how: lambda function: Remote(function, **how)
    ray.exceptions = types.ModuleType("ray.exceptions")
    ray.exceptions.WorkerCrashedError = ray.exceptions.ObjectLostError = Ended
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", ray.exceptions)
    monkeypatch.setattr(backends, "find_spec", lambda package: True)
    task = Task(times, 3)
    one = Elsewhere("ray", "auto")
    assert list(one.results(task, [1, 2], none_here)) + list(one.results(task, [3], none_here)) == [3, 6, 9]
    assert put == [task.parcel] and called[0] == "auto" and {"max_retries": 3} in called
