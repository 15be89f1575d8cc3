"""The documents are true: their Python runs, their commands are understood, what they name is there."""

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest

import onnxprune
from onnxprune import cli, errors
from onnxprune.commands import documents, help, prune
from onnxprune.decide.allocation import ALLOCATIONS
from onnxprune.decide.criteria import CRITERIA
from onnxprune.measure import parts, verdict
from onnxprune.measure.figures import FIGURES
from onnxprune.measure.kinds.table import KINDS, spelled
from onnxprune.pipeline.gates import Gates
from onnxprune.pipeline.goals import TARGETS
from onnxprune.pipeline.repairs import REPAIRS
from onnxprune.pipeline.training_methods import METHODS
from onnxprune.report.result import Result
from onnxprune.runtime.providers import PROVIDERS
from onnxprune.samples.images import ImageSpec
from onnxprune.samples.sources import SOURCES

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "onnxprune" / "docs").glob("*.md"))
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *DOCS)}
WITH_PYTHON = [name for name, text in PAGES.items() if "```python" in text and name != "README"]

every_page = pytest.mark.parametrize("page", PAGES)


def blocks(page, language):
    """(what stands behind the language, the code) of every such block."""
    return re.findall(rf"^```{language}\b([^\n]*)\n(.*?)^```$", PAGES[page], re.M | re.S)


