"""Timings as people read them: a table, a plot, lines of CSV."""

import csv
import io
import json
from dataclasses import replace

import pytest

from onnxprune.errors import UsageError
from onnxprune.report import plots
from onnxprune.report.bench import CSV_COLUMNS, bench_csv
from onnxprune.report.page import render
from onnxprune.timing.cases import bench_cases
from onnxprune.timing.latency import bench
from tests.timing.fakes import fake_sessions, shown

NONE = "no measurable change"


@pytest.fixture
def fakes(monkeypatch):
    return fake_sessions(monkeypatch)


def test_the_table_names_models_verdicts_and_conditions(fakes):
    result = bench(["4", "0.25", "4.01"], feeds=fakes.feeds, names=["slow", "[fast]", "equal"], time_budget_s=1e3)
    text = shown(result)
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "baseline" in rows["slow"] and "16.000x" in rows["[fast]"] and "faster" in rows["[fast]"]
    assert NONE in rows["equal"] and "40 rounds" in text and "1 thread," in text and "x 1x4" in text
    assert "CPUExecutionProvider" in text and "interrupted" not in text
    assert "3 of 160 samples were interrupted by other processes; there," in shown(replace(result, interrupted=3))


def test_nodes_left_to_another_provider_are_told(fakes):
    result = bench(["4"], feeds=fakes.feeds)
    spread = {"CUDAExecutionProvider": 45, "CPUExecutionProvider": 2}
    assert "nodes of 4: cuda 45, cpu 2" in shown(replace(result, assignment={"4": spread}))
    assert "nodes of" not in shown(replace(result, assignment={"4": {"CPUExecutionProvider": 47}}))


def test_a_plot_shows_every_model_case_and_the_noise(fakes):
    pytest.importorskip("matplotlib")
    from onnxprune.report import bench_plot

    found = bench_cases(["4", "0.25"], batches=(1, 2), feeds=fakes.feeds, names=["$slow", "a<b"])
    picture = plots.encoded(bench_plot.draw(found), "p.svg")
    text = picture.decode()
    assert all(text.count(word) == 2 for word in (">16.000x, faster<", ">$slow again<", ">0.25<"))
    assert text.count(">a&lt;b<") == 4 and "batch 1, input x 1x4" in text and "grey: noise" in text
    assert picture == plots.encoded(bench_plot.draw(found), "p.svg")
    assert plots.encoded(bench_plot.draw(found[:1]), "p.png")[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("name", "there", "says"), [("p.svg", False, "pip install matplotlib"), ("p.gif", True, "svg")]
)
def test_a_plot_that_cannot_be_made_is_refused_before_the_work(monkeypatch, name, there, says):
    monkeypatch.setattr(plots, "find_spec", lambda module: there or None)
    with pytest.raises(UsageError, match=says):
        plots.require(name)


def test_csv_has_one_line_a_model(fakes):
    text = bench_csv(bench(["4", "0.25"], feeds=fakes.feeds, names=["slow", "a, b"]))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == tuple(CSV_COLUMNS)
    assert (rows[0]["name"], rows[0]["speedup"]) == ("slow", "") and rows[1]["name"] == "a, b"
    assert float(rows[1]["speedup"]) == 16 and rows[1]["verdict"] == "faster"


def test_a_page_has_no_exponents(fakes):
    result = bench(["4", "0.25"], feeds=fakes.feeds, time_budget_s=1e3)
    quick = replace(result, timings=tuple(replace(t, throughput_per_s=172_000.0) for t in result.timings))
    told = {"kind": "onnxprune bench", "schema": 1, "results": [quick.to_json()]}
    page = render(json.loads(json.dumps(told)), name="m")
    assert "172000" in page and "e+05" not in page
