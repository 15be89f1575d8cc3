"""What the page of a result tells beside the verdict: layers in bytes and milliseconds, what each cut alone would do,
files, and samples as pictures where that is asked for."""

import base64
import dataclasses
import html
import json
import re
import struct
import zlib

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import ProviderError, UsageError
from onnxprune.report.page import render
from onnxprune.report.pictures import MOST, SIDE, Picture, grey, picture
from onnxprune.runtime import sessions
from onnxprune.timing import node_times
from onnxprune.timing.engine import Engine
from tests.channels import surgery
from tests.report.test_page import TEXT, read

RNG = np.random.default_rng(0)
PICTURE = """(float[N, 3, 16, 16] x) => (float[N, 3, 16, 16] y)
<float[16, 3, 3, 3] w, float[16] c, float[3, 16, 3, 3] v>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, c)  b = Relu(a)  y = Conv <pads = [1, 1, 1, 1]> (b, v) }"""
BOXED = """(float[N, 3, 16, 16] x) => (float[N, 6, 16] y)
<float[16, 3, 3, 3] w, float[16] c, float[4, 16, 1, 1] v, float[2, 16, 1, 1] s, float[1] many = {40.0},
 int64[3] flat = {0, -1, 16}>
{ a = Conv <pads = [1, 1, 1, 1], strides = [4, 4]> (x, w, c)  b = Relu(a)  p = Conv(b, v)  q = Abs(p)  k = Mul(q, many)
  t = Conv(b, s)  g = Sigmoid(t)  h = Reshape(k, flat)  i = Reshape(g, flat)  y = Concat <axis = 1> (h, i) }"""


@pytest.fixture(scope="module")
def result():
    x = RNG.standard_normal((24, 4, 6, 6)).astype(np.float32)
    return onnxprune.prune(surgery.model_of(TEXT), 0.5, calibration=x, bench=True, round_to=1)


def smooth(count):
    """Images whose neighbouring pixels are alike."""
    rows, columns = RNG.uniform(0, 3, (2, count, 3, 1, 1))
    place = np.arange(16) / 16
    return np.sin(rows * place[:, None] + columns * place).astype(np.float32)


# ---- layers ----------------------------------------------------------------------------------------------------


def test_layers_have_bytes_and_milliseconds(result):
    sides = [s for spot in result.network.spots for s in (spot.before, spot.after) if s is not None]
    assert all(s.ms is not None and s.ms >= 0 for s in sides) and any(s.ms for s in sides)
    conv = next(spot for spot in result.network.spots if spot.node == "a")
    assert conv.before.bytes == 4 * (conv.before.params) > conv.after.bytes
    for which, cost in (("before", result.before), ("after", result.after)):
        spent = sum(getattr(s, which).ms for s in result.network.spots if getattr(s, which))
        assert 0.1 * cost.latency_ms < spent < 10 * cost.latency_ms
    text = read(result.to_html()).text
    assert "share of time" in text and "time gone" in text and "Layers were not timed" not in text


def test_layers_are_timed_on_a_stand_in_for_a_gpu(monkeypatch):
    """CUDA is asked for, and the CPU runs it: layers are timed alone, by the clock, and the page says so."""
    real, asked = sessions.open_session, []

    def on_the_cpu(model, *, providers=("cpu",), provider_options=None, **more):
        asked.append(tuple(providers))
        return real(model, **more)

    monkeypatch.setattr(sessions, "open_session", on_the_cpu)
    x = RNG.standard_normal((24, 4, 6, 6)).astype(np.float32)
    result = onnxprune.prune(surgery.model_of(TEXT), 0.5, calibration=x, bench=True, round_to=1, providers=("cuda",))
    assert ("cuda",) in asked and result.network.timed_on == "cuda"
    for which in ("before", "after"):
        sides = [s for spot in result.network.spots if (s := getattr(spot, which)) is not None and s.macs]
        assert sides and all(s.ms > 0 for s in sides)
    text = read(result.to_html()).text
    assert "each layer run alone" in text and "share of time" in text and "profile tells of a run" not in text
    assert onnxprune.Result.from_dict(json.loads(result.to_json())).network == result.network


