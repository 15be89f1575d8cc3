"""The promises of the writer."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import FileError, ModelError
from onnxprune.files import write
from onnxprune.files.external import external_files
from onnxprune.files.read import read_model
from onnxprune.files.write import atomic_write, atomic_write_text
from onnxprune.protobuf import disk, serialize
from onnxprune.protobuf import external as external_weights
from tests.files.models import changed, conv, external, set_weight


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_is_written_is_read_back(tmp_path):
    seen = []
    path = tmp_path / "m.onnx"
    atomic_write(conv(), path, verify=lambda p: seen.append(read_model(p)))
    assert read_model(path) == conv() == seen[0]
    assert listing(tmp_path) == ["m.onnx"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_existing_file_needs_force(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    for writer in (
        lambda **k: atomic_write(conv(), path, **k),
        lambda **k: atomic_write_text("t", path, **k),
    ):
        path.write_text("old")
        with pytest.raises(FileError, match="--force"):
            writer()
        assert path.read_text() == "old" and listing(tmp_path) == ["m.onnx"]
        writer(force=True)
        assert path.read_bytes() != b"old" and listing(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("alias", ["in.onnx", "soft.onnx", "hard.onnx", "folder/../in.onnx", "w.data"])
def test_a_source_is_never_overwritten(tmp_path, alias):
    source = tmp_path / "in.onnx"
    source.write_bytes(changed(external("w.data")).SerializeToString())
    (tmp_path / "w.data").write_bytes(bytes(48))
    (tmp_path / "folder").mkdir()
    (tmp_path / "soft.onnx").symlink_to("in.onnx")
    os.link(source, tmp_path / "hard.onnx")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(FileError, match="the input") as caught:
        atomic_write(conv(), tmp_path / alias, force=True, sources=[source])
    assert caught.value.exit_code == 7
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("name", ["folder", "nowhere/m.onnx", "nul\0.onnx"])
def test_a_place_that_takes_no_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError):
        atomic_write(conv(), tmp_path / name, force=True)
    assert listing(tmp_path) == ["folder"]


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / "target").write_text("precious")
    (tmp_path / ".onnxprune-guessed.tmp").symlink_to("target")
    with pytest.raises(FileError):
        atomic_write_text("new", tmp_path / "plan.json")
    assert (tmp_path / "target").read_text() == "precious"
    assert listing(tmp_path) == [".onnxprune-guessed.tmp", "target"]


def test_force_replaces_a_link_and_not_its_target(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "m.onnx").symlink_to("target")
    atomic_write(conv(), tmp_path / "m.onnx", force=True)
    assert (tmp_path / "target").read_text() == "precious" and not (tmp_path / "m.onnx").is_symlink()


def fail(error):
    def function(*_, **__):
        raise error

    return function


@pytest.mark.parametrize("limit", [10**9, 10], ids=["one file", "external"])
@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ModelError("no"), RuntimeError("bug")])
def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch, limit, existed, error):
    monkeypatch.setattr(serialize, "MAX_PROTOBUF", limit)
    monkeypatch.setattr(external_weights, "EXTERNAL_THRESHOLD", 10)
    if existed:
        (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(type(error)):
        atomic_write(conv(), tmp_path / "m.onnx", force=True, verify=fail(error))
    assert listing(tmp_path) == ["m.onnx"] * existed
    assert not existed or (tmp_path / "m.onnx").read_text() == "old"


@pytest.mark.parametrize(
    ("call", "number", "says"),
    [
        ("fsync", errno.ENOSPC, "free some space"),
        ("open", errno.EROFS, "permissions"),
        ("open", errno.EACCES, "permissions"),
        ("replace", errno.EIO, "permissions"),
        ("dup", errno.EMFILE, "permissions"),
    ],
)
@pytest.mark.parametrize("limit", [10**9, 10], ids=["one file", "external"])
def test_the_system_refuses(tmp_path, monkeypatch, call, number, says, limit):
    (tmp_path / "m.onnx").write_text("old")
    monkeypatch.setattr(serialize, "MAX_PROTOBUF", limit)
    with monkeypatch.context() as patch, pytest.raises(FileError, match=says) as caught:
        patch.setattr(os, call, fail(OSError(number, os.strerror(number))))
        atomic_write(conv(), tmp_path / "m.onnx", force=True)
    assert caught.value.exit_code == 7 and "\n" not in str(caught.value)
    assert listing(tmp_path) == ["m.onnx"] and (tmp_path / "m.onnx").read_text() == "old"


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", fail(OSError(errno.EPERM, "no links here")))
    atomic_write_text("one", tmp_path / "plan.json")
    with pytest.raises(FileError, match="--force"):
        write._claim(tmp_path / "any", tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text() == "one" and listing(tmp_path) == ["plan.json"]


def test_a_disk_that_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "flush", lambda file: file.truncate(50))
    with pytest.raises(FileError, match="check the disk"):
        atomic_write(conv(), tmp_path / "m.onnx")
    assert listing(tmp_path) == []


def test_a_model_that_is_not_sound_is_not_written(tmp_path):
    with pytest.raises(ModelError, match="NaN"):
        atomic_write(changed(set_weight(np.nan)), tmp_path / "m.onnx")
    assert listing(tmp_path) == []


def test_the_second_writer_is_told(tmp_path):
    path = tmp_path / "m.onnx"

    def other(_):
        atomic_write_text("first", path)

    with pytest.raises(FileError, match="--force"):
        atomic_write(conv(), path, verify=other)
    assert path.read_text() == "first" and listing(tmp_path) == ["m.onnx"]


def test_large_weights_go_to_a_file_named_by_their_content(tmp_path, monkeypatch):
    monkeypatch.setattr(serialize, "MAX_PROTOBUF", 10)
    monkeypatch.setattr(external_weights, "EXTERNAL_THRESHOLD", 20)
    model = conv()
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [6], [1, 2, 3, 4, 5, 6])
    typed.doc_string = "kept"
    model.graph.initializer.append(typed)
    before = model.SerializeToString()
    for name in ("m.onnx", "again.onnx"):
        atomic_write(model, tmp_path / name, verify=read_model)
    assert model.SerializeToString() == before
    first, second = (external_files(tmp_path / n)[0].name for n in ("m.onnx", "again.onnx"))
    assert first.startswith("m-") and first[2:] == second[6:]
    back = read_model(tmp_path / "m.onnx")
    for old, new in zip(model.graph.initializer, back.graph.initializer, strict=True):
        assert (old.name, old.doc_string) == (new.name, new.doc_string)
        np.testing.assert_array_equal(numpy_helper.to_array(old), numpy_helper.to_array(new))
    assert back.graph.node == model.graph.node and back.producer_name == "someone"


def test_the_loser_keeps_the_weights_that_the_winner_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(serialize, "MAX_PROTOBUF", 10)
    monkeypatch.setattr(external_weights, "EXTERNAL_THRESHOLD", 20)
    path = tmp_path / "m.onnx"
    with pytest.raises(FileError, match="--force"):
        atomic_write(conv(), path, verify=lambda tmp: os.link(tmp, path))
    assert read_model(path).graph.node == conv().graph.node


SCRIPT = """
import sys, time, onnx, resource, signal
from pathlib import Path
from onnxprune.errors import PruneError
from onnxprune.files.write import atomic_write
path, mode = Path(sys.argv[1]), sys.argv[2]
model = onnx.load(path.with_name("source.onnx"))
def hang(_):
    print("writing", flush=True)
    time.sleep(60)
