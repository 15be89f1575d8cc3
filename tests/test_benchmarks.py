"""The helpers of `benchmarks/`: what they compute is what the tables claim."""

import io
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import onnxprune
from onnxprune.runtime.sessions import open_session
from tests.channels import surgery
from tests.graph.test_work import BODIES, ROWS

ROOT = Path(__file__).parent.parent
RESNET = ROOT / "benchmarks/models/resnet20_fmnist.onnx"
sys.path.append(str(ROOT / "benchmarks"))

import accuracy  # noqa: E402
import child  # noqa: E402
import common  # noqa: E402
import count_macs  # noqa: E402
import exporters  # noqa: E402
import peers  # noqa: E402
import photographs  # noqa: E402
import regression  # noqa: E402
import rendered  # noqa: E402
import same_against_same  # noqa: E402
import scaling  # noqa: E402
import torch_peers  # noqa: E402
import tradeoff  # noqa: E402


def calibration(count):
    return np.load(ROOT / "benchmarks/data/calib.npz")["x"][:count]


# ---- multiply-accumulates, node by node ------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[3] != "n + 2" and name != "distances"])
def test_the_second_count_is_right(name):
    """The rows that the tool's own count is tested by."""
    inputs, weights, nodes, macs, *opset = ROWS[name]
    if any(op in nodes for op in ("GroupQuery", "DecoderMasked")):
        pytest.skip("not counted there")
    if opset and opset[0] > surgery.newest_opset():
        pytest.skip("ONNX Runtime here has no such opset")
    kind = "int32" if "Integer(" in nodes else "uint8" if "QLinear" in nodes or "QGemm" in nodes else "float"
    text = f"({inputs}) => ({kind}[] y) {f'<{weights}>' if weights else ''} {{ {nodes} }}"
    model = surgery.model_of(text, *opset)
    assert count_macs.count(model, surgery.feeds_of(model)) == macs


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_run_as_onnx_runtime_runs_them(name):
    text, macs = BODIES[name]
    model = surgery.model_of(text)
    assert count_macs.count(model, surgery.feeds_of(model)) == macs


def test_the_two_counts_stand_side_by_side():
    *cells, words = count_macs.compare(RESNET, 0.5, {})
    assert words == "0.0000%" and cells[0::2] == cells[1::2] and cells[4].startswith("50.")


# ---- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"), [([0.9213], "92.1"), ([0.92, 0.91, 0.90], "91.0 (90.0–92.0)")], ids=["one", "three"]
)
def test_spread(values, text):
    assert common.spread(values) == text


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_distance(a, b, edits):
    assert rendered.distance(a, b) == rendered.distance(b, a) == edits


@pytest.mark.parametrize(
    ("steps", "word"),
    [([1, 1, 0, 1, 2], "aab"), ([0, 0, 0], ""), ([0, 2, 2, 0], "b"), ([3, 1, 3, 2, 3], "a b")],
    ids=["repeats merge, a blank parts", "blanks", "margins", "spaces at the ends"],
)
def test_decode(steps, word):
    assert rendered.decode(np.eye(4)[[steps]], ["", "a", "b", " "]) == [word]


