"""Results by what they are results of: what is damaged, or of something else, is worked out anew."""

from importlib.util import find_spec

import pytest

from onnxprune.elsewhere import store as stores
from onnxprune.elsewhere.spread import Elsewhere
from onnxprune.elsewhere.store import NOTHING, Store
from onnxprune.elsewhere.tasks import Task
from onnxprune.errors import FileError, UsageError

OF = {"what": "a test", "settings": {"a": (1, 2.5)}}
VALUES = [0.1 + 0.2, [1e-300, None, float("inf")], "x"]


def files(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


def test_what_is_put_is_got_to_the_last_bit(tmp_path):
    for k, value in enumerate(VALUES):
        Store(str(tmp_path)).put(OF, ("group", k), value)
    found = Store(str(tmp_path))
    assert [found.get(OF, ["group", k]) for k in range(len(VALUES))] == VALUES
    assert found.get(OF, ("group", 9)) is NOTHING and found.get({**OF, "what": "another"}, ("group", 0)) is NOTHING


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"of": {}}', '{"value": 1}', "\xff"])
def test_what_is_damaged_is_nothing(tmp_path, text):
    Store(str(tmp_path)).put(OF, 1, 2)
    (path,) = files(tmp_path)
    path.write_text(text, "latin-1")
    assert Store(str(tmp_path)).get(OF, 1) is NOTHING


def test_what_is_of_something_else_is_nothing(tmp_path):
    Store(str(tmp_path)).put(OF, 1, 2)
    (path,) = files(tmp_path)
    path.write_text(path.read_text().replace("a test", "another"))
    assert Store(str(tmp_path)).get(OF, 1) is NOTHING


def test_only_what_is_not_known_is_worked_out(tmp_path):
    asked = []

    def here(items):
        asked.append(list(items))
        return [10 * i for i in items]

    for items in ([1, 2], [1, 3, 2], [3]):
        assert list(Elsewhere(store=str(tmp_path)).results(Task(print, 0, OF), items, here)) == [10 * i for i in items]
    assert asked == [[1, 2], [3]]
    list(Elsewhere(store=str(tmp_path)).results(Task(print, 0), [1], here))  # of what cannot be kept
    assert asked[-1] == [1]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(FileError):
        Store(str(tmp_path / "f"))


@pytest.mark.skipif(find_spec("fsspec") is None, reason="needs fsspec")
def test_addresses_that_fsspec_knows():
    found = Store("memory://onnxprune-test")
    assert found.get(OF, 1) is NOTHING
    found.put(OF, 1, VALUES)
    assert Store("memory://onnxprune-test").get(OF, 1) == VALUES
    with pytest.raises(UsageError, match="nosuch"):
        Store("nosuch://a")


def test_fsspec_is_asked_for(monkeypatch):
    monkeypatch.setattr(stores, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs fsspec - pip install fsspec"):
        Store("s3://bucket")
