"""`onnxprune demo`: files and folder, and the command that it runs; what a wheel holds."""

import re
import tomllib
from pathlib import Path

import pytest

from onnxprune.cli import main
from onnxprune.commands import demo, prune

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def asked(monkeypatch):
    """What the main job was asked for, instead of being done."""
    found = []
    monkeypatch.setattr(prune, "run", lambda args, status: found.append(args))
    return found


def test_it_runs_the_example_in_a_folder_of_its_own(tmp_path, monkeypatch, capsys, asked):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    folder = tmp_path / demo.FOLDER
    assert sorted(p.name for p in folder.iterdir()) == sorted(demo.FILES)
    model = "benchmarks/models/resnet20_fmnist.onnx"
    assert (folder / demo.MODEL).read_bytes() == (ROOT / model).read_bytes()
    (args,) = asked
    assert (args.model, args.calib) == (f"{demo.FOLDER}/{demo.MODEL}", f"{demo.FOLDER}/{demo.SAMPLES}")
    example = re.search(r"onnxprune (benchmarks/\S+ --ratio 0.5 --calib \S+)", (ROOT / "README.md").read_text())[1]
    shown = capsys.readouterr().out
    assert re.sub(r"benchmarks/\w+/", f"{demo.FOLDER}/", example) in shown
    assert main(["demo", "-q", "new/deep", "--force"]) == 0 and (tmp_path / "new/deep" / demo.MODEL).is_file()
    assert asked[1].force and asked[1].quiet and not capsys.readouterr().out


def test_what_is_there_stays_unless_forced(tmp_path, capsys, asked):
    assert main(["demo", str(tmp_path)]) == main(["demo", str(tmp_path)]) == 0
    (tmp_path / demo.SAMPLES).write_text("mine")
    assert main(["demo", str(tmp_path)]) == 7 and "--force" in capsys.readouterr().err
    assert (tmp_path / demo.SAMPLES).read_text() == "mine"
    assert main(["demo", str(tmp_path), "--force"]) == 0
    assert (tmp_path / demo.SAMPLES).read_bytes() == demo.source(demo.SAMPLES).read_bytes()


def test_a_folder_that_cannot_be_is_told(tmp_path, capsys, asked):
    (tmp_path / "file").write_text("")
    assert main(["demo", str(tmp_path / "file")]) == 7
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "file" in err and not asked


def test_an_install_without_the_files_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "PACKAGE", tmp_path / "onnxprune")
    assert main(["demo", str(tmp_path / "new")]) == 7 and "did not come with" in capsys.readouterr().err


def test_what_is_packed_is_what_is_copied():
    """And the source distribution has what the wheel is made of."""
    setup, manifest = (ROOT / "setup.py").read_text(), (ROOT / "MANIFEST.in").read_text()
    for name, folder in demo.FILES.items():
        assert f'"{folder}/{name}"' in setup and f"benchmarks/{folder}/{name}" in manifest
        assert (ROOT / "benchmarks" / folder / name).is_file()


def test_the_package_says_what_it_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "MIT" and project["authors"] and "Typing :: Typed" in project["classifiers"]
    assert not any(line.startswith("License ::") for line in project["classifiers"])
    for path in project["license-files"]:
        assert (ROOT / path).is_file()


def test_no_message_installs_the_package_from_an_index():
    """It is on none; what it needs is."""
    for path in (ROOT / "onnxprune").rglob("*.py"):
        assert not re.search(r"pip install [^\n]*onnxprune", path.read_text()), path
