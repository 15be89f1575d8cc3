"""The table of formats: what it is called where people read it, and that a format of one's own is one entry."""

import subprocess
import sys

import numpy as np
import pytest

from onnxprune.commands.options import Parser, add_samples
from onnxprune.errors import CalibrationError
from onnxprune.runtime.ports import InputSpec
from onnxprune.samples import sources
from onnxprune.samples.calibration import open_calibration
from onnxprune.samples.sources import kinds, source, suffix, when

INPUTS = [InputSpec("x", np.dtype("float32"), ("N", 3))]
X = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(sources, "SOURCES", list(sources.SOURCES))
    return sources


def enter_csv(**options):
    @source("a .csv", "file", suffix(".csv"), **options)
    def csv(reading, path):
        for line in path.read_text().splitlines():
            yield reading.item(f"{path}: {line}", np.array([line.split(",")], float))


def csv(folder):
    np.savetxt(folder / "c.csv", X, delimiter=",")
    return folder / "c.csv"


def test_what_people_read():
    assert kinds() == "a .npz, a .npy, a folder of .npy, test_data_set_* or images, or file.py:function"


def test_every_entry_says_what_it_reads():
    assert all(entry.read.__doc__ for entry in sources.SOURCES)
    assert [entry.words for entry in sources.SOURCES if entry.place != "python" and not entry.words] == []


def test_a_format_of_ones_own(table, tmp_path):
    with pytest.raises(CalibrationError, match="not a source of samples"):
        open_calibration(csv(tmp_path), INPUTS)
    enter_csv()
    found = open_calibration(csv(tmp_path), INPUTS, limit=3)
    np.testing.assert_array_equal(found.first(4)["x"], X[:3])
    assert repr(found) == f"Calibration({tmp_path / 'c.csv'}: 3 samples of x (N, 3))"


def test_messages_and_help_name_it(table, tmp_path):
    enter_csv()
    with pytest.raises(CalibrationError, match=r"not found; give a \.npz, a \.npy, a \.csv, a folder of"):
        open_calibration(tmp_path / "no.csv", INPUTS)
    parser = Parser("prune", "prune", "")
    add_samples(parser)
    assert "a .npz, a .npy, a .csv, a folder of" in " ".join(parser.format_help().split())


def test_it_is_read_with_the_same_care(table, tmp_path):
    enter_csv()
    (tmp_path / "bad.csv").write_text("1,2,nan\n")
    with pytest.raises(CalibrationError, match="sample 0: input 'x' holds NaN"):
        open_calibration(tmp_path / "bad.csv", INPUTS).first(1)
    (tmp_path / "bad.csv").write_text("1,2,three\n")
    with pytest.raises(CalibrationError, match=r"bad\.csv: cannot be read: ValueError"):
        open_calibration(tmp_path / "bad.csv", INPUTS)


def test_an_extra_that_is_not_there(table, tmp_path):
    enter_csv(extra=("no_such_module", "a .csv needs no_such_module; pip install it"))
    with pytest.raises(CalibrationError, match=r"c\.csv: a \.csv needs no_such_module; pip install it"):
        open_calibration(csv(tmp_path), INPUTS)


def test_objects_and_folders_of_ones_own(table, tmp_path):
    @source("frames", "python", when(lambda given: isinstance(given, range)), first=True)
    def frames(reading, given):
        yield reading.item(reading.title, X[given])

    @source("a table.txt", "folder", lambda folder: next(folder.glob("table.txt"), None))
    def table_in_folder(reading, path):
        yield reading.item(str(path), np.loadtxt(path))

    np.savetxt(tmp_path / "table.txt", X)
    np.testing.assert_array_equal(open_calibration(tmp_path, INPUTS).first(4)["x"], X)
    np.testing.assert_array_equal(open_calibration(range(1, 3), INPUTS).first(4)["x"], X[1:3])
    with pytest.raises(
        CalibrationError, match=r"images or a table\.txt, or file\.py:function, arrays, dicts or frames"
    ):
        open_calibration(None, INPUTS)


def test_a_folder_of_test_sets_is_read_as_one_whatever_lies_beside(tmp_path):
    import onnx

    np.save(tmp_path / "a.npy", X[:1])
    (tmp_path / "input_0.pb").write_bytes(onnx.numpy_helper.from_array(X).SerializeToString())
    np.testing.assert_array_equal(open_calibration(tmp_path, INPUTS).first(4)["x"], X)


def test_the_table_does_not_wait_for_numpy():
    code = "import sys, onnxprune.samples.sources as s; s.kinds(); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_of_other_files_says_what_reads_them(tmp_path):
    for name in ("a.wav", "b.WAV", "notes.txt", "no suffix"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"but 2 files \.wav: a function of yours can read them"):
        open_calibration(tmp_path, INPUTS)
