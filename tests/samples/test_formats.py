"""One row a format, one row a trap: what calibration reads, and what it refuses."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.errors import CalibrationError
from onnxprune.samples.calibration import open_calibration
from tests.samples.given import (
    FIXED,
    IDS,
    ONE,
    SCALED,
    TWO,
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

# ---- what is read: (make, inputs, names set aside) --------------------------------------------------------


def npy(tmp, array):
    np.save(tmp / "c.npy", array)
    return tmp / "c.npy"


def npy_folder(tmp):
    (tmp / "d").mkdir()
    np.save(tmp / "d" / "a.npy", X[:3])
    np.save(tmp / "d" / "b.npy", X[3])  # one sample, no batch axis
    np.save(tmp / "d" / "c.npy", X[4:])
    return tmp / "d"


def tensor_file(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx.numpy_helper.from_array(array).SerializeToString())


def test_sets(tmp, arrays=(X, IDS)):
    for i, row in enumerate((0, 1, 2, 3, 4, 5, None, None, None, None, None)):
        for k, array in enumerate(arrays):
            part = array[row : row + 1] if row is not None else array[:0]
            tensor_file(tmp / "m" / f"test_data_set_{i}" / f"input_{k}.pb", part)
    return tmp / "m"


test_sets.__test__ = False


def one_set(tmp):
    tensor_file(tmp / "m" / "input_0.pb", X)
    return tmp / "m"


def script(tmp, body):
    (tmp / "neighbour.py").write_text("import numpy as np\nX = np.arange(96, dtype='f4').reshape(6, 1, 4, 4)\n")
    (tmp / "s.py").write_text(f"def samples():\n    from neighbour import X\n    {body}\n")
    return f"{tmp / 's.py'}:samples"


class Tensor:
    """A tensor of some framework: an array to whoever asks."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __array__(self, dtype=None, copy=None):
        return self.array


READ = {
    "npz": (lambda tmp: npz(tmp, x=X), ONE, ()),
    "npz, compressed": (lambda tmp: packed(tmp, x=X), ONE, ()),
    "npz, any single key": (lambda tmp: packed(tmp, images=X), ONE, ()),
    "npz, labels set aside": (lambda tmp: npz(tmp, x=X, labels=IDS[:, 0]), ONE, ("labels",)),
    "npz, pickled labels are never opened": (
        lambda tmp: npz(tmp, x=X, y=np.array([{}], object)),
        ONE,
        ("y",),
    ),
    "npz, two inputs": (lambda tmp: packed(tmp, ids=IDS, x=X), TWO, ()),
    "npz, an input without batch axis": (
        lambda tmp: npz(tmp, x=X, scale=np.ones((1, 2), np.float32)),
        SCALED,
        (),
    ),
    "npz, Fortran order": (lambda tmp: packed(tmp, x=np.asfortranarray(X)), ONE, ()),
    "npy": (lambda tmp: npy(tmp, X), ONE, ()),
    "npy, Fortran order": (lambda tmp: npy(tmp, np.asfortranarray(X)), ONE, ()),
    "npy, float64": (lambda tmp: npy(tmp, X.astype("f8")), ONE, ()),
    "npy, big-endian": (lambda tmp: npy(tmp, X.astype(">f4")), ONE, ()),
    "folder of npy": (npy_folder, ONE, ()),
    "test_data_sets": (test_sets, TWO, ()),
    "one test_data_set": (one_set, ONE, ()),
    "file.py:function, generator": (lambda tmp: script(tmp, "yield from X"), ONE, ()),
    "file.py:function, list": (lambda tmp: script(tmp, "return [{'x': x} for x in X]"), ONE, ()),
    "array": (lambda tmp: X, ONE, ()),
    "dict": (lambda tmp: {"x": X, "ids": IDS}, TWO, ()),
    "dict, narrow integers": (lambda tmp: {"x": X, "ids": IDS.astype("i4")}, TWO, ()),
    "list of dicts": (lambda tmp: [{"x": x, "ids": i} for x, i in zip(X, IDS, strict=True)], TWO, ()),
    "list of arrays": (lambda tmp: [X[:2], X[2], X[3:]], ONE, ()),
    "generator": (lambda tmp: (x for x in X), ONE, ()),
    "callable": (lambda tmp: lambda: (x for x in X), ONE, ()),
    "loader of (images, labels)": (
        lambda tmp: ((Tensor(X[i : i + 2]), IDS[0]) for i in (0, 2, 4)),
        ONE,
        ("element 1",),
    ),
    "calibration reader": (lambda tmp: Reader(), ONE, ()),
}


