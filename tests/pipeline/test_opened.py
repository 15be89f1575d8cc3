"""A model opened: with the sizes it takes, found where nobody gives them; in the batch it takes; and left untouched."""

import numpy as np
import onnx
import pytest

from onnxprune import api
from onnxprune.errors import CalibrationError, ModelError, UsageError
from onnxprune.graph.rehearsal import Rehearsal
from onnxprune.runtime import ports
from onnxprune.runtime.child import Stopped
from tests.channels import surgery

PICTURE = "(float[N,3,H,W] x) => (float[] y) <float[4,3,3,3] w, float[2,4,1,1] v> { h = Conv<strides=[8,8]>(x, w) y = Conv(h, v) }"


def fitting(high, wide):
    """A net that runs on pictures of that size alone: a Reshape says how many numbers there are."""
    text = f"""(float[N,3,H,W] x) => (float[] y) <float[4,3,1,1] w, int64[2] s = {{-1, {3 * high * wide}}}, float[2,{3 * high * wide}] v,
        int64[4] o = {{0, 3, {high}, {wide}}}> {{ r = Reshape(x, o) f = Reshape(r, s) h = Gemm<transB=1>(f, v) y = Relu(h) }}"""
    return surgery.model_of(text)


def sizes(model, **given):
    return api.open_model(model, **given).feeds["x"].shape


ANY = [
    ("a picture", PICTURE, (1, 3, 224, 224)),
    ("channels last", "(float[N,H,W,3] x) => (float[] y) { y = Relu(x) }", (1, 224, 224, 3)),
    ("tokens", "(float[N,L] x) => (float[] y) { y = Relu(x) }", (1, 224)),
    ("one side fixed", "(float[N,3,H,64] x) => (float[] y) { y = Relu(x) }", (1, 3, 224, 64)),
    ("all fixed", "(float[2,3,5,7] x) => (float[] y) { y = Relu(x) }", (2, 3, 5, 7)),
]


@pytest.mark.parametrize(("name", "text", "shape"), ANY, ids=[r[0] for r in ANY])
def test_sizes_that_nobody_says_are_the_usual_ones(name, text, shape):
    assert sizes(surgery.model_of(text)) == shape


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (32, 32), (512, 512), (48, 320), (32, 100)])
def test_other_usual_sizes_are_tried_where_those_do_not_fit(size):
    assert sizes(fitting(*size)) == (1, 3, *size)


def test_what_is_said_is_what_is_run():
    model = fitting(40, 24)
    assert sizes(model, input_shapes={"x": (1, 3, 40, 24)}) == (1, 3, 40, 24)
    assert sizes(model, calibration=np.zeros((5, 3, 40, 24), np.float32)) == (1, 3, 40, 24)
    assert sizes(surgery.model_of(PICTURE), calibration=np.zeros((5, 3, 40, 24), np.float32)) == (1, 3, 40, 24)
    given = {"input_shapes": {"x": (1, 3, 56, 56)}, "calibration": np.zeros((5, 3, 40, 24), np.float32)}
    assert sizes(surgery.model_of(PICTURE), **given) == (1, 3, 56, 56)


def test_other_batches_are_tried_as_far_as_they_may_be_fed(monkeypatch):
    """A sample of 200 MB that does not fit was repeated 64 times before the model was refused."""
    model = surgery.model_of("(float[N,5] x) => (float[] y) <int64[2] s = {7, -1}> { y = Reshape(x, s) }")
    tried = []
    monkeypatch.setattr(ports, "MAX_FED_BYTES", 100)
    monkeypatch.setattr(ports, "in_batch", lambda _, feeds, batch: tried.append(batch) or feeds)
    with pytest.raises(ModelError, match="cannot be run"):
        api.open_model(model)
    assert tried == [2, 4]


def test_what_does_not_fit_is_not_replaced_by_a_guess():
    with pytest.raises(ModelError, match=r"say what sizes it takes: --input-shape x=1,3,H,W"):
        sizes(fitting(40, 24))
    for given in ({"input_shapes": {"x": (1, 3, 96, 95)}}, {"calibration": np.zeros((5, 3, 96, 95), np.float32)}):
        with pytest.raises(ModelError) as error:
            sizes(fitting(96, 96), **given)
        assert "--input-shape" not in str(error.value)
    with pytest.raises(UsageError, match="no input"):
        sizes(fitting(96, 96), input_shapes={"z": (1, 3, 96, 96)})


SPELLED = """(float[B,6] x) => (float[] y) <float[6,8] w, float[8,3] v, int64[2] s = {BATCH, 8}>
    { h = Gemm(x, w) r = Reshape(h, s) y = Gemm(r, v) }"""
