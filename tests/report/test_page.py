"""The page about a result: complete, harmless, and made of the JSON alone."""

import copy
import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.report.page import NODES, render
from tests.channels import surgery

TEXT = """(float[N,4,6,6] x) => (float[N,3] y)
<float[16,4,3,3] w, float[16] c, float[16,16,3,3] v, float[3,16] g>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, c)  b = Relu(a)  d = Conv <pads = [1, 1, 1, 1]> (b, v)
  e = Relu(d)  p = GlobalAveragePool(e)  f = Flatten(p)  y = Gemm <transB = 1> (f, g) }"""


class Tags(html.parser.HTMLParser):
    """Text and tags, and whether every tag is closed."""

    VOID = ("meta", "line", "circle", "img", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.links, self.metas = [], [], "", [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.metas += [attrs] if tag == "meta" else []
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(page):
    tags = Tags()
    tags.feed(page)
    outside = [link for link in tags.links if not link.startswith(("./", "data:image/png;base64,iVBOR"))]
    assert not tags.open and not outside and "http" not in page.replace("http-equiv", "", 1) and "://" not in page
    (policy,) = (dict(attrs)["content"] for attrs in tags.metas if ("http-equiv", "Content-Security-Policy") in attrs)
    assert policy.startswith("default-src 'none'; ") and "script" not in policy  # nothing is fetched, nothing runs
    return tags


@pytest.fixture(scope="module")
def result():
    x = np.random.default_rng(0).standard_normal((24, 4, 6, 6)).astype(np.float32)
    return onnxprune.prune(surgery.model_of(TEXT), 0.5, calibration=x, bench=True)


def test_it_shows_what_was_measured(result):
    tags = read(result.to_html())
    c = result.latency.comparisons[0]
    for words in (
        f"−{100 * result.macs_removed:.1f}%",
        f"{c.speedup:.2f}×",
        f"{result.fidelity.cosine:.4f}",
        f"{result.surgery.worst:.1e}",
        "exact",
        result.repair,
        *(name for name, _, _ in result.groups),
        *(p.reason for p in result.pinned),
    ):
        assert words in tags.text, words
    rounds = sum(len(t.samples) for t in result.latency.timings)
    assert 0.9 * rounds <= result.to_html().count(' r="3" ') <= rounds


def test_json_alone_is_enough(result):
    read_again = json.loads(json.dumps(result.to_dict()))
    assert render(read_again, name="model") == result.to_html()


@pytest.mark.parametrize(
    "change, words, absent",
    [
        ({"latency": None}, "not timed", ' r="3" '),
        ({"fidelity": None}, "accuracy unknown: no samples", ""),
        ({"blocks": ["add<1>"]}, "1 block dropped", "add<1>"),
        ({"fused": [{"node": "n<i>", "source": "x"}]}, "1 run of layers made one, exactly", "n<i>"),
        ({"factorized": [{"node": "n&m", "kind": "spatial", "rank": 3}]}, "(spatial, rank 3)", "n&m"),
        ({"warnings": ["<script>alert(1)</script>\x1b[2J"]}, "alert(1)", "<script>"),
        ({"groups": [], "pinned": []}, "Nothing had to", ""),
        ({"inexact": ["n"]}, "1 statistics over channels change", ""),
        ({"groups": [{"name": "<b>w</b>", "before": 9, "after": 3}]}, "<b>w</b>", "<b>w</b>"),
        ({"notes": ["accuracy 91 < 92"]}, "accuracy 91 < 92", "91 < 92"),
    ],
)
def test_every_part(result, change, words, absent):
    page = render({**result.to_dict(), **change}, name="m")
    assert words in read(page).text
    assert not absent or absent not in page.split("</style>")[1]
    assert "\x1b" not in page


def test_reasons_are_gathered_and_long_lists_end(result):
    one = {"tensor": "t", "axis": 0, "count": 2, "reason": "why", "use": None}
    many = [{**one, "node": f"n{k}"} for k in range(NODES + 5)]
    text = read(render({**result.to_dict(), "pinned": [*many, {**one, "node": "n", "reason": "rare"}]}, name="m")).text
    assert f"why: {2 * len(many)} channels" in text and "and 5 more" in text
    assert text.index("why: ") < text.index("rare: 2")


def test_a_slow_round_does_not_squeeze_the_others(result):
    found = copy.deepcopy(result.to_dict())
    timing = found["latency"]["timings"][0]
    timing["samples"][0] = 1000 * timing["p50_ms"]
    page = render(found, name="m")
    assert "1 slow round of original beyond the edge" in re.sub(r"\s+", " ", read(page).text)


def test_a_name_of_a_file(result):
    assert "<title>a&lt;b.onnx, pruned" in replace(result, source=Path("x/a<b.onnx")).to_html()


@pytest.mark.parametrize(
    "text, code, words",
    [
        (None, 7, "cannot be read"),
        ("{", 2, "not JSON"),
        ("[]", 2, "not a result"),
        ('{"kind": "onnxprune sweep", "schema": 1}', 2, "sweep"),
        ('{"kind": "onnxprune result", "schema": 99}', 2, "99"),
        ('{"kind": "onnxprune result", "schema": 1}', 2, "not a result"),
    ],
)
def test_the_command_refuses(tmp_path, capsys, text, code, words):
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    assert main(["report", str(tmp_path / "r.json")]) == code
    assert words in capsys.readouterr().err and not list(tmp_path.glob("*.html"))


def test_the_command_writes_once(result, tmp_path, capsys):
    source = tmp_path / "r.json"
    source.write_text(result.to_json())
    assert main(["report", str(source)]) == 0
    read((tmp_path / "r.html").read_text())
    assert main(["report", str(source)]) == 7 and "--force" in capsys.readouterr().err
    assert main(["report", str(source), "-o", str(source), "--force"]) == 7
    assert json.loads(source.read_text())


def test_the_main_job_writes_it_too(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    path.write_bytes(surgery.model_of(TEXT).SerializeToString())
    page = tmp_path / "page.html"
    assert main([str(path), "--ratio", "0.5", "--report", str(page)]) == 0
    assert "page.html" in capsys.readouterr().out and "m.onnx, pruned" in read(page.read_text()).text
    assert main([str(path), "--dry-run", "--report", str(tmp_path / "no.html"), "--force"]) == 2
    assert main([str(path), "--ratio", "0.5", "--report", str(page), "--force", "-o", str(page)]) == 2
    assert not (tmp_path / "no.html").exists()