if mode == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    atomic_write(model, path, force=True, verify=hang if mode == "hang" else None)
except PruneError as error:
    sys.exit(f"{error.exit_code} {error}")
"""


def start(path: Path, mode: str) -> subprocess.Popen[str]:
    (path.parent / "source.onnx").write_bytes(conv().SerializeToString())
    root = Path(onnxprune.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path), mode],
        env=dict(os.environ, PYTHONPATH=str(root)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_writer_leaves_the_old_file_whole(tmp_path, kill):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with start(path, "hang") as writer:
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(kill)
        writer.communicate(timeout=20)
    assert path.read_text() == "old"
    left = set(listing(tmp_path)) - {"m.onnx", "source.onnx"}
    assert not left or (kill == signal.SIGKILL and all(n.startswith(".onnxprune-") for n in left))


def test_a_full_disk(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with start(path, "full") as writer:
        _, said = writer.communicate(timeout=20)
    assert writer.returncode == 1 and said.startswith("7 ") and "free some space" in said
    assert path.read_text() == "old" and listing(tmp_path) == ["m.onnx", "source.onnx"]


# ---- beside others ----------------------------------------------------------------------------------------


@pytest.fixture
def outside(monkeypatch):
    """Weights always go to a file of their own."""
    monkeypatch.setattr(serialize, "MAX_PROTOBUF", 10)
    monkeypatch.setattr(external_weights, "EXTERNAL_THRESHOLD", 20)


def data_of(path: Path) -> str:
    (found,) = external_files(path)
    return found.name


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o777])
@pytest.mark.parametrize("kind", ["model", "text"])
def test_permissions_of_what_is_replaced_are_kept(tmp_path, outside, mode, kind):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    path.chmod(mode)
    if kind == "text":
        atomic_write_text("new", path, force=True)
    else:
        atomic_write(conv(), path, force=True)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {mode}


def test_weights_that_nobody_names_any_more_go(tmp_path, outside):
    path, other = tmp_path / "m.onnx", changed(set_weight(2.0))
    atomic_write(conv(), path)
    old = data_of(path)
    atomic_write(conv(), path, force=True)
    assert listing(tmp_path) == sorted(["m.onnx", old])  # the same again
    atomic_write(other, path, force=True)
    assert listing(tmp_path) == sorted(["m.onnx", data_of(path)]) and data_of(path) != old
    assert read_model(path).graph.node == other.graph.node


@pytest.mark.parametrize("why", ["another model", "a source", "a name of its own", "not replaced"])
def test_weights_that_may_be_somebody_s_stay(tmp_path, outside, why):
    path, other = tmp_path / "m.onnx", changed(set_weight(2.0))
    atomic_write(conv(), path)
    old, sources = data_of(path), []
    if why == "another model":
        (tmp_path / "copy.onnx").write_bytes(path.read_bytes())
    elif why == "a source":
        (tmp_path / "source").write_bytes(path.read_bytes())
        (tmp_path / old).unlink()
        (tmp_path / old).write_bytes(b"kept")
        with pytest.raises(FileError, match="holds the weights of the input"):
            atomic_write(other, tmp_path / old, force=True, sources=[tmp_path / "source"])
        sources = [tmp_path / "source"]
    elif why == "a name of its own":
        (tmp_path / old).rename(tmp_path / "weights.data")
        data = path.read_bytes()
        path.write_bytes(data.replace(old.encode(), b"weights.data".ljust(len(old), b"x")))
        old = "weights.data"
    try:
        atomic_write(other, path, force=why != "not replaced", sources=sources)
    except FileError:
        assert why == "not replaced"
    assert old in listing(tmp_path)


def test_two_equal_runs_leave_each_other_s_weights(tmp_path, outside):
    """The first has placed the weights, the second has placed the same, the first fails, the second ends."""
    path = tmp_path / "m.onnx"
    placed = [threading.Event(), threading.Event()]
    failed = threading.Event()

    def first(_):
        placed[0].set()
        assert placed[1].wait(20)
        raise ModelError("no")

    def second(_):
        placed[1].set()
        assert failed.wait(20)

    def run():
        with contextlib.suppress(ModelError):
            atomic_write(conv(), path, verify=first)
        failed.set()

    one = threading.Thread(target=run)
    one.start()
    assert placed[0].wait(20)
    atomic_write(conv(), path, verify=second)
    one.join()
    assert read_model(path).graph.node == conv().graph.node
    assert listing(tmp_path) == sorted(["m.onnx", data_of(path)])


def test_what_a_killed_run_has_left_goes_with_the_next(tmp_path):
    path = tmp_path / "m.onnx"
    with start(path, "hang") as writer:
        assert writer.stdout.readline() == "writing\n"
        (left,) = (n for n in listing(tmp_path) if n.startswith(".onnxprune-"))
        atomic_write_text("while it runs", tmp_path / "one.json")
        assert left in listing(tmp_path)
        writer.kill()
        writer.communicate(timeout=20)
    (tmp_path / ".onnxprune-mine.tmp").write_text("of somebody else")
    (tmp_path / ".onnxprune-0123456789abcdef.tmp").symlink_to("one.json")
    atomic_write_text("later", tmp_path / "two.json")
    assert left not in listing(tmp_path)
    assert {".onnxprune-mine.tmp", ".onnxprune-0123456789abcdef.tmp", "one.json"} < set(listing(tmp_path))


@pytest.mark.parametrize("kind", ["a pipe", "a socket"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "m.onnx"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
    with pytest.raises(FileError, match="not a regular file"):
        atomic_write_text("new", path, force=True)
    assert not path.is_file() and path.exists()
