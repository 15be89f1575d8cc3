"""A search: as many trials as were asked for, whoever was killed; the plan of a trial makes the same bytes."""

import contextlib
import errno
import inspect
import json
import os
import socket
import sqlite3
import subprocess
import sys
from dataclasses import fields, replace
from datetime import datetime, timedelta
from hashlib import sha256

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import Settings
from onnxprune.cli import main
from onnxprune.commands.options import takes
from onnxprune.errors import FileError, UsageError
from onnxprune.pipeline import joint_search, searching
from onnxprune.pipeline.opened import open_model
from onnxprune.pipeline.searching import SPACE, Search
from onnxprune.pipeline.settings import OPTIONS
from onnxprune.report.searched import Objective, Searched, Trial
from tests.channels.surgery import model_of
from tests.pipeline.test_elsewhere import TEXT, X

optuna = pytest.importorskip("optuna")

from onnxprune.pipeline import journal  # noqa: E402

FIXED = Settings(methods=("channels",), criterion="l1", repair="statistics")


@pytest.fixture(scope="module")
def subject():
    return open_model(model_of(TEXT), calibration=X, trusted=True)


def search(subject, path, **other):
    return Search(subject, str(path), replace(FIXED, **other))


def states(found):
    return [t.state.name for t in found.study.get_trials(deepcopy=False)]


def lost(found, by):
    """A trial of a process that is gone."""
    trial = found.study.ask()
    trial.suggest_float("ratio", *searching.RATIOS)
    trial.set_user_attr("by", by)
    return trial.number


GONE = {"host": socket.gethostname(), "pid": 2**22 + 1, "born": "1"}


def test_killed_trials_are_made_again_and_none_too_many(subject, tmp_path):
    one = search(subject, tmp_path / "j")
    number = lost(one, GONE)
    assert one.run(2).running == 0
    again = search(subject, tmp_path / "j")
    found = again.run(5)
    assert len(found.trials) == 5 and number not in [t.number for t in found.trials]
    assert sorted(set(states(again))) in (["COMPLETE", "FAIL"], ["COMPLETE", "FAIL", "PRUNED"])
    assert search(subject, tmp_path / "j").run(5).trials == found.trials, "nothing more to do"
    assert len([t for t in found.trials if t.default]) == 3 and all(t.values for t in found.front())
    assert {t.settings["ratio"] for t in found.trials if t.default} == set(searching.DEFAULTS)


def test_a_trial_under_way_elsewhere_counts_and_is_not_waited_for(subject, tmp_path):
    one = search(subject, tmp_path / "j")
    lost(one, {**GONE, "host": "another"})
    found = one.run(2)
    assert (len(found.trials), found.running) == (1, 1)


def test_a_database_that_is_lost_on_the_way_is_an_error_of_the_storage(subject, tmp_path, monkeypatch):
    pytest.importorskip("sqlalchemy")
    address = f"sqlite:///{tmp_path / 'trials.db'}"
    one = search(subject, address)
    one.run(1)

    def dropped(*_):
        with contextlib.closing(sqlite3.connect(tmp_path / "trials.db")) as db:
            for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
                db.execute(f"drop table {table}")

    monkeypatch.setattr(Search, "_make_up", dropped)
    with pytest.raises(FileError, match=r"trials\.db: no longer a storage of trials: .*no such table"):
        one.run(2)


def test_a_database_with_options_is_looked_into(subject, tmp_path):
    pytest.importorskip("sqlalchemy")
    address = f"sqlite:///{tmp_path / 'trials.db'}?timeout=9"
    found = search(subject, address).run(1)
    [(number, plan)] = found.plans.items()
    assert searching.plan_of(address, number, subject.digest) == plan


@pytest.mark.parametrize("address", ["{}/none.journal", "sqlite:///{}/none.db", "sqlite:///{}/none.db?timeout=9"])
def test_what_is_not_there_is_not_made_by_looking_for_a_trial(tmp_path, address):
    with pytest.raises(FileError, match=r"none.*: no such file"):
        searching.plan_of(address.format(tmp_path), 3, "digest")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_was_not_written_to_its_end_is_not_joined_to_the_next(subject, tmp_path, cut):
    search(subject, tmp_path / "j").run(1)
    os.truncate(tmp_path / "j", (tmp_path / "j").stat().st_size - cut)  # the disk was full
    for count in (2, 3):
        assert len(search(subject, tmp_path / "j").run(count).trials) == count
    assert all(json.loads(line) for line in (tmp_path / "j").read_text().splitlines())


def test_who_is_gone():
    me = searching._me()
    assert me["pid"] == os.getpid() and not searching._gone(me, None)
    if os.path.exists("/proc/self/stat"):
        assert searching._gone({**me, "born": "1"}, None), "another process has its number now"
    assert searching._gone(GONE, None) and not searching._gone({**GONE, "host": "another"}, None)
    assert searching._gone(None, datetime.now() - timedelta(hours=1)) and not searching._gone(None, datetime.now())


