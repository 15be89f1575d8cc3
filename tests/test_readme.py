"""The README is true: its Python runs, its options exist, its summary is ours, and it is short. What it names, and the
documents behind it: `test_docs`."""

import re
from pathlib import Path

import pytest

from onnxprune import cli
from onnxprune.commands import prune

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def command(marker):
    return re.search(rf"<!-- command: {marker} -->\n```\w*\n(.*?)\n```", README, re.S)[1]


@pytest.mark.slow
def test_the_python_runs(tmp_path, monkeypatch, capsys):
    (snippet,) = blocks("python")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert (tmp_path / "pruned.onnx").is_file()
    assert "MACs" in capsys.readouterr().out


def options():
    known = set()
    for make_parser, _ in cli.COMMANDS.values():
        for action in make_parser()._actions:
            known.update(action.option_strings)
    return known


NAMED = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"<!--.*?-->", "", README)))


def test_every_option_exists():
    assert NAMED - options() == set()
    assert len(NAMED) > 10  # the pattern finds them at all


def test_every_option_is_in_the_main_help():
    page = prune.parser().format_help()
    for flag in NAMED:
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", page), flag


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_named(name):
    assert name == "prune" or f"onnxprune {name} " in README


@pytest.mark.parametrize("marker", ["main job", "tests"])
def test_commands_are_one_line_and_complete(marker):
    text = command(marker)
    assert "\n" not in text and text.startswith("python3 -m venv ")
    for path in re.findall(r"benchmarks/\S+", text):
        assert (ROOT / path).is_file()


def test_the_main_command_is_understood():
    words = command("main job").split("/onnxprune ")[1].split()
    args = prune.parser().parse_args(words)
    assert args.ratio == 0.5 and args.calib == "benchmarks/data/calib.npz"


def test_the_summary_is_ours(capsys, tmp_path):
    """The first lines of the shown summary hold no time: they come out again, to the last digit."""
    words = command("main job").split("/onnxprune ")[1].replace("benchmarks/", f"{ROOT}/benchmarks/").split()
    assert cli.main([*words, "--no-bench", "-o", str(tmp_path / "p.onnx")]) == 0
    shown = README.split("## What you see")[1].split("```")[1]
    fresh = capsys.readouterr().out.splitlines()
    for line in (line for line in fresh if line.startswith(("MACs", "parameters", "verdict", "groups", "kept"))):
        assert line in shown, "the README's summary is out of date"


def test_it_is_short():
    assert 500 < len(re.findall(r"\S*\w\S*", README)) <= 1000


def test_no_path_of_a_machine():
    assert not re.search(r"/(home|work|root|Users|tmp)/", README)


def test_the_package_lists_its_public_names():
    import onnxprune

    assert set(onnxprune.__all__) < set(dir(onnxprune)) and "__version__" in dir(onnxprune)
    assert all(hasattr(onnxprune, name) for name in dir(onnxprune))
    assert (Path(onnxprune.__file__).parent / "py.typed").is_file()
