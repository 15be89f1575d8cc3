"""Samples in batches, taken and split; bounded, and with nothing left behind."""

import gc
import os
import tempfile

import numpy as np
import pytest

from onnxprune.errors import CalibrationError, FileError, UsageError
from onnxprune.numerics import on_disk
from onnxprune.runtime.ports import InputSpec
from onnxprune.samples import arrays, calibration
from onnxprune.samples.calibration import open_calibration
from tests.samples.given import (
    F32,
    FIXED,
    ONE,
    SCALED,
    WIDE,
    Input,
    Reader,
    X,
    all_of,
    header,
    npz,
    packed,
    saved,
)


def test_fixed_batch_drops_the_remainder():
    calibration = open_calibration(X, FIXED)
    assert calibration.batch == 4 and [len(b["x"]) for b in calibration.batches(1)] == [4]
    assert len(calibration.first(1)["x"]) == 4 and len(calibration.take(1)) == 4


def test_batches_hold_equal_shapes():
    samples = [np.full((1, 4, w), w, np.float32) for w in (5, 5, 7, 7, 7, 5)]
    batches = [b["x"].shape for b in open_calibration(samples, WIDE).batches(2)]
    assert batches == [(2, 1, 4, 5), (2, 1, 4, 7), (1, 1, 4, 7), (1, 1, 4, 5)]


def test_no_batch_of_one_shape_is_an_error():
    inputs = [Input("x", F32, (2, 1, 4, "W"))]
    with pytest.raises(CalibrationError, match="in a row of one shape"):
        open_calibration([np.ones((1, 4, w), np.float32) for w in (1, 2, 3)], inputs).first(2)


def test_inputs_without_batch_axis_part_batches():
    samples = [{"x": x, "scale": np.full((1, 2), i // 4, np.float32)} for i, x in enumerate(X)]
    batches = list(open_calibration(samples, SCALED).batches(6))
    assert [(len(b["x"]), b["scale"].tolist()) for b in batches] == [(4, [[0, 0]]), (2, [[1, 1]])]


def test_batches_are_fresh():
    calibration = open_calibration(X, ONE)
    calibration.first(2)["x"][:] = -1
    np.testing.assert_array_equal(calibration.first(2)["x"], X[:2])


@pytest.mark.parametrize(
    "inputs, count, sizes, shared",
    [
        (ONE, 100, (75, 25), False),
        (ONE, 3, (2, 1), False),
        (ONE, 2, (1, 1), False),
        (ONE, 1, (1, 1), True),
        (FIXED, 18, (12, 4), False),  # whole batches of 4; two samples fill none
        (FIXED, 5, (5, 5), True),
    ],
)
def test_split(inputs, count, sizes, shared):
    x = np.repeat(np.arange(count, dtype=np.float32), 16).reshape(count, 1, 4, 4)
    calibration = open_calibration(x, inputs)
    halves = calibration.split(seed=3)
    assert tuple(map(len, halves)) == sizes and all(half.shared is shared for half in halves)
    ids = [all_of(half)[:, 0, 0, 0].astype(int).tolist() for half in halves]
    assert ids == [all_of(half)[:, 0, 0, 0].astype(int).tolist() for half in calibration.split(seed=3)]
    if not shared:
        assert not set(ids[0]) & set(ids[1]) and ids == [sorted(part) for part in ids]
    if count == 100:
        assert tuple(map(len, calibration.split(0.999))) == (1, 99)
        assert ids[1] != all_of(calibration.split(seed=4)[1])[:, 0, 0, 0].astype(int).tolist()
        assert calibration.split(0.5)[0].take(7).split(0.5)[0].ignored == ()


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.split(0),
        lambda c: c.split(1),
        lambda c: c.take(0),
        lambda c: c.batches(0),
        lambda c: open_calibration(X, ONE, limit=0),
    ],
)
def test_bad_calls(call):
    with pytest.raises(UsageError):
        call(open_calibration(X, ONE))


# ---- bounded, and nothing left behind ----------------------------------------------------------------------


def test_a_reader_is_rewound():
    reader = Reader()
    open_calibration(reader, ONE)
    assert reader.get_next() is not None


def test_a_limit_ends_an_endless_generator():
    assert len(open_calibration((x for _ in iter(int, 1) for x in X), ONE, limit=10)) == 10


def test_a_limit_unpacks_no_more(tmp_path):
    assert open_calibration(packed(tmp_path, x=X), ONE, limit=4)._entries[0].load()["x"].shape[0] == 4


def test_a_python_file_leaves_no_cache(tmp_path):
    open_calibration(
        saved(tmp_path, "s.py", b"import numpy as np\ndef f(): return np.ones((1,1,4,4), 'f4')").as_posix() + ":f",
        ONE,
    )
    assert os.listdir(tmp_path) == ["s.py"]


@pytest.mark.parametrize("make", [lambda tmp: (x for x in X), lambda tmp: packed(tmp, x=X)])
def test_spills_to_an_unnamed_file(make, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MEMORY_BYTES", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    source = make(tmp_path)
    (tmp_path / "tmp").mkdir()
    calibration = open_calibration(source, ONE)
    for _ in range(2):
        np.testing.assert_array_equal(all_of(calibration), X)
    assert os.listdir(tmp_path / "tmp") == []
    del calibration
    gc.collect()


def test_no_room_to_spill(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MEMORY_BYTES", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileError, match="set TMPDIR"):
        open_calibration((x for x in X), ONE)


def test_files_are_mapped_not_read(tmp_path):
    """Two samples of a sparse 1 GiB array, and of a member that is stored as it is."""
    data = header((2**24, 1, 4, 4))
    path = saved(tmp_path, "big.npy", data)
    os.truncate(path, len(data) + 2**30)
    for source in (path, npz(tmp_path, x=X)):
        calibration = open_calibration(source, ONE)
        assert calibration.first(2)["x"].shape == (2, 1, 4, 4)
        assert isinstance(calibration._entries[0].load()["x"].base, np.memmap)


def test_what_was_read_of_a_mapped_file_leaves_memory(tmp_path, monkeypatch):
    released = []
    monkeypatch.setattr(calibration, "RELEASE", 4)
    monkeypatch.setattr(on_disk, "release", lambda values: released.extend(values))
    np.save(tmp_path / "x.npy", np.zeros((16, 2), np.float32))
    spec = InputSpec("x", np.dtype(np.float32), ("N", 2))
    assert len(list(open_calibration(tmp_path / "x.npy", [spec]).batches(8))) == 2 and len(released) == 4