def inline(page):
    """Code within text, that of fenced blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S))


def commands(page):
    """Lines that a shell would run, from blocks and from text."""
    lines = [line for _, code in blocks(page, "sh") for line in code.replace("\\\n", "").splitlines()]
    return [line for line in (*lines, *inline(page)) if re.match(r"(onnxprune|python\d?|\S*/pip) ", line)]


def rows(page, section=""):
    """Cells of all lines of tables, behind a heading."""
    text = PAGES[page].partition(section)[2] if section else PAGES[page]
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.fullmatch(r"[|: -]+", line)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


# ---- what they show -----------------------------------------------------------------------------------------


def runnable(page):
    """All the Python of a page as one program; a block that becomes a file is written and not run."""
    for tags, code in blocks(page, "python"):
        words = tags.split()
        needed = [word.removeprefix("needs=") for word in words if word.startswith("needs=")]
        needed += ["torch"] if "torch" in words else []
        if "sketch" in words or any(find_spec(package) is None for package in needed):
            continue
        name = next((word.removeprefix("file=") for word in words if word.startswith("file=")), None)
        yield code if name is None else f"open({name!r}, 'w').write({code!r})"


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_runs(page, tmp_path):
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "page.py").write_text("\n".join(runnable(page)), encoding="utf-8")
    search = {"PYTHONPATH": str(ROOT), "PATH": "", "ONNXPRUNE_CACHE": "", "HOME": str(tmp_path)}
    run = [sys.executable, "-W", "ignore::onnxprune.FidelityWarning", "page.py"]
    done = subprocess.run(run, cwd=tmp_path, env=search, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@every_page
def test_sketches_are_python(page):
    for _, code in blocks(page, "python"):
        compile(code, page, "exec")


@every_page
def test_commands_are_understood(page):
    for line in commands(page):
        first, *words = shlex.split(line)
        if first == "onnxprune" and words[1:]:  # a command's name alone is no command
            make = cli.COMMANDS[words[0]][0] if words[0] in cli.COMMANDS else prune.parser
            make().read(words[1:] if words[0] in cli.COMMANDS else words)


@every_page
def test_commands_stand_where_they_are_read(page):
    assert not re.search(r"^ {4,}(onnxprune|python) ", PAGES[page], re.M), "in a block of sh, please"


SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@every_page
def test_options_exist(page):
    known = {flag for make, _ in cli.COMMANDS.values() for a in make()._actions for flag in a.option_strings}
    text = re.sub(r"<!--.*?-->", "", PAGES[page])
    text = re.sub(r"^(?:trtexec|\S+ olive run) .*$", "", text, flags=re.M)  # options of others
    for line in sorted(commands(page), key=len, reverse=True):  # one may begin another
        if script := re.match(r"python (benchmarks/\w+\.py)", line):
            own = (ROOT / script[1]).read_text()
            used = set(re.findall(r"^(?:import|from) (\w+)", own, re.M)) & {p.stem for p in SCRIPTS}
            source = own + "".join((ROOT / "benchmarks" / f"{name}.py").read_text() for name in sorted(used))
            for flag in re.findall(r"--[a-z][\w-]*", line):
                assert f'"{flag}"' in source, line
            text = text.replace(line, "")
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known == set()


def test_every_command_is_in_a_document():
    text = "\n".join(PAGES.values())
    for name in cli.COMMANDS:
        assert name == "prune" or f"onnxprune {name} " in text, name


# ---- what they name -----------------------------------------------------------------------------------------


@every_page
def test_files_and_links_are_there(page):
    for path in re.findall(r"(?<![\w/.-])(?:onnxprune|benchmarks|tests|tools)/[\w./-]*\w/?", PAGES[page]):
        assert ".pruned." in path or (ROOT / path).exists(), path
    home = ROOT if page == "README" else DOCS[0].parent
    for target in re.findall(r"\]\(([^)#]+)", PAGES[page]):
        assert "://" in target or (home / target).is_file(), target


@every_page
def test_public_names_exist(page):
    for name in re.findall(r"\bonnxprune(?:\.[A-Za-z_]\w*)+", " ".join(inline(page))):
        found, at = onnxprune, "onnxprune"
        for part in name.split(".")[1:]:
            at = f"{at}.{part}"
            found = getattr(found, part, None) or importlib.import_module(at)


@every_page
def test_no_path_of_a_machine(page):
    assert not re.search(r"/(home|work|root|Users|tmp)/", PAGES[page])


def test_every_public_name_has_an_example():
    code = "\n".join(code for _, code in blocks("python", "python"))
    for name in onnxprune.__all__:
        assert re.search(rf"\b{name}\b", code), name
    attributes = {f.name for f in fields(Result)} | set(dir(Result))
    table = [row for row in rows("python") if len(row) == 2][1:]
    named = {name for first, _ in table for name in re.findall(r"`(\w+)", first)}
    assert len(named) > 15 and named - attributes == set()


def test_tables_are_those_of_the_code():
    def first(page, section=""):
        return [row[0] for row in rows(page, section)]

    assert set(first("choosing", "## Which repair")[1:]) == {f"`{name}`" for name in REPAIRS}
    for kind in TARGETS.values():
        assert f"`{kind.option} " in PAGES["choosing"]
    for name in (*CRITERIA, *ALLOCATIONS):
        assert f"`{name}`" in PAGES["choosing"] or f"--allocation {name}`" in PAGES["choosing"], name
    for name in (*CRITERIA, *REPAIRS, *METHODS, *ALLOCATIONS):
        assert f"**{name}**" in PAGES["methods"], name
    shown = [(row[0].strip("`"), row[1].strip("`")) for row in rows("devices")[1:]]
    assert shown == [(alias, provider.name) for alias, provider in PROVIDERS.items()]
    for entry in SOURCES:
        if entry.place != "python":
            words = f"a folder of {entry.words}" if entry.place == "folder" else entry.words
            assert words in first("samples", "## Forms"), words


def test_training_lists_the_methods_and_their_options():
    table = {row[0].strip("`"): row[2] for row in rows("training")[1:]}
    assert list(table) == list(METHODS)
    for name, method in METHODS.items():
        for option, known in method.options.items():
            shown = re.search(rf"`{option}` \((\S+?)\)", table[name])[1]
            assert known.read(option, shown) == known.default


def test_samples_list_the_keys_of_images():
    named = {name: row[2] for row in rows("samples", "## Images") for name in re.findall(r"`(\w+)`", row[0])}
    assert set(named) == {f.name for f in fields(ImageSpec)}
    for f in fields(ImageSpec):
        if isinstance(f.default, str | float):
            assert named[f.name] == (f.default if isinstance(f.default, str) else f"{f.default:g}")


def test_outputs_tell_the_thresholds_and_the_gates():
    text = PAGES["outputs"]
    both = verdict.DECISIONS, verdict.VARIATION
    table = {row[0]: row[1:] for row in rows("outputs", "## The verdict")}
    assert table[verdict.KEPT] == [f"{t.kept:g} and more" for t in both]
    assert table[verdict.DESTROYED] == [f"below {t.destroyed:g}" for t in both]
    assert f"makes up {verdict.ONE_SIDED:.0%} of all" in text and f"by more than {parts.UNITS_APART:g} times" in text
    figures = {row[0].strip("`"): row[1:] for row in rows("outputs", "## The verdict") if row[0].strip("`") in FIGURES}
    assert figures == {
        name: [f"{t.kept:g} and more", f"below {t.destroyed:g}"] for name, t in verdict.OF_FIGURES.items()
    }
    assert all(f"| `{spelled(kind)}`" in text or f", `{spelled(kind)}`" in text for kind in KINDS)
    gates = [row[1].strip("`") for row in rows("outputs", "## Gates")[1:]]
    assert gates == [f.name for f in fields(Gates)]


def test_errors_tell_every_class_and_code():
    told = {name: int(row[0]) for row in rows("errors") if row[0].isdigit() for name in re.findall(r"`(\w+)`", row[1])}
    raised = {c.__name__: c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, errors.PruneError)}
    assert told.pop("ValueError") == errors.UsageError.exit_code and issubclass(errors.UsageError, ValueError)
    assert told == {name: c.exit_code for name, c in raised.items()}
    assert {"130", "141", "143"} <= {row[0] for row in rows("errors")}


def test_the_map_names_every_room():
    package = ROOT / "onnxprune"
    rooms = {f"`onnxprune/{p.name}/`" for p in package.iterdir() if p.is_dir() and not p.name.startswith("_")}
    rooms |= {f"`onnxprune/{p.name}`" for p in package.glob("*.py") if not p.name.startswith("_")}
    assert rooms <= {row[0] for row in rows("inside", "## The rooms")}


def test_the_figures_of_the_readme_are_published_ones():
    table = [line for line in PAGES["README"].partition("## What to expect")[2].splitlines() if line.startswith("| ")]
    assert len(table) > 3
    for line in table:
        assert line in PAGES["figures"], line


# ---- in the terminal ----------------------------------------------------------------------------------------


def test_every_document_is_a_topic_and_in_the_readme():
    names = {path.stem for path in DOCS}
    assert names <= set(help.TOPICS)
    assert {topic for topic, (_, entries) in help.TOPICS.items() if not list(entries())} <= names
    assert set(re.findall(r"\(onnxprune/docs/(\w+)\.md\)", PAGES["README"].partition("## Read on")[2])) == names


@pytest.mark.parametrize("width", [72, 80, 100])
@pytest.mark.parametrize("topic", [path.stem for path in DOCS])
def test_documents_fit_the_terminal(topic, width):
    shown = documents.laid_out(documents.document(topic), width)
    fenced = re.findall(r"^```.*?\n(.*?)^```$", PAGES[topic], re.M | re.S)
    code = {f"    {line}".rstrip() for text in fenced for line in text.splitlines()}
    for line in shown.splitlines():
        assert len(line) <= width or line in code or max(map(len, line.split())) > 12, line
    title = PAGES[topic].splitlines()[0].removeprefix("# ")
    assert shown.startswith(f"{title}\n{'=' * len(title)}\n")
    assert "](" not in shown and "**" not in re.sub(r"^ .*", "", shown, flags=re.M) and "|---" not in shown


def test_words_of_documents_all_reach_the_terminal():
    for path in DOCS:
        shown = re.sub(r"\s+", "", documents.laid_out(documents.document(path.stem), 80))
        for word in re.findall(
            r"[A-Za-z]{4,}", re.sub(r"<!--.*?-->|\]\([^)]*\)|^```.*$", "", PAGES[path.stem], flags=re.M)
        ):
            assert word in shown, (path.stem, word)


def test_markdown_is_laid_out():
    text = """# A title

Words of a paragraph that go
on, with a [link](samples.md) and **bold**.

- one item that is long enough to be
  wrapped
- two

| a | what |
|---|---|
| `x` | words that do not fit |
| `y` | short |

```sh
onnxprune   as it is
```
"""
    assert (
        documents.laid_out(text, 30)
        == """A title
=======

Words of a paragraph that go
on, with a link (`onnxprune
help samples`) and bold.

- one item that is long enough
  to be wrapped
- two

a    what
---  ---------------------
`x`  words that do not fit
`y`  short

    onnxprune   as it is
"""
    )
    assert documents.laid_out("| a | b |\n|---|---|\n| x | one two three |\n| y | z |", 12).splitlines() == [
        "a  b", "-  ---------", "x  one two", "   three", "", "y  z",
    ]  # fmt: skip
