"""What the command line says of itself: help waits for nothing, tables are listed, wrong options are answered."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from onnxprune.cli import COMMANDS, main
from onnxprune.commands import help, prune
from onnxprune.commands.documents import document
from onnxprune.commands.options import given, takes
from onnxprune.commands.table import flags_of
from onnxprune.decide.criteria import CRITERIA
from onnxprune.elsewhere.backends import BACKENDS, HERE
from onnxprune.errors import EXITS
from onnxprune.measure.figures import FIGURES
from onnxprune.measure.kinds.table import KINDS, spelled
from onnxprune.pipeline.goals import TARGETS
from onnxprune.pipeline.repairs import REPAIRS
from onnxprune.pipeline.settings import OPTIONS, Settings, flag_of, help_of
from onnxprune.pipeline.training_methods import METHODS
from onnxprune.report import wrapping
from onnxprune.runtime.providers import PROVIDERS
from onnxprune.samples.sources import SOURCES


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_neither_numpy_nor_onnx(argv):
    script = f"""import sys
from onnxprune.cli import main
assert main({argv!r}) == 0
assert not {{"numpy", "onnx", "torch", "scipy", "onnxruntime", "rich"}} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage: onnxprune")


def test_every_setting_is_in_the_help_of_the_commands_that_take_it():
    pages = {name: " ".join(make().format_help().split()) for name, (make, _) in COMMANDS.items()}
    for name, option in OPTIONS.items():
        for command in option.commands or (
            "prune",
            "inspect",
            "plan",
            "apply",
            "train",
            "verify",
            "sensitivity",
            "bench",
        ):
            assert takes(command, option) and f"{flag_of(name)} " in pages[command] and help_of(name) in pages[command]


def test_the_main_help_leaves_rare_settings_to_prune():
    main_page, page = prune.parser().format_help(), prune.parser("prune").format_help()
    for name, option in OPTIONS.items():
        assert (f"\n  {flag_of(name)} " in main_page) == (not option.rare) and f"\n  {flag_of(name)} " in page


def test_what_is_read_is_what_was_written(monkeypatch):
    line = """m.onnx --of params --criterion l1 --allocation uniform --round-to 4 --min-width 2 --include a --exclude b
        --methods channels,blocks --keep-block c --best-effort --prune-statistics --repair none --epochs 3
        --batch 8 --providers cuda,cpu --provider-option cuda.a=1 --provider-option cuda.b=2 --no-metadata --device d --refine r,s
        --quantize int8 --input-value rate=1 --batch-axis state=1 --output-kind y=boxes,axis=1 --output-kind a=b=text
        --weight y=2 --weight y[:,0:4]=0.5 --threads 2 --memory 4GB --seed 5 --backend dask --address tcp://a:1
        --store s"""
    monkeypatch.setattr("onnxprune.elsewhere.backends.find_spec", lambda package: True)
    found = given(prune.parser().read(line.split()), "prune")
    assert Settings(**found) == Settings(
        of="params", criterion="l1", allocation="uniform", round_to=4, min_width=2, include="a", exclude="b",
        methods=("channels", "blocks"), keep_block="c", best_effort=True, prune_statistics=True, repair="none",
        epochs=3, batch=8, providers=("cuda", "cpu"), provider_options={"CUDAExecutionProvider": {"a": "1", "b": "2"}},
        metadata=False, device="d", refine=("r", "s"), input_value={"rate": (1.0,)}, batch_axis={"state": 1},
        output_kind={"y": "boxes,axis=1", "a=b": "text"}, weight={"y": 2, "y[:,0:4]": 0.5},
        threads=2, memory=4 * 10**9, seed=5, quantize="int8", backend="dask", address="tcp://a:1", store="s",
    )  # fmt: skip
    trained = {"augment", "minutes", "recipe"}  # those need a repair that trains
    assert found.keys() | trained | {"precision"} == OPTIONS.keys()  # and one format is enough
    assert given(prune.parser().read(["m.onnx"]), "prune") == {}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["m.onnx", "--rati", "0.5"], "did you mean --ratio?"),
        (["m.onnx", "--criterium=l1"], "did you mean --criterion?"),
        (["bench", "m.onnx", "--provider", "cpu"], "did you mean --providers?"),
        (["inspct", "m.onnx"], "did you mean `onnxprune inspect`?"),
        (["m.onnx", "--calib", "none.npz", "--repair", "refitt"], "did you mean refit?"),
        (["help", "criterions"], "did you mean criteria?"),
        (["--rati", "0.5"], "did you mean --ratio?"),
        (["m.onnx", "-ratio", "0.5"], "did you mean --ratio?"),
        (["m.onnx", "–ratio", "0.5"], "did you mean --ratio?"),
        (["m.onnx", "ratio", "0.5"], "did you mean --ratio?"),
        (["m.onnx", "ratio=0.5"], "did you mean --ratio=0.5?"),
        (["m.onnx", "--min_width", "2"], "did you mean --min-width?"),
        (["m.onnx", "--Ratio=0.5"], "did you mean --ratio?"),
        (
            ["bench", "m.onnx", "--report", "r.html"],
            "--report is an option of prune, train, search; here `onnxprune report` makes a page of what --json prints;",
        ),
        (["m.onnx", "--checkpoint", "c"], "--checkpoint is an option of train"),
        (["m.onnx", "inspect"], "a command comes first: `onnxprune inspect ...`"),
        (["m.onnx", os.path.dirname(__file__)], "samples are given as --calib"),
        (["--verison"], "did you mean --version?"),
        (["sensitivty", "m.onnx"], "did you mean `onnxprune sensitivity`?"),
        (["Inspect", "m.onnx"], "did you mean `onnxprune inspect`?"),
        (["completion", "bsh"], "did you mean bash?"),
        (["m.onnx", "--of", "mac"], "did you mean macs?"),
        (["m.onnx", "--allocation", "adaptve"], "did you mean adaptive?"),
        (["m.onnx", "--criterion", "elimnation"], "did you mean elimination?"),
        (["m.onnx", "--methods", "chanels"], "did you mean channels?"),
        (["m.onnx", "--providers", "cdua"], "did you mean cuda?"),
        (["m.onnx", "--provider-option", "cdua.use_tf32=0"], "did you mean cuda?"),
        (["m.onnx", "--calib", "c", "--image", "sise=2x2"], "did you mean size?"),
        (["m.onnx", "--calib", "c", "--image", "size=2x2,order=rbg"], "did you mean rgb?"),
    ],
)
def test_what_is_nearly_right_is_told(capsys, argv, words):
    """Before anything is read."""
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1


