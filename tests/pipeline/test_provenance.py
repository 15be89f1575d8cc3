"""Where an outcome comes from: in the result, the plan, the file and the JSON, and none of it in the file's bytes that
could differ between equal runs."""

import hashlib
import json
import re
import shlex

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.files.metadata import PREFIX, earlier
from onnxprune.graph.model import digest
from onnxprune.report.provenance import this_run
from tests.channels import surgery

TEXT = """(float[N,3,6,6] x) => (float[N,4] y) <float[8,3,3,3] w, float[8,8,1,1] u, float[4,8] v>
    { h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) i = Conv(r, u) p = GlobalAveragePool(i) f = Flatten(p) y = Gemm<transB=1>(f, v) }"""
SAMPLES = np.random.default_rng(0).standard_normal((16, 3, 6, 6)).astype(np.float32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = surgery.model_of(TEXT)
    made.metadata_props.add(key="author", value="somebody")
    onnx.save(made, "m.onnx")
    np.savez("s.npz", x=SAMPLES)
    return tmp_path


def props(path):
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def ran(capsys, line):
    assert main(shlex.split(line)) == 0
    return capsys.readouterr().out


GIVEN = "--ratio 0.4 --exclude zzz --include . --round-to 2 --min-width 2 --samples 12 --seed 3"


def test_json_holds_every_setting_and_digest(here, capsys):
    line = f"m.onnx --calib s.npz {GIVEN} --input-shape x=1,3,6,6 --json -o p.onnx"
    found = json.loads(ran(capsys, line))
    wanted = {"ratio": 0.4, "exclude": "zzz", "include": ".", "round_to": 2, "min_width": 2, "samples": 12, "seed": 3,
              "repair": "refit", "input_shapes": {"x": [1, 3, 6, 6]}, "criterion": "elimination"}  # fmt: skip
    assert wanted.items() <= found["settings"].items() and found["version"] == onnxprune.__version__
    assert found["digests"]["output"] == hashlib.sha256((here / "p.onnx").read_bytes()).hexdigest()
    assert found["digests"]["model"] == digest(onnx.load("m.onnx")) and len(found["digests"]["samples"]) == 64
    run = found["run"]
    assert run["command"] == f"onnxprune {line}" and run["date"].endswith("Z") and run["machine"]["cores"] >= 1


def test_a_page_and_a_plan_hold_it_too(here, capsys):
    ran(capsys, f"m.onnx --calib s.npz {GIVEN} --report p.html --plan-out p.json --no-bench -o p.onnx")
    page = " ".join(re.sub(r"<[^>]*>", " ", (here / "p.html").read_text()).split())
    plan = json.loads((here / "p.json").read_text())
    for text in ("--exclude zzz", "round_to", "min_width", "sha256", digest(onnx.load("m.onnx")), onnxprune.__version__,
                 hashlib.sha256((here / "p.onnx").read_bytes()).hexdigest(), plan["run"]["date"][:10]):  # fmt: skip
        assert text in page, text
    assert plan["run"]["command"].startswith("onnxprune m.onnx --calib s.npz --ratio 0.4")
    assert {"exclude", "include", "round_to", "min_width", "samples", "samples_digest"} <= plan["settings"].keys()


def test_json_is_the_same_but_for_the_run(here, capsys, monkeypatch):
    texts = []
    for second in (1, 2):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(second))
        texts.append(ran(capsys, f"m.onnx --calib s.npz --json -o p{second}.onnx"))
    one, two = (text.partition(', "run": ') for text in texts)
    assert one[0] == two[0] and one[2] != two[2] and '"date": "1970-01-01T00:00:01Z"' in one[2]


def test_the_file_is_the_same_however_it_was_made(here, capsys):
    """From the command, through a plan, from Python, in a sweep, elsewhere, with other cores."""
    ran(capsys, "m.onnx --calib s.npz --ratio 0.4 --no-bench -o a.onnx")
    ran(capsys, "plan m.onnx --calib s.npz --ratio 0.4 -o plan.json")
    ran(capsys, "apply m.onnx plan.json --calib s.npz --no-bench -o b.onnx")
    ran(capsys, "m.onnx --calib s.npz --ratios 0.4 --no-bench -o c.onnx")
    (here / "there").mkdir()
    (here / "there/t.npz").write_bytes((here / "s.npz").read_bytes())
    ran(capsys, "m.onnx --calib there/t.npz --ratio 0.4 --no-bench --threads 1 -o there/d.onnx")
    onnxprune.prune("m.onnx", 0.4, calibration=SAMPLES).save("e.onnx")
    first = (here / "a.onnx").read_bytes()
    for name in ("b.onnx", "c-0.4.onnx", "there/d.onnx", "e.onnx"):
        assert (here / name).read_bytes() == first, name
    assert str(here) not in first.decode("latin-1")


def test_the_file_says_what_was_asked(here, capsys):
    ran(capsys, "m.onnx --calib s.npz --ratio 0.4 --min-width 2 --repair statistics --no-bench -o p.onnx")
    found = props("p.onnx")
    assert found["author"] == "somebody" and found["onnxprune.asked"] == "--ratio 0.4 of the MACs"
    settings = json.loads(found["onnxprune.settings"])
    assert {"min_width": 2, "repair": "statistics", "seed": 0, "samples": 16}.items() <= settings.items()
    assert found["onnxprune.model_digest"] == digest(onnx.load("m.onnx")) and found["onnxprune.version"]
    assert not {"threads", "recipe", "metadata", "epochs"} & settings.keys()


