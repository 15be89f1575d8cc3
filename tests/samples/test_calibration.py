"""One row a format, one row a trap: what calibration reads, what it refuses, and that it stays bounded."""

import gc
import io
import os
import struct
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxprune.errors import CalibrationError, FileError, PruneError, UsageError
from onnxprune.samples import arrays as module
from onnxprune.samples.calibration import open_calibration
from onnxprune.samples.images import ImageSpec


@dataclass(frozen=True)
class Input:
    name: str
    dtype: np.dtype
    shape: tuple


F32 = np.dtype("float32")
ONE = [Input("x", F32, ("N", 1, 4, 4))]
TWO = [Input("x", F32, ("N", 1, 4, 4)), Input("ids", np.dtype("int64"), ("N", 3))]
FIXED = [Input("x", F32, (4, 1, 4, 4))]
WIDE = [Input("x", F32, (None, 1, 4, "W"))]
SCALED = [Input("x", F32, ("N", 1, 4, 4)), Input("scale", F32, (1, 2))]
RGB = [Input("x", F32, ("N", 3, 4, 4))]
X = np.arange(6 * 16, dtype=np.float32).reshape(6, 1, 4, 4)
IDS = np.arange(18).reshape(6, 3)


def all_of(calibration, name="x", size=4):
    return np.concatenate([batch[name] for batch in calibration.batches(size)])


# ---- what is read: (make, inputs, names set aside) --------------------------------------------------------


def npz(tmp, **arrays):
    np.savez(tmp / "c.npz", **arrays)
    return tmp / "c.npz"


def packed(tmp, **arrays):
    np.savez_compressed(tmp / "c.npz", **arrays)
    return str(tmp / "c.npz")


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


class Reader:
    """Like onnxruntime's CalibrationDataReader; gives the same buffer every time, as real ones do."""

    def __init__(self):
        self.at, self.buffer = 0, np.empty((1, 1, 4, 4), np.float32)

    def get_next(self):
        if self.at == 6:
            return None
        self.buffer[...] = X[self.at]
        self.at += 1
        return {"x": self.buffer}

    def rewind(self):
        self.at = 0


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


def header(shape, descr="<f4", fill=b""):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + fill


def saved(tmp, name, data):
    (tmp / name).write_bytes(data)
    return tmp / name


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
    "dict, missing name": (lambda tmp: {"a": X, "b": X}, ONE, "has no 'x'"),
    "one array, two inputs": (lambda tmp: npy(tmp, X), TWO, "the model has the inputs 'x', 'ids'"),
    "counts differ": (lambda tmp: npz(tmp, x=X, ids=IDS[:5]), TWO, "{'x': 6, 'ids': 5}"),
    "rank": (lambda tmp: X[:, 0, 0], ONE, "shape (6, 4), the model wants (N, 1, 4, 4)"),
    "axes in another order": (lambda tmp: X.transpose(0, 2, 3, 1), ONE, "the order of the axes"),
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


# ---- batches, takes and splits -----------------------------------------------------------------------------


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
    monkeypatch.setattr(module, "MEMORY_BYTES", 100)
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
    monkeypatch.setattr(module, "MEMORY_BYTES", 100)
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


# ---- images ------------------------------------------------------------------------------------------------


def photos(tmp):
    for i, kind in enumerate(("cat", "cat", "dog", "dog")):
        (tmp / "photos" / kind).mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[..., 0], pixels[:, 8:, 2] = 100 + i, 50  # red; blue in the right half
        Image.fromarray(pixels).save(tmp / "photos" / kind / f"{i}.png")
    return tmp / "photos"


LEFT, RIGHT = (100, 0, 0), (100, 0, 50)
IMAGES = {  # text: pixels (h, w, channels) of the first image at its left and right edge
    "size=4x4,scale=1,resize=nearest": (LEFT, RIGHT),
    "size=4x4,scale=1,resize=nearest,order=bgr": (LEFT[::-1], RIGHT[::-1]),
    "size=4x4,scale=1,resize=nearest,fit=pad": (LEFT, RIGHT),  # black lies below
    "size=4x4,scale=1,resize=nearest,fit=crop": (LEFT, RIGHT),
    "size=4x4,scale=1,resize=nearest,fit=crop,crop=0.5": (LEFT, RIGHT),
    "size=4x4,scale=100,mean=1:0:0,std=2,resize=bicubic": ((0, 0, 0), (0, 0, 0.25)),
}


@pytest.mark.parametrize("text", IMAGES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_images(text, layout, tmp_path):
    inputs = RGB if layout == "nchw" else [Input("x", F32, (None, 4, 4, 3))]
    spec = ImageSpec.parse(f"{text},layout={layout}")
    calibration = open_calibration(photos(tmp_path), inputs, image=spec)
    assert len(calibration) == 4
    x = calibration.first(1)["x"][0]
    x = x.transpose(1, 2, 0) if layout == "nchw" else x
    atol = 0.03 if "bicubic" in text else 0
    np.testing.assert_allclose([x[0, 0], x[0, -1]], IMAGES[text], atol=atol)
    if "pad" in text:
        assert not x[2:].any() and x[1].any()


def test_image_limit_takes_from_every_class(tmp_path):
    spec = ImageSpec((4, 4), scale=1)
    reds = all_of(open_calibration(photos(tmp_path), RGB, image=spec, limit=2))[:, 0, 0, 0]
    assert reds.tolist() == [100, 103]


@pytest.mark.parametrize(
    "image, inputs, error, words",
    [
        (None, RGB, UsageError, "a folder of images"),
        (ImageSpec((5, 4)), RGB, CalibrationError, "shape (1, 3, 5, 4)"),
        (ImageSpec((4, 4), order="gray"), RGB, CalibrationError, "shape (1, 1, 4, 4)"),
        (ImageSpec((4, 4)), RGB, CalibrationError, "1.png: cannot be read: UnidentifiedImageError"),
    ],
)
def test_images_refused(image, inputs, error, words, tmp_path):
    folder = photos(tmp_path)
    (folder / "cat" / "1.png").write_bytes(b"<html>")
    with pytest.raises(PruneError) as caught:
        all_of(open_calibration(folder, inputs, image=image))
    assert type(caught.value) is error and words in str(caught.value)


def test_images_without_pillow(tmp_path, monkeypatch):
    folder = photos(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(CalibrationError, match=r"onnxprune\[images\]"):
        open_calibration(folder, RGB, image=ImageSpec((4, 4)))


def test_image_spec_in_full():
    text = "size=224x192, mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=NHWC,order=bgr,scale=1"
    text += ",resize=bilinear,fit=crop,crop=0.875"
    assert ImageSpec.parse(text) == ImageSpec(
        (224, 192), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1, "nhwc", "bgr", "bilinear", "crop", 0.875
    )


@pytest.mark.parametrize(
    "text",
    ["", "size", "size=4", "size=4xa", "size=0x4", "size=4x4,colour=rgb", "size=4x4,order=hsv", "mean=1"]
    + [f"size=4x4,{part}" for part in ("mean=a", "mean=1:2", "mean=nan", "std=0", "scale=0", "crop=2", "fit=zoom")],
)
def test_image_spec_refuses(text):
    with pytest.raises(UsageError, match="image: "):
        ImageSpec.parse(text)
