"""A result as plain values and back: what is told is the same, and the model is the one that it was."""

import html
import json

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import FileError, UsageError
from tests.channels import surgery
from tests.report.test_every_page import with_twin

TEXT = """(float[N,4,6,6] x) => (float[N,3] y)
<float[16,4,3,3] w, float[16] c, float[16,16,3,3] v, float[16] d, float[3,16] g>
{ a = Conv <pads = [1, 1, 1, 1]> (x, w, c)  b = Relu(a)  e = Conv <pads = [1, 1, 1, 1]> (b, v, d)
  s = Add(b, e)  r = Relu(s)  p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm <transB = 1> (f, g) }"""
SAMPLES = np.random.default_rng(0).standard_normal((24, 4, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module", params=["sampled, timed", "unsampled", "lossless"])
def result(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "m.onnx"
    onnx.save(surgery.model_of(TEXT), path)
    if request.param == "unsampled":
        return onnxprune.prune(path, 0.4)
    if request.param == "lossless":
        return onnxprune.prune(with_twin(), lossless=True, round_to=1)
    return onnxprune.prune(path, 0.4, calibration=SAMPLES, bench=True, gates=None)


def plainly(result):
    return json.loads(result.to_json())


def test_what_is_told_is_the_same(result):
    again = onnxprune.Result.from_dict(plainly(result))
    assert plainly(again) == plainly(result) and again.plan == result.plan
    assert (again.before, again.after, again.surgery, again.fidelity, again.latency) == (
        result.before, result.after, result.surgery, result.fidelity, result.latency,
    )  # fmt: skip
    assert again.summary() == result.summary() and repr(again) == repr(result) and again.to_html() == result.to_html()
    assert again.pinned == result.pinned and again.groups == result.groups and again.verdict == result.verdict


def test_a_notebook_shows_the_page_in_a_frame(result):
    shown = result._repr_html_()
    assert shown.count("<") == 2 and html.unescape(shown.split('srcdoc="')[1].split('" style')[0]) == result.to_html()


def test_the_plain_values_need_not_have_been_json(result):
    assert plainly(onnxprune.Result.from_dict(result.to_dict())) == plainly(result)


def test_it_is_saved_with_its_model_alone(result, tmp_path):
    path = result.save(tmp_path / "p.onnx")
    for model in (path, str(path), result.model):
        again = onnxprune.Result.from_dict(plainly(result), model)
        assert again.save(tmp_path / "q.onnx", force=True).read_bytes() == path.read_bytes()
    with pytest.raises(onnxprune.PruneError, match="without its model"):
        onnxprune.Result.from_dict(plainly(result)).save(tmp_path / "r.onnx")
    with pytest.raises(onnxprune.PruneError, match="not the model that the result tells of"):
        onnxprune.Result.from_dict(plainly(result), surgery.model_of(TEXT))
    assert not (tmp_path / "r.onnx").exists()


def test_what_is_no_result_is_refused(result):
    told = plainly(result)
    lacking = {k: v for k, v in told.items() if k != "surgery"}
    planless = {k: v for k, v in told.items() if k != "plan"}
    for content in ({}, [], {**told, "schema": 2}, {**told, "kind": "onnxprune sweep"}, lacking, planless,
                    {**told, "plan": {}}, {**told, "groups": 3}):  # fmt: skip
        with pytest.raises(onnxprune.PruneError):
            onnxprune.Result.from_dict(content)


def test_what_the_command_prints_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(surgery.model_of(TEXT), "m.onnx")
    assert main(["m.onnx", "--ratio", "0.4", "--json"]) == 0
    again = onnxprune.Result.from_dict(json.loads(capsys.readouterr().out), "m.pruned.onnx")
    assert again.macs_removed > 0.3 and again.source.name == "m.onnx"


@pytest.mark.parametrize(
    ("key", "value"),
    [("run", {"model": 3}), ("run", [1]), ("cuts", 1), ("pinned", [{"use": 1}]), ("digests", 0), ("groups", [[]])],
)
def test_a_result_that_is_not_whole(result, key, value):
    with pytest.raises(UsageError, match="not whole"):
        onnxprune.Result.from_dict(json.loads(json.dumps(result.to_dict())) | {key: value})


def test_a_plan_is_kept_in_a_file(result, tmp_path):
    path = result.plan.save(tmp_path / "plan.json")
    assert onnxprune.PrunePlan.load(path) == onnxprune.PrunePlan.load(str(path)) == result.plan
    assert path.read_text() == result.plan.to_json()
    with pytest.raises(FileError, match="force"):
        result.plan.save(path)
    result.plan.save(path, force=True)
    with pytest.raises(FileError, match=r"none\.json"):
        onnxprune.PrunePlan.load(tmp_path / "none.json")
    for content in (b"{}", b"\xff\xfe", b"[" * 100_000, b"[]", b"3"):
        path.write_bytes(content)
        with pytest.raises(onnxprune.PruneError, match=r"plan\.json: ") as caught:
            onnxprune.PrunePlan.load(path)
        assert "\n" not in str(caught.value)
