"""One row per kind of bad file, then the good ones."""

from __future__ import annotations

import os
import resource
import time

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxprune.errors import FileError, ModelError
from onnxprune.files import sandbox
from onnxprune.files.external import external_files
from onnxprune.files.read import check_model, read_model
from onnxprune.runtime import install
from onnxprune.runtime.child import Caps
from tests.files.models import changed, conv, external, set_weight, weight


def dims(*values):
    def edit(model):
        weight(model).dims[:] = values

    return edit


def attribute(name, value):
    return lambda m: m.graph.node[0].attribute.append(helper.make_attribute(name, value))


def rename(kind, at, name):
    return lambda m: getattr(m.graph.node[at], kind).__setitem__(0, name)


def wrong_field(model):
    weight(model).ClearField("raw_data")
    weight(model).int32_data[:] = range(12)


BYTES = conv().SerializeToString()
BYTES_EXTERNAL = changed(external("w.data")).SerializeToString()
IF = """<ir_version: 8, opset_import: ["": 17]>
net (bool p, float[4] x) => (float[4] y) {
    y = If (p) <then_branch = yes () => (float[4] t) { t = Relu (x) },
                else_branch = no () => (float[4] e) { e = Neg (x) }>
}"""


def nested(depth: int) -> ModelProto:
    """If in If in If."""
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    leaf = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "leaf", [], out)
    graph = leaf
    for _ in range(depth):
        node = helper.make_node("If", ["p"], ["y"], then_branch=graph, else_branch=leaf)
        graph = helper.make_graph([node], "branch", [], out)
    for name, kind, shape in (("p", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, [4])):
        graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def deeper_than_protobuf() -> bytes:
    """Subgraphs in a hundred layers, which no library builds but a file can hold."""
    data = b""
    # an attribute's graph, a node's attribute, a graph's node; last the model's graph
    for tag in [0x32, 0x2A, 0x0A] * 100 + [0x3A]:
        length, size = len(data), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        data = bytes([tag]) + size + bytes([length]) + data
    return ModelProto(ir_version=8).SerializeToString() + data


def functions(*bodies: str, call: str) -> ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 17, "local": 1]>
        net (float[1, 3] x) => (float[1, 3] y) {{ y = local.{call} (x) }}"""
    for name, body in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", bodies, strict=False):
        text += f'\n<domain: "local", opset_import: ["": 17, "local": 1]> {name} (a) => (b) {{ {body} }}'
    return parser.parse_model(text)


LAUGHS = functions(
    "b = Relu (a)",
    *(f"c = local.{f} (a)  b = local.{f} (c)" for f in "ABCDEFGHIJKLMNOPQRSTUVWXY"),
    call="Z",
)
DOUBLES = functions(
    "b = Relu (a)",
    *(f"c = local.{f} (a)  b = local.{f} (c)" for f in "ABCDEFGHIJKLMNOP"),
    call="Q",
)


def branching(depth: int) -> ModelProto:
    """An If inside of both branches of another, and so on."""

    def branch(depth: int, path: str) -> onnx.GraphProto:
        ends = [helper.make_tensor_value_info(f"n{path}", TensorProto.FLOAT, [2])]
        return helper.make_graph([inside(depth, path)], "branch", [], ends)

    def inside(depth: int, path: str) -> onnx.NodeProto:
        if not depth:
            return helper.make_node("Neg", ["x"], [f"n{path}"])
        then, other = (branch(depth - 1, path + way) for way in "te")
        return helper.make_node("If", ["c"], [f"n{path}"], then_branch=then, else_branch=other)

    ends = [helper.make_tensor_value_info(n, t, s) for n, t, s in (("x", 1, [2]), ("c", 9, []), ("n", 1, [2]))]
    graph = helper.make_graph([inside(depth, "")], "net", ends[:2], ends[2:])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def ring(length: int, behind: int = 0) -> ModelProto:
    """Nodes that wait for one another in a circle, and some that wait for these."""
    nodes = [helper.make_node("Relu", [f"c{(k + 1) % length}"], [f"c{k}"]) for k in range(length)]
    nodes += [helper.make_node("Relu", [f"c{k - 1}"], [f"c{k}"]) for k in range(length, length + behind)]
    port = helper.make_tensor_value_info("c0", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "ring", [], [port])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


FILL = """<ir_version: 8, opset_import: ["": 17]>
net (float[1] x) => (float[M] y) <int64[1] shape = {%s}> {
    z = ConstantOfShape (shape)
    y = Add (z, x)
}"""
COMPUTED_FILL = """<ir_version: 8, opset_import: ["": 17]>
net (float[1] x) => (float[M] y) <int64[2] parts = {30000, 30000}> {
    shape = ReduceProd (parts)
    z = ConstantOfShape (shape)
    y = Add (z, x)
}"""
RANGE = """<ir_version: 8, opset_import: ["": 17]>
net (int64[1] x) => (int64[M] y) <int64 a = {0}, int64 b = {4611686018427387904}, int64 c = {1}> {
    z = Range (a, b, c)
    y = Add (z, x)
}"""


def ports(*shape):
    def edit(model):
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))

    return edit


def set_type(port, kind):
    port.tensor_type.elem_type = kind


def refers(model):
    """An attribute that is one of a function's."""
    node = (model.graph if isinstance(model, ModelProto) else model).node[0]
    if not node.attribute:
        node.op_type = "LeakyRelu"
        node.attribute.append(helper.make_attribute("alpha", 0.5))
    node.attribute[0].ref_attr_name = "k"


