"""What smaller and larger cuts are expected to do: told with a result of a ratio, read again, and drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest

import onnxprune
from onnxprune.report.forecast import Judged
from onnxprune.report.page import render
from onnxprune.report.pages.shared import curve
from tests.channels import surgery
from tests.report.test_network import TEXT
from tests.report.test_page import read

SAMPLES = np.random.default_rng(0).standard_normal((24, 4, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def result():
    return onnxprune.prune(surgery.model_of(TEXT), 0.4, calibration=SAMPLES, round_to=1)


def test_the_way_is_predicted_and_what_was_taken_is_measured(result):
    found = result.forecast
    removed, damage = zip(*found.path, strict=True)
    assert found.of == "macs" and removed[0] == damage[0] == 0 and removed[-1] > 0.5
    assert list(removed) == sorted(removed) and list(damage) == sorted(damage)
    assert found.taken in found.judged and found.taken.removed == pytest.approx(result.macs_removed, abs=1e-6)
    again = onnxprune.Result.from_dict(json.loads(result.to_json()))
    assert again.forecast == found


def test_the_page_tells_them_apart(result):
    page = result.to_html()
    text = " ".join(read(page).text.split())
    assert "What more or less would do" in text and "measured" in text and "predicted" in text
    assert page.count('stroke-dasharray="6 4"') == 1 and page.count('r="9" fill="none"') == 1
    assert page.count("<title>measured: ") == len({j for j in result.forecast.judged if j.damage is not None})
    assert page.count("<title>predicted: ") == sum(d >= 1e-6 for _, d in result.forecast.path)


def test_there_is_none_where_nothing_is_known_or_measured(result):
    without = onnxprune.prune(surgery.model_of(TEXT), 0.4)
    assert without.forecast is None
    alike = onnxprune.prune(surgery.model_of(TEXT), 0.4, calibration=SAMPLES, allocation="uniform")
    assert alike.forecast is None
    for found in (None, replace(result.forecast, path=((0.0, 0.0),))):
        assert "What more or less would do" not in replace(result, forecast=found).to_html()
    old = result.to_dict()
    del old["forecast"]
    assert "What more or less would do" not in render(old, name="m")


def test_what_had_no_rival_is_shown_as_predicted(result):
    alone = onnxprune.prune(surgery.model_of(TEXT), 0.4, calibration=SAMPLES, methods=("rank",))
    for found in (alone.forecast, replace(result.forecast, taken=Judged(0.4, None), judged=())):
        page = replace(result, forecast=found).to_html()
        text = " ".join(read(page).text.split())
        assert found.taken.damage is None and not found.judged and "A dot is" not in text
        assert "The ring is what was taken: " in text and "predicted" in text and page.count('r="9" fill="none"') == 1


def test_decades_have_whole_powers_as_ticks():
    shown = [text for text, _ in curve([(0, -5.4, ""), (1, 1.2, "")], "x", "y", decades=True)["y_ticks"]]
    assert shown == ["10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1", "1", "10"]
    assert len(curve([(0, -20, ""), (1, 1, "")], "x", "y", decades=True)["y_ticks"]) < 9


def test_shares_end_at_the_whole():
    same = curve([(40, 100, ""), (60, 100, "")], "MACs removed", "top-1", y_unit="%", x_unit="%")
    assert [text for text, _ in same["y_ticks"]] == ["96%", "98%", "100%"]
    named = curve([(40, 100, "")], "size", "top-1 in percent")
    assert named["y_ticks"][-1][0] == "100"
    assert curve([(40, 120, "")], "x", "y", y_unit="%")["y_ticks"][-1][0] > "100%"
