"""The table of operators is whole: what any other table does something for has a line, and a line says all it must."""

import onnx
import pytest
from onnx import helper

from onnxprune.channels import rules
from onnxprune.channels.rules import registry
from onnxprune.channels.size_rules import SIZE_RULES, size_rule_of
from onnxprune.graph import evaluate, macs, operators
from onnxprune.measure import designs
from onnxprune.protobuf.nodes import WITH_BODIES

WEIGHTED = list(operators.lines(lambda line: line.weighted))


def ids(line):
    return f"{line.domain}.{line.name}".lstrip(".")


def test_every_entry_of_another_table_has_a_line():
    lines = operators.TABLE.keys()
    assert lines >= registry.RULES.keys() | SIZE_RULES.keys() | designs.MAKERS.keys()
    assert {name for _, name in lines} >= set(evaluate.TABLE)
    assert registry.FAMILIES.keys() == {line.family for line in operators.lines()} - {""}


def test_what_can_be_trained_has_a_line():
    train = pytest.importorskip("onnxprune.train.operators")
    assert operators.TABLE.keys() >= train.OPERATORS.keys()


@pytest.mark.parametrize("line", WEIGHTED, ids=ids)
def test_a_weighted_operator_says_all_about_its_weight(line):
    assert rules.rule_of(line), "what becomes of its channels?"
    assert (designs.maker_of(line) is None) == bool(line.unfit), "a design, or the reason why there is none"
    assert line.macs is not None and not line.uncounted
    assert line.product is not None or line.unfit
    if line.product is not None:
        product = line.product
        assert {product.writes, product.reads} == {0, 1} or line.recurrent
        sizes = {0: (2, 3, 4, 4), product.weight: (5, 3, 1, 1), 2: (5, 3, 1, 1), macs.OUT: (2, 5, 4, 4)}
        call = macs.Call(helper.make_node(line.name, ["x"], ["y"], equation="nc,dc->nd"), sizes.get)
        assert line.channels is not None
        assert all(macs.volume(part, sizes.get, lambda k: None) > 0 for part in line.macs(call))
        assert product.floats or line.zero_points.keys() == {0, product.weight}
        assert not line.layer or product.weight in line.learned


def test_what_spells_sizes_has_a_rule_for_them():
    assert all(size_rule_of(line) for line in operators.lines(lambda line: line.spells))


def test_bodies_are_those_that_protobuf_looks_for():
    assert {line.name for line in operators.lines() if line.bodies} == WITH_BODIES


def test_facts_agree():
    for line in operators.lines():
        assert not line.orders or line.decides, line
        assert not line.windowed or line.kernel is not None or "pool" in line.name.lower(), line
        assert line.kernel is None or line.product is None or line.kernel == line.product.weight, line
        assert not line.slopes or line.scales, line
        assert not line.dequantizes or line.quantizer, line
        assert line.domain not in ("ai.onnx",), line
        assert not (line.macs and line.uncounted), line


def test_names_are_operators():
    """Every line is about an operator that ONNX has, or one of another domain."""
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    later = {
        "CumProd",
        "Swish",
        "Attention",
        "RotaryEmbedding",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "TensorScatter",
        "SwiGLU",
        "BitCast",
    }
    assert {name for domain, name in operators.TABLE if not domain} <= known | later


def test_an_operator_without_a_line_is_unknown():
    node = helper.make_node("Nonesuch", ["x"], ["y"])
    assert operators.of(node) is operators.UNKNOWN
    assert operators.of(helper.make_node("Relu", ["x"], ["y"], domain="com.acme")) is operators.UNKNOWN
    assert operators.of(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")) is operators.named("Relu")


@pytest.mark.parametrize(
    ("enter", "error"),
    [
        (lambda: operators.op("Relu", operators.UNARY), ValueError),
        (lambda: operators.op("Nonesuch", "elementwize"), TypeError),
        (lambda: rules.registry.rule("Nonesuch")(print), LookupError),
        (lambda: designs.design("Relu")(print), LookupError),
    ],
    ids=["twice", "no such fact", "rule without a line", "design without a weight"],
)
def test_a_bad_entry_is_refused_at_once(enter, error):
    with pytest.raises(error):
        enter()