def test_layers_that_a_provider_does_not_take_have_no_time_alone(monkeypatch):
    subject = onnxprune.open_model(surgery.model_of(TEXT))
    times = node_times._alone(subject.graph, subject.channels.shapes, Engine())
    assert set(times) == {"a", "d", "y"} and all(ms > 0 for ms in times.values())

    def none(*args):
        raise ProviderError("took no node")

    monkeypatch.setattr(node_times._Probe, "time", none)
    assert node_times._alone(subject.graph, subject.channels.shapes, Engine()) == {}


def test_layers_that_were_not_timed_say_so():
    page = onnxprune.prune(surgery.model_of(TEXT), 0.5).to_html()
    text = read(page).text
    assert "Layers were not timed" in text and "share of MACs" in text and "time gone" not in text


def test_no_column_is_without_a_name_and_what_scrolls_is_reached_by_the_keyboard(result):
    page = result.to_html()
    assert not re.search(r"<th[^>]*>\s*</th>", page)
    scrolls = re.findall(r'<div class="scroll"[^>]*>', page)
    assert scrolls and all('tabindex="0"' in tag and 'aria-label="' in tag for tag in scrolls)


# ---- cuts alone ------------------------------------------------------------------------------------------------


def test_what_each_cut_alone_would_do_is_kept(result):
    assert {row.name for row in result.studied} <= {name for name, _, _ in result.groups} and result.studied
    for row in result.studied:
        assert all(0 <= p.kept < row.width and 0 <= p.macs_removed < 1 for p in row.points)
        assert [p.kept for p in row.points] == sorted((p.kept for p in row.points), reverse=True)
    again = onnxprune.Result.from_dict(json.loads(json.dumps(result.to_dict())), result.model)
    assert again.studied == result.studied and again.network == result.network
    text = read(result.to_html()).text
    assert "What each cut alone would do" in text and 'r="5.5"' in result.to_html()


def test_without_samples_nothing_is_told_of_single_cuts():
    found = onnxprune.prune(surgery.model_of(TEXT), 0.5)
    assert found.studied == () and "What each cut alone would do" not in found.to_html()


# ---- files -----------------------------------------------------------------------------------------------------


def test_files_are_linked_by_where_they_are(result):
    page = result.to_html(files={"pruned": "../made/a b.onnx", "original": "http://evil.example/<x>"})
    links = re.findall(r'href="([^"]*)"', page)
    assert links == ["./../made/a%20b.onnx", "./http%3A/evil.example/%3Cx%3E"]
    assert "<x>" not in page and "a b.onnx" in page


