"""What could not be done to a layer is in the result, on the terminal with -v, and on the page."""

import json

import numpy as np
import onnx
import pytest

from onnxprune.api import open_model
from onnxprune.cli import main
from onnxprune.pipeline.refused import refused
from onnxprune.plan import Origin, PrunePlan
from onnxprune.report.page import render
from onnxprune.rewrite.repair.table import REPAIRS
from tests.channels import surgery

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] a, float[16,16,3,3] b, float[16,5] c>
    { h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) i = Conv<pads=[1,1,1,1]>(r, b) s = Relu(i)
      p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<alpha=0.5>(f, c) }"""
WHY = "Gemm scales by alpha or beta; multiply them into its weight and bias"


@pytest.mark.parametrize(
    ("repair", "settings", "found"),
    [
        ("refit", {}, {("refitted", "y")}),
        ("distill", {}, {("refitted", "y")}),
        ("statistics", {}, set()),
        ("none", {"methods": ("channels", "rank")}, {("split", "y")}),
        ("none", {"methods": ("3c",)}, {("split", "y")}),
        ("none", {"methods": ("channels", "rank"), "allocation": "uniform"}, set()),
        ("none", {"methods": ("channels",), "of": "macs"}, set()),
        ("refit", {"methods": ("channels", "blocks", "rank"), "of": "latency"}, {("refitted", "y"), ("split", "y")}),
    ],
)
def test_what_a_run_does_is_what_may_be_refused(repair, settings, found):
    net = open_model(surgery.model_of(NET)).net
    plan = PrunePlan("0", (), origin=Origin(settings=settings))
    assert {(r.what, r.node) for r in refused(net, plan, REPAIRS[repair])} == found


def test_it_is_shown(tmp_path, capsys):
    onnx.save(surgery.model_of(NET), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32))
    line = [str(tmp_path / "m.onnx"), "--calib", str(tmp_path / "x.npy"), "--no-bench", "--force"]
    assert main(line) == 0 and "not refitted" not in capsys.readouterr().out
    assert main([*line, "-v"]) == 0
    assert f"not refitted {WHY} (1 layer: y)" in " ".join(capsys.readouterr().out.split())
    assert main([*line, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["refused"] == [{"what": what, "node": "y", "reason": WHY} for what in ("refitted", "split")]
    assert f"not refitted: {WHY}; 1 layer<" in render(result, name="m")
    del result["refused"]
    assert "not refitted" not in render(result, name="m"), "a result that knows nothing of it"