FREE = SPELLED.replace("BATCH", "0")


@pytest.mark.parametrize(
    ("text", "samples", "batch", "rows", "parts"),
    [
        (FREE, 0, None, 1, []),
        (FREE, 12, None, 1, [12]),
        (FREE.replace("[B,", "[4,"), 0, None, 4, []),
        (FREE.replace("[B,", "[4,"), 14, None, 4, [4, 4, 4]),
        (SPELLED.replace("BATCH", "1"), 0, None, 1, []),  # nobody asks for more than one
        (SPELLED.replace("BATCH", "1"), 12, 1, 1, [1] * 12),
        (SPELLED.replace("BATCH", "4"), 0, 4, 4, []),
        (SPELLED.replace("BATCH", "4"), 14, 4, 4, [4, 4, 4]),
        (SPELLED.replace("BATCH", "64"), 0, 64, 64, []),
    ],
)
def test_the_batch_is_what_the_graph_takes(text, samples, batch, rows, parts):
    data = np.random.default_rng(0).standard_normal((samples, 6)).astype(np.float32) if samples else None
    subject = api.open_model(surgery.model_of(text), calibration=data)
    assert subject.batch == batch and len(subject.feeds["x"]) == rows
    if samples:
        assert [len(b["x"]) for b in subject.calibration.batches(32)] == parts
        assert np.array_equal(subject.feeds["x"], data[:rows])


def test_a_batch_that_is_said_is_kept():
    model = surgery.model_of(SPELLED.replace("BATCH", "3"))  # no usual one: it has to be said
    with pytest.raises(ModelError):
        api.open_model(model)
    subject = api.open_model(model, input_shapes={"x": (3, 6)})
    assert subject.batch == 3 and subject.feeds["x"].shape == (3, 6)
    with pytest.raises(ModelError):
        api.open_model(surgery.model_of(SPELLED.replace("BATCH", "4")), input_shapes={"x": (2, 6)})
    with pytest.raises(CalibrationError, match="batches of 4 alone"):
        api.open_model(surgery.model_of(SPELLED.replace("BATCH", "4")), calibration=np.zeros((3, 6), np.float32))


def test_no_more_samples_than_asked_for():
    data = np.arange(60, dtype=np.float32).reshape(10, 6)
    subject = api.open_model(surgery.model_of(FREE), calibration=data, samples=4)
    assert len(subject.calibration) == 4 and api.open_model(surgery.model_of(FREE)).calibration is None


def test_the_model_is_left_as_it_was_and_known_by_its_content(tmp_path):
    text = "(float[N,6] x) => (float[] y) <float[6,8] w> { h = MatMul(x, w) d = RandomNormalLike(h) y = Add(h, d) }"
    model = surgery.model_of(text)
    before = model.SerializeToString()
    subject = api.open_model(model)
    assert model.SerializeToString() == before and subject.path is None
    onnx.save(model, tmp_path / "m.onnx")
    same = api.open_model(tmp_path / "m.onnx")
    assert same.path == tmp_path / "m.onnx" and same.digest == subject.digest
    assert api.open_model(surgery.model_of(text, seed=1)).digest != subject.digest
    assert [a.name for a in subject.model.graph.node[1].attribute] == ["seed"], "while it is worked on, runs agree"
    assert api.open_model(subject.model).digest != subject.digest, "the file's own, without the seed"


def test_statistics_are_cut_only_on_demand():
    text = """(float[N,3,4,4] x) => (float[] y) <float[8,3,1,1] w, float[2,8,1,1] v, int64[1] c = {1}>
        { h = Conv(x, w) m = ReduceMean(h, c) d = Sub(h, m) y = Conv(d, v) }"""
    plain, asked = (api.open_model(surgery.model_of(text), prune_statistics=p).channels for p in (False, True))
    assert not plain.groups and not plain.inexact and len(asked.groups) == 1 and asked.inexact