def in_body(edit):
    model = parser.parse_model(IF)
    edit(model.graph.node[0].attribute[0].g)
    return model


# what it is, the file (bytes or a model), what the message says
def reads_nothing(model):
    """An operator of ONNX Runtime's own, which ONNX's checker does not know."""
    node = model.graph.node[1]
    node.op_type, node.domain = "QuickGelu", "com.microsoft"
    node.ClearField("input")
    model.opset_import.add(domain="com.microsoft", version=1)


BAD = [
    ("empty", b"", "is empty"),
    ("truncated", BYTES[: len(BYTES) // 2], "cannot be decoded"),
    ("random", np.random.default_rng(1).bytes(4096), "cannot be decoded"),
    ("html", b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ("zip", b"PK\x03\x04" + bytes(100), "zip archive"),
    ("no graph", ModelProto(ir_version=8).SerializeToString(), "no graph"),
    ("duplicate output", changed(rename("output", 1, "a")), "output 'a' of node 'second' (Relu)"),
    ("output is an input", changed(rename("output", 1, "x")), "an input or initializer"),
    (
        "duplicate initializer",
        changed(lambda m: m.graph.initializer.append(weight(m))),
        "'w' is stored twice",
    ),
    ("duplicate input", changed(lambda m: m.graph.input.append(m.graph.input[0])), "'x' is declared twice"),
    ("missing initializer", changed(lambda m: m.graph.initializer.pop(0)), "reads 'w', which no node"),
    ("missing output", changed(lambda m: m.graph.output.add(name="q")), "output 'q' is made by no node"),
    ("cycle", changed(rename("input", 0, "y")), "cycle through node 'first' (Conv)"),
    ("self cycle", changed(rename("input", 1, "b")), "cycle through node 'second' (Relu);"),
    ("short data", changed(dims(8, 3, 1, 1)), "'w' has 48 bytes of data, but shape [8, 3, 1, 1] takes 96"),
    ("no data", changed(lambda m: weight(m).ClearField("raw_data")), "'w' has 0 values"),
    ("huge dim", changed(dims(2**40)), "'w' has a dimension above"),
    ("overflow", changed(dims(2**31 - 1, 2**31 - 1, 2**31 - 1)), "size overflows"),
    ("negative dim", changed(dims(-4, 3, 1, 1)), "'w' has a negative dimension"),
    (
        "zero channels",
        changed(dims(0, 3, 1, 1), lambda m: setattr(weight(m), "raw_data", b"")),
        "zero channels",
    ),
    ("impossible input", changed(ports(1, 2**40, 8, 8)), "input 'x' has the impossible shape"),
    ("nan", changed(set_weight(np.nan)), "tensor 'w' has NaN"),
    ("inf", changed(set_weight(np.inf)), "tensor 'w', read by node 'first' (Conv), has Inf"),
    ("unknown dtype", changed(lambda m: setattr(weight(m), "data_type", 99)), "unknown data type 99"),
    ("undefined dtype", changed(lambda m: setattr(weight(m), "data_type", 0)), "unknown data type 0"),
    (
        "unknown type of an input",
        changed(lambda m: set_type(m.graph.input[0].type, 99)),
        "input 'x' has the unknown data type 99",
    ),
    (
        "unknown type of an output",
        changed(lambda m: set_type(m.graph.output[0].type, 99)),
        "output 'y' has the unknown data type 99",
    ),
    (
        "unknown type in between",
        changed(lambda m: set_type(m.graph.value_info.add(name="a").type, -1)),
        "tensor 'a' has the unknown data type -1",
    ),
    (
        "unknown type in a sequence",
        changed(lambda m: set_type(m.graph.value_info.add(name="a").type.sequence_type.elem_type, 77)),
        "tensor 'a' has the unknown data type 77",
    ),
    (
        "unknown type in a map",
        changed(lambda m: set_type(m.graph.value_info.add(name="a").type.map_type.value_type, 77)),
        "tensor 'a' has the unknown data type 77",
    ),
    ("unknown type in a body", in_body(lambda b: set_type(b.output[0].type, 99)), "has the unknown data type 99"),
    (
        "attribute of no function",
        changed(refers),
        "node 'first' (Conv) takes its 'kernel_shape' from attribute 'k' of a function",
    ),
    ("attribute of no function, in a body", in_body(refers), "takes its 'alpha' from attribute 'k' of a function"),
    ("stride 0", changed(attribute("strides", [0, 1])), "node 'first' (Conv) has strides [0, 1]"),
    ("group 0", changed(attribute("group", 0)), "node 'first' (Conv) has group 0"),
    ("groups", changed(attribute("group", 3)), "into 3 groups"),
    ("no outputs", changed(lambda m: m.graph.ClearField("output")), "has no outputs"),
    ("reads nothing", changed(reads_nothing), "(QuickGelu) has no input"),
    ("newer ir", changed(lambda m: setattr(m, "ir_version", 999)), "IR version 999"),
    ("newer opset", changed(lambda m: setattr(m.opset_import[0], "version", 999)), "opset 999"),
    ("no ir", changed(lambda m: m.ClearField("ir_version")), "no IR version"),
    ("no opset", changed(lambda m: m.ClearField("opset_import")), "no opset"),
    ("unknown op", changed(lambda m: setattr(m.graph.node[1], "op_type", "Frob")), "Frob"),
    ("external ../", changed(external("../w.data")), "outside the model's folder"),
    ("external a/../..", changed(external("a/../../w.data")), "outside the model's folder"),
    ("external absolute", changed(external("/etc/hostname")), "an absolute path"),
    ("external drive", changed(external("C:\\w.data")), "an absolute path"),
    ("external symlink", changed(external("symbolic.data")), "symbolic link"),
    ("external linked folder", changed(external("linked/w.data")), "symbolic link"),
    ("external hard link", changed(external("hard.data")), "hard link"),
    ("external pipe", changed(external("pipe.data")), "not a regular file"),
    ("external folder", changed(external("folder")), "not a regular file"),
    ("external missing", changed(external("nowhere.data")), "is missing"),
    ("external unnamed", changed(external("")), "names no external file"),
    ("external short", changed(external("short.data")), "which has 10"),
    ("external negative offset", changed(external(offset=-4)), "offset '-4'"),
    ("external huge length", changed(external(length=2**60)), "which has 48"),
    ("external huge offset", changed(external(offset=2**62)), "which has 48"),
    ("external wrong length", changed(external(length=8)), "takes 48 bytes, its external data has 8"),
    ("external not a number", changed(external(offset="1e3")), "offset '1e3'"),
    ("external not text", BYTES_EXTERNAL.replace(b"w.data", b"\xff.data"), "names no external file"),
    ("tensor name not text", BYTES.replace(b"\x01w", b"\x01\xff"), "not UTF-8 text"),
    ("output name not text", BYTES.replace(b"\x01a", b"\x01\xff"), "not UTF-8 text"),
    ("op type not text", BYTES.replace(b"Relu", b"Rel\xff"), "not UTF-8 text"),
    ("data in the wrong field", changed(wrong_field), "'w' has 0 values"),
    ("nested if", nested(20), "nested more than 16 deep"),
    ("deeper than protobuf", deeper_than_protobuf(), "cannot be decoded"),
    ("recursion", functions("c = Relu (a)  b = local.A (c)", call="A"), "function 'A' calls 'A'"),
    ("mutual recursion", functions("b = local.B (a)", "b = local.A (a)", call="A"), "calls '"),
    ("function fan-out", LAUGHS, "more than 1,000,000 nodes"),
    ("fill bomb", parser.parse_model(FILL % 2**40), "would make a tensor of 4,398,046,511,104 bytes"),
    ("computed fill bomb", parser.parse_model(COMPUTED_FILL), "of memory"),
    ("range bomb", parser.parse_model(RANGE), "would make a tensor"),
    ("function doubling", DOUBLES, "its functions grow 34 nodes to 65,536; simplify"),
    ("branch doubling", branching(11), "more than 1,000 subgraphs"),
    ("rank", changed(dims(*[1] * 40)), "'w' has 40 axes"),
]


@pytest.fixture
def folder(tmp_path):
    """A folder with everything that external data may wrongly point at."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "folder").mkdir()
    good = numpy_helper.to_array(conv().graph.initializer[0]).tobytes()
    (tmp_path / "w.data").write_bytes(good)
    (inside / "w.data").write_bytes(good)
    (inside / "short.data").write_bytes(good[:10])
    (inside / "symbolic.data").symlink_to("w.data")
    (inside / "linked").symlink_to(tmp_path)
    os.link(tmp_path / "w.data", inside / "hard.data")
    os.mkfifo(inside / "pipe.data")
    return inside


@pytest.mark.parametrize(("content", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_file(folder, content, says):
    path = folder / "model.onnx"
    data = content if isinstance(content, bytes) else content.SerializeToString()
    path.write_bytes(data)
    before = sorted(os.listdir(folder))
    with pytest.raises(ModelError) as caught:
        read_model(path)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert says in message
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert path.read_bytes() == data and sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("name", ["nowhere.onnx", "folder", "pipe.data", "nul\0byte"])
def test_unreadable_file(folder, name):
    with pytest.raises(FileError) as caught:
        read_model(folder / name)
    assert caught.value.exit_code == 7 and "\n" not in str(caught.value)


def test_a_message_cannot_forge_a_line(tmp_path):
    model = changed(rename("input", 1, "a\nall is well\x1b[31m"))
    with pytest.raises(ModelError) as caught:
        check_model(model, name="two\nlines")
    assert str(caught.value).isprintable()


# ------------------------------------------------------------------------------------------- good files


def test_a_sound_file_is_read_as_it_is(tmp_path):
    model = conv()
    model.metadata_props.add(key="note", value="kept")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert read_model(tmp_path / "m.onnx") == model


def test_an_ordinary_model_starts_no_process(monkeypatch):
    monkeypatch.setattr(sandbox, "in_child", lambda *_: pytest.fail("a child process"))
    model = conv()
    assert check_model(model) is model


def test_nodes_out_of_order_are_sorted_and_the_caller_keeps_his_model():
    model = conv()
    model.graph.node.reverse()
    before = model.SerializeToString()
    fixed = check_model(model)
    assert [n.name for n in fixed.graph.node] == ["first", "second", "third"]
    assert model.SerializeToString() == before


def test_sorting_is_stable_and_sees_what_subgraphs_read():
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        net (bool p, float[4] x) => (float[4] y) {
            [if] y = If (p) <then_branch = yes () => (float[4] t) { t = Relu (late) },
                             else_branch = no () => (float[4] e) { e = Neg (x) }>
            [one] u = Abs (x)
            [two] late = Neg (x)
        }""")
    assert [n.name for n in check_model(model).graph.node] == ["one", "two", "if"]


def test_sorting_takes_the_lowest_node_that_may_go():
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        net (float[4] x) => (float[4] r, float[4] q) {
            [n0] r = Abs (b)  [n1] q = Abs (c)  [n2] c = Neg (x)  [n3] b = Neg (x)
        }""")
    assert [n.name for n in check_model(model).graph.node] == ["n2", "n1", "n3", "n0"]


def test_a_subgraph_must_not_read_what_nobody_makes():
    model = parser.parse_model(IF.replace("Neg (x)", "Neg (nothing)"))
    with pytest.raises(ModelError, match="'nothing'"):
        check_model(model)


def test_subgraphs_pass_through_the_child():
    assert check_model(parser.parse_model(IF)).graph.node[0].op_type == "If"


def test_functions_are_inlined_and_the_rest_stays():
    model = functions("b = Relu (a)", "c = local.A (a)  b = local.A (c)", call="B")
    model.metadata_props.add(key="note", value="kept")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "spare"))
    flat = check_model(model)
    assert [n.op_type for n in flat.graph.node] == ["Relu", "Relu"] and not flat.functions
    assert [t.name for t in flat.graph.initializer] == ["spare"] and len(flat.graph.input) == 1
    assert (flat.ir_version, flat.metadata_props[0].value) == (8, "kept")
    assert len(model.functions) == 2


def test_external_data_is_loaded(folder):
    (folder / "m.onnx").write_bytes(changed(external("w.data", offset=0, length=48)).SerializeToString())
    assert read_model(folder / "m.onnx") == conv()
    assert external_files(folder / "m.onnx") == (folder / "w.data",)
    with pytest.raises(ModelError, match="still in an external file"):
        check_model(onnx.load(folder / "m.onnx", load_external_data=False))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("y = Where (m, x, c)", -np.inf),
        ("y = Max (x, c)", -np.inf),
        ("y = Add (x, c)", -np.inf),  # a mask
    ],
)
def test_infinities_that_mean_something(text, value):
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[2] x, bool[2] m) => (float[2] y) {{ {text} }}""")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, value], np.float32), "c"))
    assert check_model(model) is model