@pytest.mark.parametrize("row", READ)
def test_reads(row, tmp_path):
    make, inputs, ignored = READ[row]
    calibration = open_calibration(make(tmp_path), inputs)
    assert len(calibration) == 6 and calibration.ignored == ignored
    for size in (1, 4, 100):  # every pass gives the same samples
        batches = list(calibration.batches(size))
        assert [len(b["x"]) for b in batches] == {1: [1] * 6, 4: [4, 2], 100: [6]}[size]
        assert all(b[spec.name].dtype == spec.dtype for b in batches for spec in inputs)
        np.testing.assert_array_equal(np.concatenate([b["x"] for b in batches]), X)
    if inputs is TWO:
        np.testing.assert_array_equal(all_of(calibration, "ids"), IDS)


@pytest.mark.parametrize("row", [row for row in READ if "two" not in row])
def test_limit(row, tmp_path):
    make, inputs, _ = READ[row]
    np.testing.assert_array_equal(all_of(open_calibration(make(tmp_path), inputs, limit=4)), X[:4])


# ---- what is refused: (make, inputs, words of the message) -------------------------------------------------


def zipped(tmp, name, data, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(tmp / "c.npz", "w", method) as archive:
        archive.writestr(name, data)
    return tmp / "c.npz"


def pickled(tmp, name):
    np.save(tmp / name, np.array([print], object), allow_pickle=True)
    return tmp / name


def damaged(tmp):
    path = Path(packed(tmp, x=np.random.default_rng(0).random((64, 1, 4, 4)).astype("f4")))
    data = bytearray(path.read_bytes())
    data[400:420] = bytes(20)
    path.write_bytes(data)
    return path


def elsewhere(tmp):
    tensor = onnx.numpy_helper.from_array(X)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    return saved(tmp, "input_0.pb", tensor.SerializeToString()).parent


def twice(tmp):
    with zipfile.ZipFile(tmp / "c.npz", "w") as archive:
        archive.writestr("x.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", b"")
    return tmp / "c.npz"


def with_value(value):
    bad = X.copy()
    bad[3, 0, 1, 2] = value
    return bad


NPY = io.BytesIO()
np.save(NPY, X)
REFUSED = {
    "missing": (lambda tmp: tmp / "no.npz", ONE, "no.npz: not found"),
    "another kind of file": (lambda tmp: saved(tmp, "c.csv", b"1,2"), ONE, "not a source of samples"),
    "device": (lambda tmp: os.devnull, ONE, "not a source of samples"),
    "empty folder": (lambda tmp: tmp, ONE, "no .npy, test_data_set_"),
    "empty npy file": (lambda tmp: saved(tmp, "c.npy", b""), ONE, "not an .npy array"),
    "empty npz file": (lambda tmp: saved(tmp, "c.npz", b""), ONE, "BadZipFile"),
    "Git LFS pointer, npz": (
        lambda tmp: saved(tmp, "c.npz", b"version https://git-lfs.github.com/spec/v1"),
        ONE,
        "git lfs pull",
    ),
    "Git LFS pointer": (
        lambda tmp: saved(tmp, "c.npy", b"version https://git-lfs.github.com/spec/v1"),
        ONE,
        "git lfs pull",
    ),
    "pickled npy": (lambda tmp: pickled(tmp, "c.npy"), ONE, "holds pickled"),
    "pickled member": (lambda tmp: npz(tmp, x=np.array([print, 1], object)), ONE, "holds pickled"),
    "bare pickle": (lambda tmp: saved(tmp, "c.npy", b"\x80\x04K\x01."), ONE, "not an .npy array"),
    "bomb": (
        lambda tmp: zipped(tmp, "x.npy", header("(4, 1, 4, 4)", fill=bytes(2**21))),
        ONE,
        "the cap is 1,048,576",
    ),
    "bomb of a header": (
        lambda tmp: saved(tmp, "c.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{"),
        ONE,
        "a header of 2,147,483,648 bytes",
    ),
    "huge shape": (lambda tmp: saved(tmp, "c.npy", header((2**40, 1, 4, 4))), ONE, "but 0 are there"),
    "huge shape in an archive": (
        lambda tmp: zipped(tmp, "x.npy", header((2**62, 2, 4, 4))),
        ONE,
        "but 0 are there",
    ),
    "negative shape": (lambda tmp: saved(tmp, "c.npy", header((-4, 1, 4, 4))), ONE, "the header says (-4"),
    "header that is no literal": (lambda tmp: saved(tmp, "c.npy", header("print()")), ONE, "not a header"),
    "cut short": (lambda tmp: saved(tmp, "c.npy", NPY.getvalue()[:-1]), ONE, "but 383 are there"),
    "damaged archive": (damaged, ONE, "c.npz: input 'x': cannot be read"),
    "a member twice": (twice, ONE, "two members are named 'x'"),
    "member ../": (
        lambda tmp: zipped(tmp, "../../x.npy", NPY.getvalue()),
        ONE,
        "has no 'x'; the model has the input 'x'",
    ),
    "absolute member": (lambda tmp: zipped(tmp, "/etc/x.npy", NPY.getvalue()), ONE, "has no 'x'"),
    "unknown name": (lambda tmp: npz(tmp, x=X, z=X), ONE, "has 'z'; the model has the input 'x'"),
    "missing name": (
        lambda tmp: npz(tmp, x=X, idx=IDS),
        TWO,
        "has no 'ids'; the model has the inputs 'x', 'ids'",
    ),
    "missing number": (
        lambda tmp: npz(tmp, x=X),
        [*ONE, Input("flip", np.dtype(bool), ())],
        "this has 'x'; or give one for all samples: --input-value flip=NUMBER",
    ),
    "dict, missing name": (lambda tmp: {"a": X, "b": X}, ONE, "has no 'x'"),
    "one array, two inputs": (lambda tmp: npy(tmp, X), TWO, "the model has the inputs 'x', 'ids'"),
    "counts differ": (lambda tmp: npz(tmp, x=X, ids=IDS[:5]), TWO, "{'x': 6, 'ids': 5}"),
    "rank": (lambda tmp: X[:, 0, 0], ONE, "shape (6, 4), the model wants (N, 1, 4, 4)"),
    "axes in another order": (lambda tmp: X.transpose(0, 2, 3, 1), ONE, "the order of the axes"),
    "images before their channels": (
        lambda tmp: np.zeros((2, 1, 4, 4), "u1"),
        [Input("x", np.dtype("u1"), (None, 4, 4, 1))],
        "(images of a folder: --image layout=nhwc,order=gray)",
    ),
    "an empty axis": (lambda tmp: X[..., :0], WIDE, "shape (6, 1, 4, 0)"),
    "bytes for floats": (lambda tmp: X.astype("u1"), ONE, "preprocess them as for inference"),
    "floats for integers": (lambda tmp: {"x": X, "ids": IDS / 2}, TWO, "is float64, the model wants int64"),
    "strings": (lambda tmp: np.array(["a"]), ONE, "is <U1"),
    "Python objects": (lambda tmp: {"x": None}, ONE, "Python objects"),
    "no samples": (lambda tmp: X[:0], ONE, "no samples"),
    "no samples in a list": (lambda tmp: [], ONE, "samples: no samples"),
    "fewer than the fixed batch": (lambda tmp: X[:3], FIXED, "batch is fixed at 4"),
    "NaN": (lambda tmp: with_value(np.nan), ONE, "sample 3: input 'x' holds NaN or Inf"),
    "Inf in a list": (lambda tmp: list(with_value(np.inf)), ONE, "item 3: sample 3: input 'x' holds"),
    "Inf after the cast": (
        lambda tmp: with_value(3e38) * np.float64(100),
        ONE,
        "sample 3: input 'x' holds",
    ),
    "integers beyond the type": (
        lambda tmp: np.full((1, 2), 300),
        [Input("x", np.dtype("u1"), (1, 2))],
        "beyond uint8",
    ),
    "endless generator": (
        lambda tmp: (np.zeros((64, 1, 4, 4), "f4") for _ in iter(int, 1)),
        ONE,
        "set a limit",
    ),
    "generator that fails": (lambda tmp: (1 / 0 for _ in X), ONE, "ZeroDivisionError"),
    "function that fails": (
        lambda tmp: script(tmp, "raise OSError('line\\n\\x1b[31m')"),
        ONE,
        "OSError: line ?[31m",
    ),
    "no such function": (lambda tmp: script(tmp, "pass") + "x", ONE, "no function 'samplesx'"),
    "function of nothing": (lambda tmp: script(tmp, "pass"), ONE, "NoneType is no source"),
    "syntax error": (lambda tmp: f"{saved(tmp, 's.py', b'def')}:f", ONE, "SyntaxError"),
    "not a tensor": (
        lambda tmp: saved(tmp, "input_0.pb", b"<html>").parent,
        ONE,
        "input_0.pb: cannot be read",
    ),
    "tensor in another file": (elsewhere, ONE, "its data lies in another file"),
    "test set without an input": (one_set, TWO, "input_1.pb: cannot be read"),
    "ANSI in a key": (lambda tmp: npz(tmp, **{"\x1b[31m": X, "a": X}), ONE, r"'\x1b[31m'"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_refuses(row, tmp_path):
    make, inputs, words = REFUSED[row]
    source = make(tmp_path)
    with pytest.raises(CalibrationError) as caught:
        all_of(open_calibration(source, inputs, max_bytes=1 << 20))
    message = str(caught.value)
    assert words in message and message.isprintable() and caught.value.exit_code == 4
