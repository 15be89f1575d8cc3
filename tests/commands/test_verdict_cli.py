"""What a person sees of the verdict, and what is refused for it. On a trained network: ResNet-20, which ships."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.pipeline.gates import GATES, Gates

SHIPPED = Path(__file__).parents[2] / "benchmarks"
QUICK = ["--criterion", "l1", "--allocation", "uniform", "--methods", "channels", "--no-bench"]


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    path = tmp_path_factory.mktemp("calib") / "x.npz"
    np.savez(path, x=np.load(SHIPPED / "data" / "calib.npz")["x"][:96])
    return str(path)


@pytest.fixture
def command(tmp_path, calib, capsys):
    out = tmp_path / "out.onnx"

    def run(*more, quick=True):
        words = [str(SHIPPED / "models" / "resnet20_fmnist.onnx"), "--calib", calib, "-o", str(out), "--force"]
        code = main([*words, *(QUICK if quick else []), *more])
        shown = capsys.readouterr()
        return code, shown.out, shown.err, out.exists()

    return run


def test_destroyed_is_shown_refused_and_written_on_demand(command, tmp_path):
    bad = ["--ratio", "0.9", "--repair", "none"]
    code, out, err, written = command(*bad)
    assert code == 6 and not written and not list(tmp_path.iterdir())
    assert "verdict      destroyed: top-1 agreement" in out and "chance would give" in out and "wrote" not in out
    assert "the network is destroyed" in err and "nothing was written" in err and "--allow-destroyed" in err
    code, out, err, written = command(*bad, "--json", "--report", str(tmp_path / "page.html"))
    found = json.loads(out)
    assert code == 6 and not list(tmp_path.iterdir())
    assert (
        found["verdict"] == found["fidelity"]["verdict"] == "destroyed" and found["fidelity"]["parts"][0]["same"] < 0.5
    )
    for more in (["--allow-destroyed"], ["--best-effort"]):
        code, out, err, written = command(*bad, *more, "--report", str(tmp_path / "page.html"))
        assert code == 0 and written and "verdict      destroyed" in out
        page = (tmp_path / "page.html").read_text()
        tiles = page[page.index('class="tiles"') :]
        assert tiles.index('class="tile verdict destroyed"') < tiles.index("of the multiply-accumulates")


def test_kept_and_changed_are_written(command):
    code, out, _, written = command("--ratio", "0.3")
    assert code == 0 and written and "verdict      kept: top-1 agreement" in out
    code, out, _, written = command("--ratio", "0.6", "--repair", "statistics")
    assert code == 0 and written and "verdict      changed: top-1 agreement" in out


@pytest.mark.parametrize(
    "gate, words",
    [
        (["--min-top1", "1"], "top-1 agreement"),
        (["--min-cosine", "0.9999"], "is below 0.9999"),
        (["--min-sqnr", "60"], "is below 60.0 dB"),
        (["--max-drop", "0.5"], "the metric drops from 100 to"),
    ],
)
def test_gates_of_the_main_job(command, gate, words):
    cut = ["--ratio", "0.6", "--repair", "statistics"]
    code, out, err, written = command(*cut, *gate)
    assert code == 6 and not written and words in err and "verdict      changed" in out
    loose = [gate[0], {"--max-drop": "90", "--min-sqnr": "1"}.get(gate[0], "0.1")]
    code, _, _, written = command(*cut, *loose)
    assert code == 0 and written


@pytest.mark.parametrize(
    "words, text",
    [
        (["--min-top1", "95"], "a share, such as 0.95"),
        (["--min-cosine", "3"], "is not between -1 and 1"),
        (["--ratio", "0.5", "--max-drop", "0"], "not a positive number"),
    ],
)
def test_gates_that_make_no_sense(command, words, text):
    code, _, err, _ = command(*words)
    assert code == 2 and text in err


def test_gates_need_samples(tmp_path, capsys):
    model = str(SHIPPED / "models" / "resnet20_fmnist.onnx")
    for name in GATES:
        assert main([model, f"--{name.replace('_', '-')}", "0.5", "-o", str(tmp_path / "o.onnx")]) == 2
        assert "needs samples; give --calib" in capsys.readouterr().err


def test_a_sweep_leaves_out_what_is_destroyed(command, tmp_path):
    code, out, err, _ = command("--ratios", "0.2,0.9", "--repair", "none", "--round-to", "1")
    made = sorted(p.name for p in tmp_path.iterdir())
    assert code == 6 and "out-0.9.onnx: the network is destroyed" in err and "out-0.9.onnx" not in made
    assert "verdict" in out.splitlines()[0] and "destroyed" in out


def test_python_is_warned(calib):
    given = {"calibration": calib, "criterion": "l1", "allocation": "uniform", "methods": ("channels",)}
    model = SHIPPED / "models" / "resnet20_fmnist.onnx"
    with pytest.warns(onnxprune.FidelityWarning, match="destroyed: top-1 agreement"):
        result = onnxprune.prune(model, 0.9, repair="none", **given)
    assert result.verdict == "destroyed"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert onnxprune.prune(model, 0.3, **given).verdict == "kept"
    with pytest.raises(onnxprune.PruneError, match=r"top-1 agreement .* is below"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnxprune.prune(model, 0.9, repair="none", gates=Gates(min_top1=0.9), **given)
    with pytest.raises(onnxprune.PruneError, match="did you mean min_top1"):
        Gates(min_topp1=0.9)


def test_verify_judges_too(command, tmp_path, calib, capsys):
    plan = str(tmp_path / "plan.json")
    code, *_ = command("--ratio", "0.9", "--repair", "none", "--allow-destroyed", "--plan-out", plan)
    model, words = str(SHIPPED / "models" / "resnet20_fmnist.onnx"), ["--plan", plan, "--calib", calib]
    assert code == 0 and main(["verify", model, str(tmp_path / "out.onnx"), *words]) == 6
    shown = capsys.readouterr()
    assert "verdict      destroyed" in shown.out and "the network is destroyed" in shown.err
    assert main(["verify", model, str(tmp_path / "out.onnx"), *words, "--allow-destroyed"]) == 0