def test_what_is_given_is_not_searched_over(subject, tmp_path):
    one = search(subject, tmp_path / "j", allocation="uniform")
    assert [d.name for d in one._space()] == ["round_to"]
    found = one.run(1)
    assert set(found.trials[0].settings) == {"ratio", "round_to"}
    other = search(subject, tmp_path / "j")
    assert other.name != one.name and not [s for s in states(other) if s != "WAITING"], "a search of its own"


def test_choices_are_settings_and_begin_with_the_default(subject):
    for d in SPACE:
        for choice in d.choices:
            Settings(**{d.name: tuple(choice.split(",")) if d.name == "methods" else choice})
    assert SPACE[-1].choices[0] == Settings().round_to


def test_what_a_look_shows_to_be_clearly_worse_ends_early(subject, tmp_path, monkeypatch):
    one = search(subject, tmp_path / "j")
    looks = iter([0.1, 0.9, 0.9])
    monkeypatch.setattr("onnxprune.pipeline.planner.Planner.damage", lambda self, plan: next(looks))
    monkeypatch.setattr("onnxprune.pipeline.planner.Planner.gain", lambda self, plan: 2.0)
    monkeypatch.setattr(searching, "byte_size", lambda model: 1000)
    found = one.run(2)
    assert found.trials[0].values and found.trials[1].values is None
    assert found.trials[1].why == "9.0 times the damage of trial 0, which is no larger" and found.trials[1].look == 0.9