def test_a_custom_operator_is_no_fault():
    model = changed(
        lambda m: setattr(m.graph.node[1], "domain", "vendor"),
        lambda m: m.opset_import.append(helper.make_opsetid("vendor", 1)),
    )
    assert check_model(model) is model


def test_a_newer_opset_than_onnxruntime_runs(monkeypatch):
    monkeypatch.setattr(install, "refusal", lambda ir, opset: f"no opset {opset}")
    with pytest.raises(ModelError, match="no opset 22; upgrade onnxruntime"):
        check_model(changed(lambda m: setattr(m.opset_import[0], "version", 22)))


def test_a_child_that_hangs_is_killed(monkeypatch):
    monkeypatch.setitem(sandbox._JOBS, "check", (lambda *_: time.sleep(60), "checking its subgraphs"))
    monkeypatch.setattr(sandbox, "CAPS", Caps(seconds=0.2))
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"more than 0\.2 s"):
        check_model(parser.parse_model(IF))
    assert time.monotonic() - start < 5


def test_a_child_that_crashes_is_reported(monkeypatch):
    monkeypatch.setitem(sandbox._JOBS, "check", (lambda *_: os.abort(), "checking its subgraphs"))
    with pytest.raises(ModelError, match="checking its subgraphs crashed"):
        check_model(parser.parse_model(IF))