def test_photographs_are_found_in_resource_files(tmp_path):
    rng = np.random.default_rng(0)

    def packed(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        data = file.getvalue().ljust(4000, b"\0")
        return data, len(data).to_bytes(4, "big") + data

    (first, a), (_, small), (_, plain), (second, b) = (
        packed(rng.integers(0, 256, (side, side, 3)) * rough) for side, rough in ((160, 1), (80, 1), (170, 0), (200, 1))
    )
    (tmp_path / "erase.rcc").write_bytes(b"qres" + a + small + plain + a)
    (tmp_path / "categorization.rcc").write_bytes(b"qres\x89PNG" + b + b[:-9])
    (tmp_path / "paintings.rcc").write_bytes(b)
    assert sorted(photographs.gcompris(tmp_path)) == sorted([first, second])
    assert photographs.gcompris(tmp_path / "none") == []
    assert photographs.views([first, second], 3, rng).shape == (3, 3, 224, 224)


def test_closest_is_the_nearest_step():
    stairs = [0.0, 0.3, 0.48, 0.55, 0.9]
    knob = torch_peers.closest(lambda share: stairs[int(share * 5)], 0.5)
    assert stairs[int(knob * 5)] == 0.48


@pytest.mark.parametrize(("power", "linear"), [(1, True), (2, False)])
def test_fit_tells_a_line_from_a_square(power, linear):
    x = np.array([64, 128, 256, 512, 1024.0])
    found = scaling.fit(x, 3 * x**power)
    assert found["power"] == pytest.approx(power)
    assert (found["r2"] > 0.999) == linear


def test_method_of_the_command_line():
    assert accuracy.method("criterion=l1,repair=refit") == (
        "criterion=l1,repair=refit",
        {"criterion": "l1", "repair": "refit"},
    )
    assert accuracy.method("mine:min_width=4,best_effort=true") == ("mine", {"min_width": 4, "best_effort": True})


def test_same_against_same_counts_the_runs_without_a_change():
    model = onnx.load(RESNET)
    other = same_against_same.other_weights(model, 0)
    pairs = list(zip(model.graph.initializer, other.graph.initializer, strict=True))
    assert [a.dims for a, _ in pairs] == [b.dims for _, b in pairs] and model.graph.node == other.graph.node
    assert all(a != b for a, b in pairs if len(a.dims) > 1)
    rows = [
        {"against": "itself", "verdict": v, "speedup": 1.0, "noise": (0.98, 1.02)}
        for v in ("slower", "no measurable change")
    ]
    assert "| itself | 1 of 2 | 1.000–1.000 | 0.980–1.020 |" in same_against_same.table(rows, 2)


# ---- cache -----------------------------------------------------------------------------------------------


def test_a_cached_result_is_not_computed_again(tmp_path):
    path, calls = tmp_path / "c.jsonl", []

    def make():
        calls.append(1)
        return {"top1": len(calls)}

    assert common.Cache(path).get({"ratio": 0.5}, make)["top1"] == 1
    assert common.Cache(path).get({"ratio": 0.5}, make)["top1"] == 1
    assert common.Cache(path).get({"ratio": 0.6}, make)["top1"] == 2
    assert common.Cache(path).get({"ratio": 0.5}, make, valid=lambda row: False)["top1"] == 3


def test_a_torn_line_costs_only_itself(tmp_path):
    path = tmp_path / "c.jsonl"
    common.Cache(path).get({"seed": 0}, lambda: {"top1": 1})
    path.write_text(path.read_text() + '{"key": {"see', encoding="utf-8")
    assert common.Cache(path).get({"seed": 0}, lambda: {"top1": 2})["top1"] == 1


# ---- samples ---------------------------------------------------------------------------------------------


def test_the_sample_that_ships_is_used_where_the_data_set_is_not(tmp_path):
    data = common.Fashion(tmp_path)
    assert not data.whole and data.x.shape == (1000, 1, 28, 28)
    assert data.calibration(1, 100).shape == (100, 1, 28, 28)


def test_words_of_calibration_and_report_differ():
    words = rendered.vocabulary(np.random.default_rng(0))
    assert len(set(words)) == len(words) > 1000


def test_a_word_is_bgr_and_padded_with_zeros():
    red = np.zeros((24, 48, 3), np.uint8)
    red[..., 0] = 255
    x = rendered.as_input(red, 320)
    assert x.shape == (3, 48, 320)
    assert x[:, 20, 20] == pytest.approx([-1, -1, 1])
    assert not x[:, :, 96:].any()


# ---- models ----------------------------------------------------------------------------------------------


def test_a_net_without_its_files_is_skipped(tmp_path, capsys):
    net, files = "cifar_resnet20", ("cifar_resnet20.onnx", *common.Cifar.FILES)
    for name in files:
        assert common.find_models([net], tmp_path, tmp_path) == {}
        assert f"skipped: {net}: {tmp_path / name} is not there" in capsys.readouterr().err
        (tmp_path / name).touch()
    assert common.find_models([net, "resnet20"], tmp_path, tmp_path) == {net: tmp_path / files[0], "resnet20": RESNET}
    assert common.find_models([net], tmp_path) == {}  # a command that knows Fashion-MNIST only


def test_every_net_reads_its_own_data_once(tmp_path):
    (tmp_path / "images.py").write_text(
        "import numpy as np\n"
        "def cifar(name, first=None):\n"
        "    count = {'cifar10_test.npz': 5, 'cifar10_train.npz': 50_000}[name] if first is None else first\n"
        "    return np.broadcast_to(np.uint8(255), (count, 32, 32, 3)), np.arange(count) % 10\n"
    )
    data = {net: common.data_of(net, tmp_path, tmp_path) for net in (*common.CIFAR, "vgg", "mbv2")}
    cifar, _, fashion, other = data.values()
    assert cifar is data["cifar_resnet56"] and fashion is other
    assert cifar.x.shape == (5, 3, 32, 32) and cifar.x[0, :, 0, 0] == pytest.approx((1 - cifar.MEAN) / cifar.SPREAD)
    assert common.amount(data.values()) == "5 or 1,000"
    cifar.validate()
    assert cifar.x.shape == (5000, 3, 32, 32) and cifar.labels.shape == (5000,)


def test_a_shortcut_without_weights_pads_on_both_sides():
    torch = pytest.importorskip("torch")
    import cifar_resnet

    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    y = cifar_resnet.Padded(2, 4)(x)
    assert y.shape == (1, 4, 2, 2) and not y[:, [0, 3]].any() and (y[:, 1:3] == x[:, :, ::2, ::2]).all()
    net = cifar_resnet.resnet(8)
    assert net.eval()(torch.zeros(torch_peers.size(net))).shape == (1, 10)
    assert len(net.stream) == 4 and not any(p.numel() for block in list(net)[1:-3] for p in block.sc.parameters())


def test_the_methods_of_a_table_are_chosen_by_words():
    found = [name for name in peers.PEERS if peers.wanted(name, ("linear", "TORCH"))]
    assert len(found) == 4 and "onnxprune (default)" not in found
    assert all(peers.wanted(name, ()) for name in peers.PEERS)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 1, 0)], ids=["same", "stride", "1x1", "valid"]
)
def test_patches_are_what_a_conv_multiplies(kernel, stride, pads):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 9, 9), dtype=np.float32)
    w = rng.standard_normal((4, 3, kernel, kernel), dtype=np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[stride] * 2, pads=[pads] * 4)
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xwy"]
    model = helper.make_model(helper.make_graph([node], "g", ports[:2], ports[2:]), ir_version=8)
    model.opset_import[0].version = 17
    y = open_session(model).run({"x": x, "w": w})[0]
    at = rng.integers(0, y.shape[2] * y.shape[3], (2, 7))
    got = regression._patches(x, node, (kernel, kernel), at, y.shape[3]) @ w.reshape(4, -1).T
    want = y.reshape(2, 4, -1)[np.arange(2)[:, None], :, at].reshape(14, 4)
    assert got == pytest.approx(want, abs=1e-4)