NAMES = {
    "criteria": CRITERIA, "repairs": REPAIRS, "targets": [t.option for t in TARGETS.values()], "training": METHODS,
    "providers": PROVIDERS, "calibration": [s.words for s in SOURCES if s.place == "file"], "settings": OPTIONS,
    "exits": [str(code) for code in EXITS], "kinds": [spelled(name) for name in KINDS], "metrics": FIGURES,
    "backends": (HERE, *BACKENDS),
}  # fmt: skip


@pytest.mark.parametrize("topic", NAMES)
def test_a_topic_lists_its_table(capsys, topic):
    assert main(["help", topic]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in NAMES[topic]:
        assert any(line.startswith(f"  {name} ") for line in lines), name
    assert main(["help", topic, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["entries"]) >= len(NAMES[topic])


TABLES = {topic for topic, (_, entries) in help.TOPICS.items() if list(entries())}
DOCUMENTS = [topic for topic in help.TOPICS if document(topic)]


def test_a_topic_is_a_table_or_a_document():
    assert set(NAMES) == TABLES and TABLES | set(DOCUMENTS) == set(help.TOPICS)


@pytest.mark.parametrize("topic", DOCUMENTS)
def test_a_topic_shows_its_document(capsys, topic):
    title = document(topic).splitlines()[0].removeprefix("# ")
    assert main(["help", topic]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert title in lines and max(map(len, lines)) <= 124 and len(lines) > 10
    assert main(["help", topic, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == document(topic)


def test_documents_are_shown_at_once():
    script = """import sys, time
from onnxprune.cli import main
for topic in sys.argv[1:]:
    assert main(["help", topic]) == 0
assert not {"numpy", "onnx", "torch", "scipy", "onnxruntime", "rich"} & set(sys.modules)
print(time.process_time(), file=sys.stderr)"""
    only = [topic for topic in DOCUMENTS if topic not in TABLES]
    done = subprocess.run([sys.executable, "-c", script, *only], check=True, capture_output=True, text=True)
    assert float(done.stderr) < 0.2 * len(only)


def test_topics_are_listed(capsys):
    assert main(["help"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(help.TOPICS)


PAGES = [["--help"], *([name, "--help"] for name in COMMANDS), ["help"], *(["help", t] for t in help.TOPICS)]


@pytest.mark.parametrize("width", [40, 80, 100, 200])
@pytest.mark.parametrize("argv", PAGES, ids=" ".join)
def test_help_is_as_wide_as_the_terminal_and_breaks_no_word(capsys, monkeypatch, argv, width):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(argv) == 0
    wide = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(argv) == 0
    text = capsys.readouterr().out
    code = argv[0] == "help" and bool(document(argv[-1]))
    words = [[word for word in shown.split() if set(word) != {"-"}] for shown in (text, wide)]
    if code:  # cells of its tables have other lines, and rules are as long as columns are wide
        words = [sorted(shown) for shown in words]
    assert words[0] == words[1]
    for line in text.splitlines():
        if code and "  " in line:  # code of a document stands as it is, and columns of a table are as wide as a word
            continue
        assert len(line) <= min(width, 100) or " " not in line.strip() or (width == 40 and len(line.split()) <= 3), line


@pytest.mark.parametrize("stream", ["stdout", "stderr", "none"])
def test_help_in_a_pipe_is_as_wide_as_the_terminal_behind_it(monkeypatch, stream):
    monkeypatch.delenv("COLUMNS", raising=False)
    found = {"stdout": 1, "stderr": 2, "none": -1}[stream]

    def size(number):
        if number != found:
            raise OSError
        return os.terminal_size((70, 20))

    monkeypatch.setattr(wrapping.os, "get_terminal_size", size)
    for name, number in (("__stdout__", 1), ("__stderr__", 2), ("__stdin__", 0)):
        monkeypatch.setattr(wrapping.sys, name, SimpleNamespace(fileno=lambda number=number: number))
    assert wrapping.room() == (80 if stream == "none" else 70)


def test_the_main_help_names_every_option_and_fits_a_screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = prune.parser().format_help()
    for name, (make, _) in COMMANDS.items():
        for flag in flags_of(make()):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", page), f"{flag} of {name}"
    assert len(page.splitlines()) <= 60


def test_nothing_but_the_name_says_what_to_type(capsys, monkeypatch):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert not out and "no model given; try `onnxprune MODEL" in err and len(err.splitlines()) == 1
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "onnxprune MODEL.onnx --calib SAMPLES" in out and "--help" in out and max(map(len, out.splitlines())) <= 80