def test_the_size_is_that_of_the_file(here):
    result = onnxprune.prune("m.onnx", 0.4, calibration=SAMPLES)
    result.save("p.onnx")
    assert result.after.bytes == (here / "p.onnx").stat().st_size


def test_without_metadata_the_file_says_nothing(here, capsys):
    ran(capsys, "m.onnx --calib s.npz --no-metadata --no-bench --allow-destroyed -o p.onnx")
    assert props("p.onnx") == {"author": "somebody"}
    ran(capsys, "m.onnx --calib s.npz --no-bench --allow-destroyed -o q.onnx")
    ran(capsys, "q.onnx --calib s.npz --ratio 0.2 --no-metadata --no-bench --allow-destroyed -o r.onnx")
    assert props("r.onnx") == {"author": "somebody"}


def test_pruned_again_it_says_so_and_remembers(here, capsys):
    ran(capsys, "m.onnx --calib s.npz --ratio 0.3 --round-to 1 --no-bench -o p.onnx")
    text = ran(capsys, "p.onnx --calib s.npz --ratio 0.2 --round-to 1 --no-bench -o q.onnx --report q.html")
    words = "pruned once already (--ratio 0.3 of the MACs)"
    assert words in " ".join(text.split()) and words in (here / "q.html").read_text()
    assert [p["asked"] for p in earlier(onnx.load("q.onnx"))] == ["--ratio 0.3 of the MACs", "--ratio 0.2 of the MACs"]
    text = " ".join(ran(capsys, "inspect q.onnx").split())
    assert "pruned 2 times already (last --ratio 0.2 of the MACs)" in text
    assert len(json.loads(ran(capsys, "inspect q.onnx --json"))["earlier"]) == 2


def test_a_target_is_named_and_not_the_ratio_that_it_came_to(here, capsys):
    wide = TEXT.replace("8,3,3,3", "64,3,3,3").replace("8,8,1,1", "64,64,1,1").replace("4,8", "4,64")
    onnx.save(surgery.model_of(wide), "m.onnx")
    found = json.loads(ran(capsys, "m.onnx --calib s.npz --size-mb 0.012 --json -o p.onnx"))
    settings = found["settings"]
    assert settings["target"] == {"size_mb": 0.012} and "ratio" not in settings and 0 < settings["came_to"] < 1
    assert props("p.onnx")["onnxprune.asked"] == "--size-mb 0.012" and (here / "p.onnx").stat().st_size <= 12_000


def test_the_metric_of_a_drop_is_named(here, capsys):
    np.savez("labelled.npz", x=SAMPLES, labels=np.arange(16) % 4)
    text = ran(capsys, "m.onnx --calib s.npz --max-drop 100 --eval labelled.npz --no-bench --allow-destroyed -o p.onnx")
    assert "--max-drop 100, in top-1 of labelled.npz in percent" in " ".join(text.split())
    assert "top-1 of labelled.npz in percent " in props("p.onnx")["onnxprune.asked"] + " "


def test_from_python_the_call_is_named():
    made = surgery.model_of(TEXT)
    result = onnxprune.prune(made, ratio=0.4, calibration={"x": SAMPLES}, round_to=1)
    assert result.to_dict()["run"]["call"] == (
        "onnxprune.prune(model=<ModelProto>, ratio=0.4, calibration={'x': <array 16x3x6x6>}, round_to=1)"
    )
    assert not onnxprune.prune(made, 0.4, metadata=False).model.metadata_props
    assert repr(result).startswith("<Result model: 4") and len(repr(result)) < 120


@pytest.mark.parametrize("odd", [{"ratio": "half"}, {"target": 3}, {"target": {"speedup": None}}, {"of": [1]},
                                 {"repair": {}}, {"x": "y" * 50_000}, {"metric": {"a": 1}, "trained": 1}])  # fmt: skip
def test_a_plan_with_odd_memories_is_carried_out(here, capsys, odd):
    ran(capsys, "plan m.onnx --calib s.npz -o plan.json")
    plan = json.loads((here / "plan.json").read_text())
    (here / "plan.json").write_text(json.dumps({**plan, "settings": odd}))
    ran(capsys, "apply m.onnx plan.json --calib s.npz --no-bench -o p.onnx")
    assert sum(len(p.value) for p in onnx.load("p.onnx").metadata_props if p.key.startswith(PREFIX)) < 2000


def test_what_apply_is_told_is_in_its_result(here, capsys):
    ran(capsys, "plan m.onnx --calib s.npz -o plan.json")
    line = (
        "apply m.onnx plan.json --calib s.npz --repair statistics --seed 4 --threads 1 --no-metadata --json -o p.onnx"
    )
    found = json.loads(ran(capsys, f"{line} --allow-destroyed"))
    wanted = {"repair": "statistics", "seed": 4, "threads": 1, "metadata": False, "criterion": "elimination"}
    assert wanted.items() <= found["settings"].items() and found["run"]["command"].startswith(f"onnxprune {line}")
    assert props("p.onnx") == {"author": "somebody"}


def test_a_date_that_is_none_is_not_taken(monkeypatch):
    for text in ("x", "9" * 30, ""):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
        assert this_run()["date"].startswith("20")