ONE_AT_A_TIME = {
    "a kernel that is an activation": "k = Conv(x, t) l = Conv(h, k) m = Conv(l, one) y = Relu(m)",
    "a squeeze": "q = GlobalAveragePool(h) s = Squeeze(q, ax) e = Expand(s, sh) y = Relu(e)",
    "a constant beside it": "c = Concat<axis=1>(h, k1) y = GlobalAveragePool(c)",
    "a constant in front": "c = Concat<axis=1>(k1, h) y = GlobalAveragePool(c)",
    "states of an LSTM": "p = GlobalAveragePool(h) q = Squeeze(p, a3) u = Transpose<perm=[2,0,1]>(q) y = LSTM<hidden_size=3>(u, lw, lr, , , i0, i0)",
    "a flatten of everything": "f = Flatten<axis=0>(h) y = MatMul(f, long)",
    "positions turned into channels": "t1 = Transpose<perm=[1,0,2,3]>(h) v2 = Conv(t1, one1) y = Relu(v2)",
}
AROUND = """(float[N,3,6,6] x) => (float[] y) <float[4,3,3,3] w, float[4,3,3,3] t, int64[1] ax = {{0}}, int64[3] sh = {{4,1,1}}, float[1,2,4,4] k1,
    int64[1] a3 = {{3}}, float[1,12,4] lw, float[1,12,3] lr, float[1,1,3] i0, float[64,2] long, float[3,1,1,1] one, float[3,1,1,1] one1>
    {{ h0 = Conv(x, w) h = Relu(h0) {} }}"""


@pytest.mark.parametrize("way", ONE_AT_A_TIME)
def test_a_graph_that_runs_with_one_sample_alone(way):
    """Whatever it is that fixes the batch; nothing that spells a size need be in it."""
    data = np.random.default_rng(0).standard_normal((12, 3, 6, 6)).astype(np.float32)
    subject = api.open_model(surgery.model_of(AROUND.format(ONE_AT_A_TIME[way])), calibration=data)
    assert subject.batch == 1 and all(len(b["x"]) == 1 for b in subject.calibration.batches(8))
    given = api.open_model(
        surgery.model_of(AROUND.format(ONE_AT_A_TIME[way])), calibration=data, input_shapes={"x": (1, 3, 6, 6)}
    )
    assert given.batch == 1


def test_an_input_of_one_sample_beside_one_of_any():
    text = """(float[N,3,6,6] x, float[1,2,4,4] z) => (float[] y) <float[4,3,3,3] w>
        { h = Conv(x, w) r = Relu(h) c = Concat<axis=1>(r, z) y = GlobalAveragePool(c) }"""
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32), "z": np.zeros((1, 2, 4, 4), np.float32)}] * 9
    subject = api.open_model(surgery.model_of(text), calibration=data)
    assert all(len(b["x"]) == 1 for b in subject.calibration.batches(8))


HINTED = {
    "lines of sound": ("(float[N,1,T] x) => (float[] y) <float[4,1,4000] w> { y = Conv(x, w) }", "--input-shape x=1,1,T"),
    "a strip": ("(float[N,1,H,W] x) => (float[] y) <float[4,1,16,3] w, int64[1] two = {2}> { a = Conv<strides=[16,1]>(x, w) y = Squeeze(a, two) }",
                "--input-shape x=1,1,H,W"),
    "tokens": ("(float[N,L] x) => (float[] y) <float[77,4] w> { y = MatMul(x, w) }", "--input-shape x=1,L"),
    "two": ("(float[N,3,h,w] z, float[N,5] k, float[N,3,g,v] x) => (float[] y) <float[1,5] u> { a = Conv(x, z) m = Add(k, u) b = ReduceSum(m) y = Conv(a, b) }",
            "--input-shape z=1,3,h,w --input-shape x=1,3,g,v"),
}  # fmt: skip


@pytest.mark.parametrize("name", HINTED)
def test_the_hint_fits_the_inputs(name):
    text, hint = HINTED[name]
    with pytest.raises(ModelError) as error:
        api.open_model(surgery.model_of(text))
    assert str(error.value).endswith(f"say what sizes it takes: {hint}")


@pytest.mark.parametrize("runs", [1, 9])
def test_a_size_that_we_made_up_is_too_much(monkeypatch, runs):
    """It is not the file that is refused for it, and none larger is tried; sizes come before batches."""
    tried = []

    def observe(self, graph, feeds):
        tried.append(feeds["x"].shape)
        raise ModelError("model: no") if len(tried) <= runs else Stopped("model: its first run took more than 1 s")

    monkeypatch.setattr(Rehearsal, "observe", observe)
    with pytest.raises(Stopped, match="model: no; say what sizes it takes: --input-shape x=1,1,H,W"):
        api.open_model(surgery.model_of(HINTED["a strip"][0]))
    assert len(tried) == runs + 1 and (tried[-1][0] > 1) == (runs > 1)