def test_the_plan_of_a_trial_makes_the_same_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(model_of(TEXT), "m.onnx")
    np.savez("s.npz", x=X)
    line = ["search", "m.onnx", "--calib", "s.npz", "--methods", "channels", "--repair", "statistics", "--trials", "3"]
    assert main([*line, "--report", "s.html", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "onnxprune search" and told["asked"] == len(told["trials"]) == 3 and told["front"]
    page = (tmp_path / "s.html").read_text()
    assert "Those that nothing beats" in page and "3 of 3 trials" in page
    number = told["front"][0]
    argv = ["apply", "m.onnx", "m.search.journal", "--calib", "s.npz", "--repair", "statistics", "--no-bench", "-q"]
    assert main([*argv, "--trial", str(number), "-o", "t.onnx"]) == 0
    storage = searching.storage_of("m.search.journal")
    (study,) = storage.get_all_studies()
    kept = next(t for t in storage.get_all_trials(study._study_id) if t.number == number).user_attrs["sha256"]
    assert sha256((tmp_path / "t.onnx").read_bytes()).hexdigest() == kept
    assert main([*argv, "--trial", "99", "-o", "u.onnx"]) == 2
    assert "trial 99 is not there" in capsys.readouterr().err


def test_several_processes_make_one_search(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(model_of(TEXT), "m.onnx")
    np.savez("s.npz", x=X)
    started, real = [], subprocess.Popen

    def popen(argv, **how):
        started.append(argv)
        return real([sys.executable, "-c", "pass"], **how)

    monkeypatch.setattr(subprocess, "Popen", popen)
    line = ["search", "m.onnx", "--calib", "s.npz", "--methods", "channels", "--repair", "none", "--trials", "2"]
    assert main([*line, "--workers", "3", "-q"]) == 0
    assert "2 of 2 trials" in capsys.readouterr().out, "those of others that died are made here"
    assert len(started) == 2 and "help_out" in started[0][2] and not os.path.exists(started[0][3])


def test_another_process_takes_part_in_what_it_is_sent(subject, tmp_path):
    storage = str(tmp_path / "j")
    work = joint_search._Work(replace(subject, parts={}), storage, FIXED, None, 3)
    with joint_search._helped(work, tmp_path / "work", 1):
        pass
    found = search(subject, storage)
    assert found.run(3).asked == 3 and states(found).count("FAIL") == 2, "one too many of either"
    assert {t.user_attrs["by"]["pid"] for t in found.study.get_trials(states=[optuna.trial.TrialState.COMPLETE])} != {
        os.getpid()
    }


# ---- from Python ------------------------------------------------------------------------------------------


def test_search_has_a_keyword_for_every_setting_of_the_command():
    given = dict(inspect.signature(onnxprune.search).parameters)
    own = [f for f in fields(Settings) if takes("search", OPTIONS[f.name])]
    assert list(given)[-len(own) :] == [f.name for f in own]
    assert all((given[f.name].annotation, given[f.name].default) == (f.type, f.default) for f in own)
    besides = {"model", "calibration", "storage", "trials", "workers", "metric", "progress", *_OPENING}
    assert set(given) == besides | {f.name for f in own}
    assert [n for n, p in given.items() if p.kind is not p.KEYWORD_ONLY] == ["model", "calibration"]


_OPENING = {"input_shapes", "samples", "image", "trusted"}


def test_search_hands_every_setting_on(monkeypatch):
    other = {"criterion": "l1", "seed": 9, "round_to": 3, "weight": {"y": 2.0}, "threads": 2, "best_effort": True}
    monkeypatch.setattr("onnxprune.api.open_model", lambda model, **how: (model, how["calibration"], how["weight"]))
    monkeypatch.setattr("onnxprune.api.search_with", lambda *given, **how: (*given, how["trials"], how["workers"]))
    found = onnxprune.search("m", "s", storage="j", trials=3, workers=2, **other)
    assert found == (("m", "s", {"y": 2.0}), "j", Settings(**other), 3, 2)
    with pytest.raises(UsageError, match=r"unknown keyword of search\(\) 'trails'; did you mean trials"):
        onnxprune.search("m", "s", trails=3)


def test_a_search_in_memory_writes_nothing_and_its_plans_make_the_trials(subject, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = {"methods": "channels", "criterion": "l1", "repair": "statistics"}
    found = onnxprune.search(model_of(TEXT), X, trials=3, metric=weights, **fixed)
    assert not list(tmp_path.iterdir()) and found.objectives[0].name == "weights"
    (best, *_) = found.front()
    result = onnxprune.apply_plan(subject, found.plans[best.number], replace(FIXED, round_to=best.settings["round_to"]))
    assert best.values == (weights(result.model), best.values[1], result.after.bytes / 1e3)
    assert "plans" not in found.to_dict()
    with pytest.raises(UsageError, match="stays in one process; give workers=1"):
        onnxprune.search(model_of(TEXT), X, workers=2, metric=weights, **fixed)
    with pytest.raises(UsageError, match="needs samples"):
        onnxprune.search(model_of(TEXT), None)


def weights(model):
    return -sum(np.prod(w.dims) for w in model.graph.initializer)


@pytest.mark.slow
def test_workers_of_python_make_one_search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = {"methods": "channels", "criterion": "l1", "repair": "statistics"}
    found = onnxprune.search(model_of(TEXT), X, trials=6, workers=2, **fixed)
    assert len(found.trials) == 6 and found.running == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--workers", "0"], "give --workers 1 or more"),
        (["--workers", "2", "--of", "latency"], "goes with --workers 1"),
        (["--trials", "0"], "give --trials 1 or more"),
        (["--storage", "none/j"], "there is no folder none"),
        (["--storage", "nosuch://j"], "cannot be used as a storage"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    onnx.save(model_of(TEXT), "m.onnx")
    np.savez("s.npz", x=X)
    assert main(["search", "m.onnx", "--calib", "s.npz", *more]) in (2, 7)
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1


def test_a_lock_that_is_not_renamed_is_taken_away(tmp_path, monkeypatch):
    path = tmp_path / "m.search.journal"
    path.touch()
    lock = journal.Lock(str(path))
    assert lock.acquire()
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        lock.release()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_model_that_is_refused_leaves_no_journal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"no model")
    np.savez("s.npz", x=X)
    assert main(["search", "m.onnx", "--calib", "s.npz", "-q"]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "s.npz"]


def test_no_optuna_no_search(monkeypatch):
    monkeypatch.setattr(searching, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs optuna - pip install optuna"):
        searching.storage_of("j")
    with pytest.raises(FileError, match="no folder"):
        monkeypatch.undo()
        searching.storage_of("none/at/all/j")


def trial(number, values, *, default=False):
    return Trial(number, {"ratio": 0.5}, values, default, None, "")


def searched(*trials):
    objectives = Objective("top-1", "", True), Objective("MACs left", "%", False)
    return Searched("m", "s", objectives, (90.0, 100.0), len(trials), 0, trials)


@pytest.mark.parametrize(
    ("trials", "front", "verdict"),
    [
        ([trial(0, (90, 50), default=True), trial(1, (89, 50))], [0], "no choice was found that the default does not"),
        ([trial(0, (90, 50), default=True), trial(1, (89, 40))], [1, 0], "1 of 1 other choices are dominated by no"),
        ([trial(0, (90, 50), default=True), trial(1, (91, 50))], [1], "1 dominate one (1 of 1 defaults are dominated)"),
        ([trial(0, (90, 50), default=True), trial(1, None)], [0], "were not both tried"),
        ([trial(0, (90, 50), default=True), trial(1, (90, 50))], [0, 1], "0 dominate one (0 of 1"),
    ],
)
def test_the_front_and_how_the_default_fares(trials, front, verdict):
    found = searched(*trials)
    assert [t.number for t in found.front()] == front and verdict in found.verdict()
