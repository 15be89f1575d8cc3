"""What the command line says of itself: help waits for nothing, tables are listed, wrong options are answered."""

import json
import subprocess
import sys

import pytest

from onnxprune.cli import COMMANDS, main
from onnxprune.commands import help, prune
from onnxprune.commands.documents import document
from onnxprune.commands.options import given, takes
from onnxprune.decide.criteria import CRITERIA
from onnxprune.pipeline.goals import TARGETS
from onnxprune.pipeline.repairs import REPAIRS
from onnxprune.pipeline.settings import OPTIONS, Settings, flag_of, help_of
from onnxprune.pipeline.training_methods import METHODS
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


def test_what_is_read_is_what_was_written():
    line = """m.onnx --of params --criterion l1 --allocation uniform --round-to 4 --min-width 2 --include a --exclude b
        --methods channels,blocks --keep-block c --best-effort --prune-statistics --repair none --epochs 3
        --batch 8 --providers cuda,cpu --provider-option cuda.a=1 --provider-option cuda.b=2 --threads 2 --seed 5"""
    found = given(prune.parser().read(line.split()), "prune")
    assert Settings(**found) == Settings(
        of="params", criterion="l1", allocation="uniform", round_to=4, min_width=2, include="a", exclude="b",
        methods=("channels", "blocks"), keep_block="c", best_effort=True, prune_statistics=True, repair="none",
        epochs=3, batch=8, providers=("cuda", "cpu"), provider_options={"CUDAExecutionProvider": {"a": "1", "b": "2"}},
        threads=2, seed=5,
    )  # fmt: skip
    assert found.keys() | {"augment", "recipe"} == OPTIONS.keys()  # those need a repair that trains
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
    ],
)
def test_what_is_nearly_right_is_told(capsys, argv, words):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1


NAMES = {
    "criteria": CRITERIA, "repairs": REPAIRS, "targets": [t.option for t in TARGETS.values()], "training": METHODS,
    "providers": PROVIDERS, "calibration": [s.words for s in SOURCES if s.place == "file"], "settings": OPTIONS,
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