TOO_LARGE = [
    ("one input", "(float[1,3,60000,60000] x) => (float[] y) { y = Relu(x) }", "its inputs take 43,200,000,000 bytes"),
    ("a batch", "(float[2147483647,3,8,8] x) => (float[] y) { y = Relu(x) }", "its inputs take"),
    ("all inputs", f"({', '.join(f'float[1,3,2000,2000] x{k}' for k in range(9))}) => (float[] y) {{ y = Sum(x0, x8) }}",
     "its inputs take 432,000,000 bytes, most of them 'x0'"),
    ("strings", "(string[100000000] x, float[2] z) => (float[] y) { y = Relu(z) }", "its inputs take"),
    ("many axes", f"(float[{','.join('1' * 40)}] x) => (float[] y) {{ y = Relu(x) }}", "input 'x' has 40 axes"),
    ("axes that are made", f"(float[2] x) => (float[] y) <int64[40] a = {{{','.join(map(str, range(40)))}}}> "
     "{ y = Unsqueeze(x, a) }", "tensor 'y' has more than 32 axes"),
    ("a long axis", "(float[1,8] x) => (float[] y) <int64[2] a = {1, 1000000}> { t = Tile(x, a) y = Relu(t) }",
     "tensor 't' has shape [1, 8000000], too long"),
    ("many long axes", "(float[1,64] x) => (float[] y) <int64[2] a = {1, 16000}> { t = Tile(x, a) r0 = Relu(t)"
     + " ".join(f"r{k + 1} = Relu(r{k})" for k in range(150)) + " y = Relu(r150) }", "too long to be analysed"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), [r[1:] for r in TOO_LARGE], ids=[r[0] for r in TOO_LARGE])
def test_what_is_too_large_to_look_at_is_refused_at_once(text, says):
    with pytest.raises(ModelError, match=r"^model: ") as caught:
        api.open_model(surgery.model_of(text))
    assert says in str(caught.value)


def test_what_is_trusted_may_be_large():
    text = "(float[1,8] x) => (float[] y) <int64[2] a = {1, 150000}> { t = Tile(x, a) y = Relu(t) }"
    with pytest.raises(ModelError, match="too long"):
        api.open_model(surgery.model_of(text))
    assert api.open_model(surgery.model_of(text), trusted=True).channels.shapes["t"] == (1, 1_200_000)


def test_what_is_said_of_outputs_is_checked_at_once_and_remembered():
    model = surgery.model_of("(float[N,3,8,8] x) => (float[N,5,8,8] y) <float[5,3,1,1] w> { y = Conv(x, w) }")
    subject = api.open_model(model, output_kind={"y": "class-map,axis=1"}, weight={"y": 2})
    assert subject.net.said.kinds["y"].kind == "class map" and subject.net.said.weights == {"y": 2}
    assert subject.asked["output_kind"] == {"y": "class-map,axis=1"} and subject.asked["weight"] == {"y": 2}
    for given, words in (
        ({"output_kind": {"z": "boxes"}}, "unknown output 'z'; choose from y"),
        ({"output_kind": {"y": "boxs"}}, "unknown kind of output 'boxs'; did you mean boxes"),
        ({"output_kind": {"y": "boxes,axes=1"}}, r"axis=K and parts=\S+ may follow a kind"),
        ({"weight": {"y": -1.0}}, "--weight y=-1.0 is no number from 0 up"),
        ({"weight": {"y": float("inf")}}, "no number from 0 up"),
        ({"output_kind": "boxes"}, "takes kinds by the names of outputs"),
    ):
        with pytest.raises(UsageError, match=words):
            api.open_model(model, **given)


WEIGHT = "(float[1,3,8,8] x) => (float[] y) <float[4,3,3,3] w, float[4,3,3,3] a, float[2,4,1,1] v> {{ {} h = Conv(x, t) y = Conv(h, v) }}"


@pytest.mark.parametrize(
    ("value", "how"),
    [
        (np.inf, "t = Identity(w)"),
        (3e38, "t = Mul(w, w)"),
        (0.0, "t = Div(a, w)"),
        (-1.0, "t = Sqrt(w)"),
        (1e30, "h1 = Cast<to=10>(w) t = Cast<to=1>(h1)"),
    ],
    ids=["stored", "too large", "by zero", "root", "narrow"],
)
def test_a_weight_that_is_worked_out_is_finite_too(value, how):
    model = surgery.model_of(WEIGHT.format(how))
    names = [t.name for t in model.graph.initializer]
    model.graph.initializer[names.index("w")].CopyFrom(
        onnx.numpy_helper.from_array(np.full((4, 3, 3, 3), value, np.float32), "w")
    )
    with pytest.raises(ModelError, match=r"tensor 't', read by node .* \(Conv\), has NaN or Inf"):
        api.open_model(model)
