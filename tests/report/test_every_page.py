"""`report` draws every JSON that a command prints; what is none of these, or not whole, is told, key by key."""

import contextlib
import copy
import io
import json
import os
import random
import shlex
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from onnxprune.cli import COMMANDS, main
from onnxprune.report.page import PAGES, render
from tests.channels import surgery
from tests.report.test_page import TEXT as CHAIN
from tests.report.test_page import read

TEXT = """(float[N,4,6,6] x) => (float[N,3] y)
<float[16,4,3,3] w, float[16] c, float[16,16,3,3] v, float[16] d, float[3,16] g>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, c)  b = Relu(a)  e = Conv <pads = [1, 1, 1, 1]> (b, v, d)
  s = Add(b, e)  r = Relu(s)  p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm <transB = 1> (f, g) }"""
FEW = "--calib s.npz --samples 24"
SEARCHES = find_spec("optuna") is not None
LINES = {
    "result": f"m.onnx {FEW} --ratio 0.4 --bench --best-effort -o p.onnx",
    "result, unsampled": "m.onnx --ratio 0.4 -o u.onnx",
    "lossless": "twin.onnx --lossless --round-to 1 -o l.onnx",
    "sweep": f"m.onnx {FEW} --ratios 0.3,0.5 --bench --best-effort -o s.onnx",
    "dry run": f"m.onnx {FEW} --ratio 0.4 --dry-run",
    "plan": f"plan m.onnx {FEW} --ratio 0.4",
    "apply": f"apply m.onnx plan.json {FEW} -o a.onnx",
    "inspection": "inspect m.onnx",
    "verification": f"verify m.onnx a.onnx --plan plan.json {FEW}",
    "difference": "diff m.onnx a.onnx",
    "difference, none": "diff m.onnx m.onnx",
    "bench": "bench m.onnx a.onnx --rounds 10",
    "bench, several": "bench m.onnx a.onnx --rounds 10 --batch 1,2",
    "sensitivity": f"sensitivity m.onnx {FEW} --steps 3",
    **({"search": f"search m.onnx {FEW} --trials 4 --methods channels"} if SEARCHES else {}),
    "explanation": "bench m.onnx a.onnx --explain",
    "profile": "profile m.onnx -o device.json",
    "profile, script": "profile m.onnx -o measure.py",
    "help": "help criteria",
    "help, all": "help",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What --json prints, by what it is of."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        onnx.save(surgery.model_of(TEXT), "m.onnx")
        onnx.save(with_twin(), "twin.onnx")
        np.savez("s.npz", x=np.random.default_rng(0).standard_normal((24, 4, 6, 6)).astype(np.float32))
        for name, line in LINES.items():
            text = _ran(line)
            found[name] = json.loads(text)
            if name == "plan":
                (folder / "plan.json").write_text(text)
        found["sensitivity, kept"] = json.loads((folder / "m.sensitivity.json").read_text())
    return found


def with_twin():
    """A model with a channel that is twice another one."""
    made = surgery.model_of(CHAIN)
    w, c = made.graph.initializer[:2]
    value = onnx.numpy_helper.to_array(w).copy()
    value[1] = 2 * value[0]
    w.CopyFrom(onnx.numpy_helper.from_array(value, w.name))
    c.CopyFrom(onnx.numpy_helper.from_array(np.zeros(16, np.float32), c.name))
    return made


def _ran(line):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*shlex.split(line), "--json"]) == 0, line
    return out.getvalue()


TRIED = int(os.environ.get("TRIED", 60))
EVERY = [*LINES, "sensitivity, kept"]


@pytest.mark.parametrize("name", EVERY)
def test_it_is_drawn(printed, tmp_path, capsys, name):
    (tmp_path / "r.json").write_text(json.dumps(printed[name]))
    assert main(["report", str(tmp_path / "r.json")]) == 0
    page = (tmp_path / "r.html").read_text()
    tags = read(page)
    assert "<main>" in page and tags.text.count("How it was made") <= 1
    if "run" in printed[name]:
        assert printed[name]["run"]["date"] in page and "onnxprune " in tags.text