def test_the_command_links_what_it_wrote(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(surgery.model_of(TEXT), "m.onnx")
    (tmp_path / "pages").mkdir()
    assert main(["m.onnx", "--report", "pages/r.html", "--plan-out", "p.json", "-q", "-o", "o.onnx"]) == 0
    page = (tmp_path / "pages" / "r.html").read_text()
    links = re.findall(r'href="([^"]*)"', page)
    assert links == ["./../m.onnx", "./../o.onnx", "./../p.json"]
    assert all((tmp_path / "pages" / link).resolve().exists() for link in links)
    assert "onnxprune m.onnx --report pages/r.html" in html.unescape(read(page).text)


# ---- samples as pictures ---------------------------------------------------------------------------------------


def test_no_picture_is_there_unless_it_is_asked_for(result):
    assert result.samples == () and "img-src" not in result.to_html() and "<img" not in result.to_html()


def test_outputs_that_are_images_are_shown():
    found = onnxprune.prune(surgery.model_of(PICTURE), 0.3, calibration=smooth(32), report_samples=3, round_to=1,
                            output_kind={"y": "image"}, allocation="uniform")  # fmt: skip
    assert len(found.samples) == 3 and all(s.picture.width == 16 for s in found.samples)
    (shown,) = found.samples[0].outputs
    assert shown.kind == "image" and len(shown.pictures) == 3
    page = found.to_html()
    read(page)
    assert page.count("<img") == 12 and "img-src data:;" in page
    assert onnxprune.Result.from_dict(json.loads(found.to_json())).samples == found.samples


def test_boxes_are_drawn_on_samples():
    model = surgery.model_of(BOXED)
    found = onnxprune.prune(model, 0.3, calibration=smooth(32), report_samples=2, round_to=1, output_kind={"y": "boxes"},
                            allocation="uniform")  # fmt: skip
    boxes = [box for s in found.samples for shown in s.outputs for box in (*shown.before, *shown.after)]
    assert boxes and all(0 <= v <= 1 for b in boxes for v in (b.x0, b.y0, b.x1, b.y1))
    page = found.to_html()
    read(page)
    assert page.count("<rect class=") >= len(boxes) and "drawn dashed" in page


def test_class_scores_are_said(result):
    x = RNG.standard_normal((24, 4, 6, 6)).astype(np.float32)
    found = onnxprune.prune(surgery.model_of(TEXT), 0.5, calibration=x, allocation="uniform", report_samples=2)
    assert all(s.picture is None for s in found.samples)  # side of 6: no image
    assert re.search(r"class \d \(.*\) → \d", found.samples[0].outputs[0].words)
    read(found.to_html())


def test_a_picture_is_a_small_png():
    pixels = RNG.integers(0, 256, (300, 700, 3), np.uint8)
    made = picture(pixels)
    assert max(made.width, made.height) <= SIDE and made.width > made.height
    data = base64.b64decode(made.data)
    assert struct.unpack(">II", data[16:24]) == (made.width, made.height)
    start = data.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompress(data[start:]), np.uint8).reshape(made.height, -1)
    assert (rows[:, 1:].reshape(made.height, made.width, 3) == pixels[::6, ::6]).all()
    assert grey(np.array([-1.0, 0.0, 0.5, 2.0, np.nan]), 0.0, 1.0).tolist() == [0, 0, 128, 255, 0]


@pytest.mark.parametrize("data", ['"/><script>', "", "iVBOR" + "A" * 500_000, "javascript:1"])
def test_what_is_no_picture_is_refused(result, data):
    with pytest.raises(ValueError, match="no small PNG"):
        Picture(data, 1, 1)
    sample = {"number": 1, "picture": {"data": data, "width": 1, "height": 1}, "outputs": []}
    with pytest.raises(ValueError, match="not whole"):
        render({**result.to_dict(), "samples": [sample]}, name="m")


def test_samples_need_samples_and_a_page(tmp_path, monkeypatch, capsys):
    with pytest.raises(UsageError, match="give --calib"):
        onnxprune.prune(surgery.model_of(TEXT), 0.5, report_samples=2)
    x = RNG.standard_normal((24, 4, 6, 6)).astype(np.float32)
    with pytest.raises(UsageError, match=f"give 1 to {MOST}"):
        onnxprune.prune(surgery.model_of(TEXT), 0.5, calibration=x, allocation="uniform", report_samples=MOST + 1)
    monkeypatch.chdir(tmp_path)
    onnx.save(surgery.model_of(TEXT), "m.onnx")
    assert main(["m.onnx", "--report-samples", "2"]) == 2
    assert "give --report too" in capsys.readouterr().err


def test_hostile_names_are_shown_as_they_are(result):
    shown = dataclasses.replace(result.studied[0], name="<img src=x>")
    page = dataclasses.replace(result, studied=(shown,)).to_html()
    read(page)
    assert "<img src=x>" not in page
