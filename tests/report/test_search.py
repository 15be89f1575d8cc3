"""What was measured on the way to a target: told, read again, and drawn with a ring around what was taken."""

import json

import numpy as np
import pytest

import onnxprune
from onnxprune.pipeline.goals import TARGETS
from onnxprune.report.page import render
from tests.channels import surgery
from tests.report.test_network import TEXT
from tests.report.test_page import read

SAMPLES = np.random.default_rng(0).standard_normal((24, 4, 6, 6)).astype(np.float32)


def reached(**more):
    settings = onnxprune.Settings(repair="none", round_to=1)
    subject = onnxprune.open_model(surgery.model_of(TEXT), calibration=SAMPLES)
    result = onnxprune.reach(subject, onnxprune.Target(**more), settings)
    return result, json.loads(result.to_json())


@pytest.mark.parametrize(
    ("asked", "what", "unit"),
    [
        ({"kind": "size_mb", "value": 0.03}, "file size", "MB"),
        ({"kind": "max_drop", "value": 100.0}, "R² in percent", ""),
    ],
)
@pytest.mark.filterwarnings("ignore::onnxprune.FidelityWarning")
def test_what_was_tried_is_told_and_drawn(asked, what, unit):
    result, told = reached(**asked)
    search = told["search"]
    assert search["what"].startswith(what) and search["unit"] == unit and search["tried"]
    assert search["taken"]["ratio"] == told["settings"]["came_to"]
    if unit == "MB":
        assert search["taken"]["value"] == pytest.approx(result.after.bytes / 1e6) and search["limit"] == 0.03
    page = render(told, name="m")
    text = " ".join(read(page).text.split())
    assert "How it was found" in text and what in text and page.count('r="9" fill="none"') == 1
    assert page.count('r="5"') == len({(p["ratio"], p["value"]) for p in (*search["tried"], search["taken"])})
    again = onnxprune.Result.from_dict(told)
    assert again.search == result.search and json.loads(again.to_json()) == told


def test_a_ratio_is_not_searched_for():
    told = json.loads(onnxprune.prune(surgery.model_of(TEXT), 0.4).to_json())
    assert told["search"] is None and "How it was found" not in render(told, name="m")


def test_every_target_says_what_is_measured():
    assert all(kind.measured or kind.by_metric for kind in TARGETS.values())