def test_the_regression_repairs_the_cut():
    x = calibration(96)
    original = open_session(str(RESNET)).run({"x": x})[0]

    def error(model):
        return float(((open_session(model).run({"x": x})[0] - original) ** 2).mean())

    subject = onnxprune.open_model(RESNET)
    assert len(regression.candidates(subject)) == 9  # one for each residual block: no stream, no classifier
    assert error(regression.prune(RESNET, 0.4, x, seed=0)) < 0.2 * error(regression.cut(subject, 0.4))


def chain(tmp_path):
    """Four convs in a row: the reader of one cut is the maker of the next."""
    net = scaling._Net(np.random.default_rng(0))
    x = "x"
    for c_in, c_out in ((1, 8), (8, 16), (16, 16), (16, 10)):
        x = net.relu(net.conv_bn(x, c_in, c_out, stride=2))
    net.nodes.append(helper.make_node("GlobalAveragePool", [x], ["y"]))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", *s]) for n, s in PORTS]
    graph = helper.make_graph(net.nodes, "chain", ports[:1], ports[1:], net.constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "c.onnx")
    return tmp_path / "c.onnx"


PORTS = (("x", (1, 28, 28)), ("y", (10, 1, 1)))


def test_the_regression_fits_a_reader_that_is_cut_itself(tmp_path):
    path, x = chain(tmp_path), calibration(96)
    original = open_session(str(path)).run({"x": x})[0]

    def error(model):
        return float(((open_session(model).run({"x": x})[0] - original) ** 2).mean())

    subject = onnxprune.open_model(path)
    assert len(regression.candidates(subject)) == 3
    assert error(regression.prune(path, 0.5, x, seed=0)) < 0.5 * error(regression.cut(subject, 0.5))