def test_every_kind_that_a_command_prints_has_a_page(printed):
    drawn = {kind for kind in PAGES if SEARCHES or kind != "onnxprune search"}
    assert {found["kind"] for found in printed.values()} == drawn
    takes_json = {name for name, (make, _) in COMMANDS.items() if "--json" in make()._option_string_actions}
    lines = {shlex.split(line)[0] for line in LINES.values()}
    assert takes_json - {"prune", "train", *([] if SEARCHES else ["search"])} <= lines  # these print results


WORDS = {
    "sweep": [
        "Top-1 agreement",
        "Speed-up",
        "--ratio 0.3 of the MACs",
        "--ratio 0.5 of the MACs: s-0.5.onnx",
        "file size",
        "latency p50",
    ],
    "dry run": ["--ratio 0.4 of the MACs", "would be cut", "parameters", "out 16→"],
    "plan": ["--ratio 0.4 of the MACs", "onnxprune apply", "elimination"],
    "inspection": [
        "multiply-accumulates",
        "Relu 2",
        "at once at most",
        "1x16x6x6",
        "model output (3 channels)",
        "float32 (N, 4, 6, 6)",
        "1x4x6x6",
    ],
    "verification": ["exact: worst error", "as planned", "top-1 agreement"],
    "difference": ["A is m.onnx, B is a.onnx", "of 3 layers differ", "out 16→", "activations"],
    "difference, none": ["byte for byte", "every one is there with the same weights"],
    "bench": ["same model against itself", "baseline", "1 thread"],
    "bench, several": ["Batch 2, input x 2x4x6x6"],
    "sensitivity": ["keep 50%", "can go", "all gone", "group"],
    **({"search": ["4 of 4 trials", "Those that nothing beats", "size", "(default)"]} if SEARCHES else {}),
    "explanation": ["promised", "Without any pruning", "idle threads sleep"],
    "profile": ["ms a run", "Narrower copies"],
    "profile, script": ["A script to run on the device", "measure.py"],
    "help": ["elimination", "lasso"],
    "apply": ["--ratio 0.4 of the MACs", "onnxprune apply m.onnx plan.json"],
    "lossless": ["--lossless", "against the original"],
}


@pytest.mark.parametrize("name", WORDS)
def test_it_shows(printed, name):
    text = " ".join(read(render(printed[name], name="m")).text.split())
    for words in WORDS[name]:
        assert words in text, words


def places(content, path=()) -> Iterator[tuple]:
    """The way to everything in it; of a list, to its first entry."""
    entries = content.items() if isinstance(content, dict) else list(enumerate(content))[:1]
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def changed(content, path, value):
    """A copy with another value there; without the place for `...`."""
    made = copy.deepcopy(content)
    at = made
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return made


ODD = [..., None, "x", -1, 0, [], {}, [{}], 1e308, True, "<b>\x1b"]


@pytest.mark.parametrize("name", EVERY)
def test_whatever_is_in_it_it_is_drawn_or_refused(printed, name):
    every = [(path, value) for path in places(printed[name]) for value in ODD if path[0] != "cuts"]
    for path, value in random.Random(0).sample(every, min(TRIED, len(every))):
        try:
            page = render(changed(printed[name], path, value), name="m")
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert "\x1b" not in page and "<b>\\x1b" not in page, path


@pytest.mark.parametrize("name", EVERY)
def test_a_key_that_is_missing_is_named(printed, name):
    missing = 0
    for path in places(printed[name]):
        if path[0] in ("kind", "schema", "run") or isinstance(path[-1], int):
            continue
        try:
            render(changed(printed[name], path, ...), name="m")
        except ValueError as error:
            assert str(path[-1]) in str(error), (path, error)
            missing += 1
    assert missing