@pytest.mark.parametrize(("length", "behind"), [(60_000, 0), (2, 60_000), (30_000, 30_000)])
def test_a_long_cycle_in_no_time(length, behind):
    model, begin = ring(length, behind), time.process_time()
    with pytest.raises(ModelError, match=r"cycle through node 'c0' \(Relu\), node 'c1' \(Relu\)"):
        check_model(model)
    assert time.process_time() - begin < 8  # a second on a quiet machine


def test_many_branches_in_no_time():
    model, begin = branching(13), time.process_time()
    with pytest.raises(ModelError, match="subgraphs"):
        check_model(model)
    assert time.process_time() - begin < 3


def test_functions_may_grow_to_something():
    model = functions("b = Relu (a)", *(f"c = local.{f} (a)  b = local.{f} (c)" for f in "ABCDEFGH"), call="I")
    assert len(check_model(model).graph.node) == 256


@pytest.mark.skipif(not hasattr(os, "ftruncate"), reason="needs files with holes")
def test_a_file_of_holes_is_not_read(tmp_path):
    """It takes nothing on the disk, and would take all memory."""
    with open(tmp_path / "w.data", "wb") as file:
        file.truncate(1 << 36)
    if os.stat(tmp_path / "w.data").st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no holes")
    big = changed(external("w.data", offset=0, length=4 * 2**32), dims(2**16, 2**16, 1, 1))
    (tmp_path / "m.onnx").write_bytes(big.SerializeToString())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=r"external file 'w.data' is nearly empty"):
        read_model(tmp_path / "m.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    small = changed(external("w.data", offset=0, length=48))
    (tmp_path / "s.onnx").write_bytes(small.SerializeToString())
    assert not numpy_helper.to_array(read_model(tmp_path / "s.onnx").graph.initializer[0]).any()


@pytest.mark.slow
def test_ten_thousand_nodes_backwards_in_no_time():
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(10_000)]
    port = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("t0", "t10000")]
    graph = helper.make_graph(nodes[::-1], "long", port[:1], port[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    start = time.process_time()
    fixed = check_model(model)
    assert time.process_time() - start < 5  # half a second on a quiet machine
    assert [n.input[0] for n in fixed.graph.node[:3]] == ["t0", "t1", "t2"]
