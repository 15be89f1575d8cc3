"""What a person reads: numbers with units, tables that fit, and a status that stays out of the way."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from onnxprune import api, cli
from onnxprune.measure.agreement import PartFidelity
from onnxprune.measure.fidelity import Fidelity
from onnxprune.plan import DropBlock, Factorize
from onnxprune.report.page import render
from onnxprune.report.status import Status
from onnxprune.report.terminal import change, plain, si, summary, surgery_words, sweep_table, table
from tests.channels import surgery


@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        (si, (0,), "0"),
        (si, (999,), "999"),
        (si, (999.7,), "1.00 k"),
        (si, (1000,), "1.00 k"),
        (si, (999_990,), "999.99 k"),
        (si, (999_999,), "1.00 M"),
        (si, (999_999_999,), "1.00 G"),
        (si, (2e15,), "2000.00 T"),
        (si, (1e6,), "1.00 M"),
        (si, (31.24e9,), "31.24 G"),
        (si, (2e12,), "2.00 T"),
        (change, (100, 50), "-50.0%"),
        (change, (100, 125.04), "+25.0%"),
        (change, (3, 3), "+0.0%"),
        (change, (100, 99.99), "+0.0%"),
        (change, (0, 3), ""),
        (plain, ("a/b ü",), "a/b ü"),
        (plain, ("a\x1b[2Jb\n\u200e",), "a\\x1b[2Jb\\x0a\\x200e"),
    ],
)
def test_words_for_numbers_and_names(function, given, said):
    assert function(*given) == said


NAMES = [("abcdefghijklmnopqrstuvwxyz", "1"), ("b", "12345"), ("c", "")]


def test_a_table_is_aligned_and_ends_no_line_in_blanks():
    assert table(("name", "n"), NAMES[1:], "<>").splitlines() == ["name      n", "b     12345", "c"]
    assert table(("name", "n"), NAMES[1:], "><").splitlines()[1] == "   b  12345"


def test_a_table_says_how_much_it_leaves_out():
    lines = table(("name", "n"), NAMES, "<>", most=1).splitlines()
    assert len(lines) == 3 and lines[2] == "… and 2 more (use -v)"
    assert "more" not in table(("name", "n"), NAMES, "<>", most=3)


@pytest.mark.parametrize("width", [60, 26, 20, 19, 5])
def test_the_first_column_gives_way_and_both_ends_of_a_name_stay(width):
    lines = table(("name", "n"), NAMES, "<>", width=width).splitlines()
    assert max(map(len, lines)) <= max(width, 19)  # a name has 12 columns, whatever happens
    name = lines[1].split()[0]
    assert name[0] == "a" and name[-1] == "z" and ("…" in name) == (width < 33)
    assert len({len(line) for line in lines[:3]}) == 1 and lines[2].endswith("12345")


TEXT = """(float[N,3,6,6] x) => (float[N,4] y) <float[8,3,3,3] w, float[8,8,1,1] u, float[4,8] v>
    { h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) i = Conv(r, u) p = GlobalAveragePool(i) f = Flatten(p) y = Gemm<transB=1>(f, v) }"""


@pytest.fixture(scope="module")
def result():
    x = np.random.default_rng(0).standard_normal((16, 3, 6, 6)).astype(np.float32)
    return api.prune(surgery.model_of(TEXT), 0.5, calibration=x, round_to=1)


def line(text, head):
    return next(row for row in text.splitlines() if row.startswith(head))


def test_a_summary_says_what_went_and_how_close_it_is(result):
    text = summary(result)
    macs = 8 * 27 * 36 + 8 * 8 * 36 + 4 * 8
    assert line(text, "MACs").split()[1:] == [
        f"{macs / 1e3:.2f}",
        "k",
        *f"{si(result.after.macs)}".split(),
        change(macs, result.after.macs),
    ]
    assert line(text, "file size").count("B") == 2
    assert "4 held-out samples" in line(text, "fidelity") and "repair: refit" in line(text, "groups")
    assert line(text, "surgery").split()[1] == "exact:" and "masked original" in line(text, "surgery")
    assert "model output (4)" in line(text, "kept whole") and "latency" not in text and "blocks" not in text


def test_a_summary_of_more(result):
    edits = (
        *(DropBlock(f"b{k}\n", 0, 1, 4, 8) for k in range(6)),
        *(Factorize(f"f{k % 5}", "channel", 1) for k in range(7)),
    )
    fidelity = replace(result.fidelity, held_out=False)
    more = replace(result, plan=replace(result.plan, edits=edits), fidelity=fidelity, notes=("note",), warnings=("careful",),
                   groups=(("w", 8, 4), ("u", 8, 8)))  # fmt: skip
    text = summary(more, width=200)
    assert line(text, "groups") == "groups       1 of 2 cut; repair: refit"
    assert line(text, "blocks") == "blocks       6 dropped: b0\\x0a, b1\\x0a, b2\\x0a, b3\\x0a and 2 more"
    assert line(text, "low rank") == "low rank     5 layers made of two: f0, f1, f2, f3 and 1 more"
    assert "samples that were also fitted on" in line(text, "fidelity")
    assert (
        "measured     note" in text
        and "warning      careful" in text
        and "careful" not in summary(more, warnings=False)
    )
    assert max(map(len, summary(more, width=50).splitlines())) <= 50


def test_surgery_in_words(result):
    found = result.surgery
    assert "NOT exact" in surgery_words(replace(found, exact=False))
    assert surgery_words(replace(found, exact=False), 3).startswith("not exact, as asked for: 3 statistics")
    assert "rounding alone: 1.0e-05" in surgery_words(replace(found, rounding=1e-5))
    assert "compared at l: behind it" in surgery_words(replace(found, inner=("l",)))
    assert "2 outputs compared with the original's decisions at 1 nodes such as k" in surgery_words(
        replace(found, turned=("y", "z"), decisions=("k",))
    )


def test_a_sweep_is_a_line_each_and_leaves_out_what_nobody_has(result):
    bare = replace(result, fidelity=None)
    full, less = (sweep_table([r, r], ["a.onnx", "b\n.onnx"]).splitlines() for r in (result, bare))
    assert [row.split()[0] for row in full[1:]] == ["a.onnx", "b\\x0a.onnx"]
    assert (
        "cosine" in full[0] and "speed-up" not in full[0] and less[0].split() == ["file", "MACs", "cut", "parameters"]
    )
    assert f"{result.macs_removed:.1%}" in full[1] and f"{result.fidelity.cosine:.4f}" in full[1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_pipe_gets_lines_only_where_they_are_asked_for():
    for quiet, verbose, lines in ((False, False, 0), (False, True, 2), (True, True, 0)):
        stream = io.StringIO()
        status = Status(stream)
        status.set(quiet=quiet, verbose=verbose)
        for done in range(3):
            status.progress("one", done, 3)
        status.phase("two")
        status.close()
        found = stream.getvalue().splitlines()
        assert len(found) == lines and all(row.startswith("onnxprune: ") and " s  " in row for row in found)


def test_what_went_wrong_is_one_line():
    stream = io.StringIO()
    Status(stream).fail("no\n such\x1b thing")
    assert stream.getvalue() == "onnxprune: error: no such\\x1b thing\n"


def test_a_terminal_gets_a_bar_that_goes_away():
    stream = Terminal()
    status = Status(stream)
    status.progress("decide", 1, 4)
    status.progress("repair", 2, 4)
    status.say("a [bold]name[/bold]")
    status.close()
    assert "a [bold]name[/bold]" in stream.getvalue()
    quiet = Terminal()
    status = Status(quiet)
    status.set(quiet=True, verbose=False)
    status.progress("decide", 1, 4)
    status.close()
    assert not quiet.getvalue()


def test_what_a_person_would_ask_for_comes_first(result):
    boxes = PartFidelity("y[:, 0:4]", "boxes", 0.99, 12.0, 0.9, figures={"box_f1": 0.971, "box_recall": 0.96})
    found = Fidelity(
        3, 0.9, 12.0, None, parts=(boxes,), verdict="kept", why="box F1 97.1%", decides=("y[:, 0:4]", "box_f1")
    )
    with_boxes = replace(result, fidelity=found)
    assert "fidelity     box F1 97.1%, box recall 96.0%, cosine 0.9" in summary(with_boxes, width=200)
    page = with_boxes.to_html()
    assert "<b>97.1%</b>box F1 against the original" in page and "box F1 97.1%, box recall 96.0%" in page
    table = sweep_table([with_boxes, with_boxes], ["a.onnx", "b.onnx"])
    assert "box F1" in table.splitlines()[0] and table.count("97.1%") == 2
    assert "box F1" not in sweep_table([with_boxes, result], ["a.onnx", "b.onnx"])
    swept = {"schema": 1, "kind": "onnxprune sweep", "results": [with_boxes.to_dict()] * 2}
    assert '<th class="num">box F1</th>' in render(json.loads(json.dumps(swept)), name="m")


def test_messages_on_a_terminal_break_no_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = io.StringIO()
    stream.isatty = lambda: True
    Status(stream).say("warning: " + "no calibration data: scores are from weights alone, " * 3)
    lines = stream.getvalue().splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= 60
    assert " ".join(line.strip() for line in lines).count("calibration data: scores are from weights alone") == 3
    stream = io.StringIO()
    Status(stream).say("word " * 40)
    assert stream.getvalue().count("\n") == 1  # in a log, a message is a line


def test_for_programs_every_line_is_an_object():
    stream = io.StringIO()
    status = Status(stream, log_json=True)
    status.set(quiet=False, verbose=True, model="m.onnx")
    status.phase("cut")
    status.say("warning: few samples")
    status.fail("no\n such file")
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(t["event"], t["phase"], t.get("text")) for t in told] == [
        ("phase", "cut", None),
        ("message", "cut", "warning: few samples"),
        ("error", "cut", "no such file"),
    ]
    assert all(t["model"] == "m.onnx" and t["seconds"] >= 0 for t in told)


def test_what_is_asked_for_wrongly_is_an_object_too(capsys):
    assert cli.main(["inspect", "--log-json", "--nonsense"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "error"