def test_a_crash_of_a_peer_is_shown_but_tried_again(tmp_path):
    job = peers.Job("resnet20", RESNET, 0.5, calibration(8), 0, 1)

    def crash(_):
        raise ValueError("no such width")

    row = peers.one(job, peers.Peer(crash), common.Fashion(tmp_path), tmp_path / "out.onnx")
    assert row == {"refused": "ValueError: no such width"}
    assert not peers.settled(row, tmp_path / "out.onnx")
    assert not peers.settled({"file": "out.onnx"}, tmp_path / "out.onnx")  # written down, but the file is gone
    (tmp_path / "out.onnx").touch()
    assert peers.settled({"file": "out.onnx"}, tmp_path / "out.onnx")


def test_a_net_of_any_depth_is_valid_and_grows():
    small, large = scaling.resnet(8), scaling.resnet(14)
    onnx.checker.check_model(small, full_check=True)
    assert common.macs(small) < common.macs(large)
    assert np.isfinite(open_session(small).run({"x": calibration(2)})[0]).all()
    with pytest.raises(AssertionError):
        scaling.resnet(9)


@pytest.mark.parametrize(("settings", "field"), [({}, "seconds"), ({"criterion": "nonsense"}, "refused")])
def test_a_child_tells_time_and_memory_or_why_not(settings, field, tmp_path):
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=calibration(16))
    row = child.run(RESNET, 0.5, samples, tmp_path / "out.onnx", settings)
    assert field in row
    if field == "seconds":
        assert row["seconds"] > 0 and row["peak_mib"] > row["imports_mib"] > 1
        assert (tmp_path / "out.onnx").is_file()


def test_a_library_that_is_missing_or_a_network_that_cannot_be_exported_is_a_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm/__init__.py").write_text("raise ImportError('no such thing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["exporters.py", "--libraries", "timm"])
    assert exporters.main() == 0
    assert "timm: skipped: ImportError: no such thing" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["exporters.py", "--libraries", "timm", "--names", "some_net"])
    assert exporters.main() == 0
    out = capsys.readouterr().out
    assert "| timm | some_net | not exported |" in out and "timm: 1 not exported; 0 reached" in out


def test_the_picture_of_the_trade_off_shows_the_published_tables():
    text = tradeoff.FIGURES.read_text(encoding="utf-8")
    nets = tradeoff.tables(text)
    assert len(nets) == 3 and all(name.split()[0] in tradeoff.originals(text) for name in nets)
    for shares, rows in nets.values():
        assert shares == [50, 65, 80, 90] and "onnxprune" in rows and len(rows) <= len(tradeoff.LOOKS)
        assert all(len(values) == 4 and all(0 < v < 100 for v in values) for values in rows.values())
    panels = tradeoff.draw(text).axes
    assert [ax.get_title() for ax in panels] == list(nets)
    shown = (tradeoff.FIGURES.parent / "tradeoff.svg").read_text(encoding="utf-8")
    assert all(name in shown for name in (*nets, "Torch-Pruning L2", "onnxprune", "MACs removed"))