def test_the_command_names_them_in_one_line(printed, tmp_path, capsys):
    found = copy.deepcopy(printed["result"])
    del found["before"]["macs"], found["surgery"], found["groups"][0]["after"]
    found["fidelity"]["top1"] = "high"
    (tmp_path / "r.json").write_text(json.dumps(found))
    assert main(["report", str(tmp_path / "r.json")]) == 2
    err = capsys.readouterr().err
    assert "without before.macs, surgery, groups[0].after; fidelity.top1 is 'high', not a number" in err, err
    assert len(err.splitlines()) == 1 and not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "it is a list, not an object"),
        ("3", "it is a number"),
        ("null", "it is null"),
        ('"x"', "it is text"),
        ('{"a": 1, "b": 2}', "no `kind` (its keys: 'a', 'b')"),
        ("{}", "no `kind` (its keys: none)"),
        ('{"kind": 3}', "no `kind`"),
        ('{"kind": "onnxprune sweeps"}', "did you mean 'onnxprune sweep'?"),
        ('{"kind": "pytest report"}', "there are pages for onnxprune result"),
        ('{"kind": "onnxprune bench", "schema": 1}', "without results[0].timings, "),
        ('{"kind": "onnxprune inspection", "schema": 1, "macs": NaN}', "macs"),
        ('{"kind": "onnxprune inspection", "schema": 1, "macs": 1e999}', "macs"),
        ('{"kind": "onnxprune sweep", "schema": 1, "results": [[]]}', "results[0] is a list, not an object"),
        ("[" * 100_000, "not JSON"),
        ("{", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_what_is_none_of_these_is_told(tmp_path, capsys, text, says):
    (tmp_path / "r.json").write_text(text)
    assert main(["report", str(tmp_path / "r.json")]) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1 and "Traceback" not in err


def test_a_sweep_is_drawn_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(surgery.model_of(TEXT), "m.onnx")
    np.savez("s.npz", x=np.random.default_rng(0).standard_normal((24, 4, 6, 6)).astype(np.float32))
    line = f"m.onnx {FEW} --ratios 0.3,0.5 --no-bench -o s.onnx --report s.html --json"
    assert main(shlex.split(line)) == 0
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "s.html").read_text() == render(
        found, name="m.onnx", files={"original": "m.onnx", "pruned, 1": "s-0.3.onnx", "pruned, 2": "s-0.5.onnx"}
    )
    assert [r["settings"]["ratio"] for r in found["results"]] == [0.3, 0.5]
    assert found["run"]["files"] == ["s-0.3.onnx", "s-0.5.onnx"] and "run" not in found["results"][0]
    assert main(shlex.split(f"m.onnx {FEW} --ratio 0.3 --plot s.svg")) == 2
    assert "--ratios" in capsys.readouterr().err


def test_what_of_a_sweep_was_not_written_is_told(printed):
    found = copy.deepcopy(printed["sweep"])
    found["run"]["files"][1] = None
    assert "--ratio 0.5 of the MACs: not written" in read(render(found, name="m")).text


def test_a_sweep_as_a_picture(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    onnx.save(surgery.model_of(TEXT), "m.onnx")
    np.savez("s.npz", x=np.random.default_rng(0).standard_normal((24, 4, 6, 6)).astype(np.float32))
    for name, more, words in (
        ("kept", f"{FEW} --no-bench", [">top-1 agreement on 6 held-out samples<"]),
        ("both", f"{FEW} --bench", [">top-1 agreement on 6 held-out samples<", ">speed-up, 95 % interval"]),
        ("size", "--no-bench", [">file size, % of the original<"]),
    ):
        assert main(shlex.split(f"m.onnx --ratios 0.5,0.3 {more} -o {name}.onnx --plot {name}.svg --best-effort")) == 0
        picture = (tmp_path / f"{name}.svg").read_text()
        for text in (*words, ">MACs removed, %<"):
            assert text in picture, (name, text)
    assert main(shlex.split("m.onnx --ratios 0.5,0.3 --plot s.gif -o x.onnx")) == 2
