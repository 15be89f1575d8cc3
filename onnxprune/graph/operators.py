"""The table of operators: one line an operator, with what is true of it.

What an operator is stands here and nowhere else. Whoever has to know asks a line (`of(node).decides`), or
`graph.layers` where attributes and constants of the node decide as well; after the analysis nobody asks for a name.
What *does* something for an operator is a function in a table of its own, entered under names that have a line here:
channels (`channels.rules`), sizes that are spelled out (`channels.size_rules`), numpy (`graph.evaluate`), least squares
(`measure.designs`), torch (`train.operators`). Families (`UNARY`, `BROADCAST`, …) share one function.

    a new element-wise operator    one line
    a new operator that multiplies one line with `macs`, or why nobody can count it (`uncounted`)
    a new operator with a weight   the same with a `product`, a rule for its channels, a design or (`unfit`) why not

An operator without a line is `UNKNOWN`: nothing is true of it, and its channels stay. `graph.facts` explains the facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnxprune.graph import macs
from onnxprune.graph.equations import Equation
from onnxprune.graph.facts import Facts, Operator, Product, facts
from onnxprune.protobuf.nodes import DEFAULT_DOMAINS

MICROSOFT = "com.microsoft"
BLOCKED = "com.microsoft.nchwc"
"""Convolutions in blocks of channels."""

UNKNOWN = Operator("", uncounted="it is not known to onnxprune")
"""What is known of an operator without a line."""
TABLE: dict[tuple[str, str], Operator] = {}
"""(domain, name) -> line."""


def named(name: str, domain: str = "") -> Operator:
    """The line of an operator; `UNKNOWN` where there is none."""
    return TABLE.get(("" if domain in DEFAULT_DOMAINS else domain, name), UNKNOWN)


def of(node: onnx.NodeProto) -> Operator:
    """The line of a node's operator; `UNKNOWN` where there is none."""
    domain = node.domain
    line = TABLE.get(("" if domain in DEFAULT_DOMAINS else domain, node.op_type), UNKNOWN)
    return line if line.varies is None else line.varies(line, node)


def lines(fact: Callable[[Operator], object] = lambda line: True) -> Iterator[Operator]:
    """The lines of which a fact is true."""
    return (line for line in TABLE.values() if fact(line))


def op(name: str, *true: str | Facts, domain: str = "", **more: Any) -> Operator:
    """Enter a line.

    Raises:
        TypeError: no such fact.
        ValueError: there is a line already.
    """
    if (domain, name) in TABLE:
        raise ValueError(f"{name} has a line already")
    line = TABLE[domain, name] = Operator(name, domain, **facts(*true, **more))
    return line


def plain(names: str, domain: str = "") -> None:
    """Enter lines that say no more than that nothing is multiplied."""
    for name in names.split():
        op(name, domain=domain)


# -- families: what their operators have in common ---------------------------------------------------------------

LINEAR, POSITIVE = facts(scales="linear"), facts(scales="positive")
KEEPS_CONSTANTS = facts(keeps_constants="everywhere")
POSITIVE_OUT, KEEPS_SIGN = facts(sign="always"), facts(sign="kept")
LAYOUT = facts("layout", LINEAR, KEEPS_CONSTANTS, KEEPS_SIGN)
ORDERS = facts("decides", "orders")
COUNTS = facts(ORDERS, "counts")

UNARY = facts("keeps_size", "aligned", "plain", family="unary")
"""Element by element, of one activation."""
BROADCAST = facts("aligned", "takes_constants", family="broadcast")
"""Element by element, of several that are broadcast."""
MIXING = facts("keeps_size", family="mixing")
"""What mixes the elements of an axis, which stays whole."""
POOL = facts("plain", family="pool")
REDUCTION = facts(sized_by=1, family="reduction")

LAYER = facts("sums", "plain", "takes_constants")
FUSED = "it is fused with what follows or precedes; prune the model as it was before ONNX Runtime's optimiser"
QUANTIZED = facts(unfit="its weight is quantized; prune the model before it is quantized")
RECURRENT = facts(
    "sums", "recurrent", channels=2, macs=macs.stepwise(lengths=4), product=Product(writes=1, reads=2, bias=3),
    learned=(1, 2, 3),
    unfit="it mixes its hidden state over time, so no single product gives its weights",
)  # fmt: skip


def conv(weight: int = 1, **more: Any) -> Facts:
    """A convolution by the operand `weight`."""
    product = Product(weight, kernel=True, **more)
    return facts("windowed", channels=1, kernel=weight, macs=macs.gathered(weight), product=product)


def matrix(weight: int = 1, **more: Any) -> Facts:
    """A product of what is read with a matrix, the operand `weight`."""
    return facts(macs=macs.contracted, product=Product(weight, **({"writes": 1, "reads": 0, "either": True} | more)))


def by_equation(line: Operator, node: onnx.NodeProto) -> Operator:
    """An Einsum that multiplies by a matrix in place is a layer; another has no weight that we know."""
    key = line.name, Equation.of(node)
    if key not in _EINSUMS:
        _EINSUMS[key] = _einsum(line, key[1])
    return _EINSUMS[key]


_EINSUMS: dict[tuple[str, Equation], Operator] = {}


def _einsum(line: Operator, equation: Equation) -> Operator:
    if equation.product is None or line.product is None:
        return replace(line, product=None, plain=False, unfit="it is an Einsum; write the product as a MatMul")
    how = equation.product
    product = replace(line.product, weight=how.weight, data=1 - how.weight, writes=how.writes, reads=how.reads)
    return replace(line, channels=how.axis, product=product)


# fmt: off
# -- element by element ------------------------------------------------------------------------------------------

op("Relu", UNARY, POSITIVE, clips="zero")
op("LeakyRelu", UNARY, POSITIVE)
op("ThresholdedRelu", UNARY)
op("Elu", UNARY)
op("Celu", UNARY)
op("Selu", UNARY)
op("Gelu", UNARY)
op("Gelu", UNARY, domain=MICROSOFT)
op("QuickGelu", UNARY, domain=MICROSOFT)
op("Swish", UNARY)
op("Mish", UNARY)
op("HardSwish", UNARY)
op("HardSigmoid", UNARY, POSITIVE_OUT)
op("Sigmoid", UNARY, POSITIVE_OUT, "probabilities")
op("Tanh", UNARY)
op("Softplus", UNARY, POSITIVE_OUT)
op("Softsign", UNARY)
op("Shrink", UNARY)
op("Erf", UNARY)
op("Exp", UNARY, POSITIVE_OUT, numpy=np.exp)
op("Log", UNARY, numpy=np.log)
op("Sqrt", UNARY, POSITIVE_OUT, numpy=np.sqrt)
op("Reciprocal", UNARY, numpy=np.reciprocal)
op("Abs", UNARY, POSITIVE_OUT, POSITIVE, numpy=np.abs)
op("Neg", UNARY, "negates", LINEAR, numpy=np.negative)
op("Sign", UNARY, "decides")
op("Floor", UNARY, "decides", numpy=np.floor)
op("Ceil", UNARY, "decides", numpy=np.ceil)
op("Round", UNARY, "decides")
op("Sin", UNARY, numpy=np.sin)
op("Cos", UNARY, numpy=np.cos)
op("Tan", UNARY)
op("Asin", UNARY)
op("Acos", UNARY)
op("Atan", UNARY)
op("Sinh", UNARY)
op("Cosh", UNARY)
op("Asinh", UNARY)
op("Acosh", UNARY)
op("Atanh", UNARY)
op("Not", UNARY, numpy=np.logical_not)
op("BitwiseNot", UNARY)
op("IsNaN", UNARY)
op("IsInf", UNARY, "bounds")
op("Clip", UNARY, "bounds", clips="given")
op("Cast", UNARY, "casts", KEEPS_SIGN, "decides", "bounds")
op("CastLike", "keeps_size", "bounds")
op("Identity", UNARY, LAYOUT, "hands_on", "bounds")
op("Dropout", UNARY, LAYOUT)

op("Add", BROADCAST, KEEPS_SIGN, "plain", "masks", arithmetic="+", learned=(0, 1), numpy=np.add)
op("Sub", BROADCAST, "plain", "masks", arithmetic="-", numpy=np.subtract)
op("Mul", BROADCAST, KEEPS_SIGN, "plain", arithmetic="*", learned=(0, 1), numpy=np.multiply)
op("Div", BROADCAST, KEEPS_SIGN, "plain", arithmetic="/")
op("Pow", BROADCAST)
op("Mod", BROADCAST)
op("Min", BROADCAST, KEEPS_SIGN, "bounds")
op("Max", BROADCAST, KEEPS_SIGN, "bounds")
op("Sum", BROADCAST, KEEPS_SIGN, LINEAR)
op("Mean", BROADCAST, KEEPS_SIGN)
op("PRelu", BROADCAST, POSITIVE, "slopes", "keeps_size", "plain", learned=(1,))
op("BiasGelu", BROADCAST, domain=MICROSOFT)
op("FastGelu", BROADCAST, domain=MICROSOFT)
op("Where", BROADCAST, "bounds", numpy=np.where)
op("Equal", BROADCAST, "decides", "bounds", numpy=np.equal)
op("Less", BROADCAST, "decides", "bounds", numpy=np.less)
op("LessOrEqual", BROADCAST, "decides", "bounds", numpy=np.less_equal)
op("Greater", BROADCAST, "decides", "bounds", numpy=np.greater)
op("GreaterOrEqual", BROADCAST, "decides", "bounds", numpy=np.greater_equal)
op("And", BROADCAST, numpy=np.logical_and)
op("Or", BROADCAST, numpy=np.logical_or)
op("Xor", BROADCAST, numpy=np.logical_xor)
op("BitShift", BROADCAST)
op("BitwiseAnd", BROADCAST)
op("BitwiseOr", BROADCAST)
op("BitwiseXor", BROADCAST)

# -- weights -----------------------------------------------------------------------------------------------------

op("Conv", LAYER, conv(bias=2), "reads_maps", learned=(1, 2))
op("ConvTranspose", LAYER, "windowed", "reads_maps", channels=1, kernel=1, learned=(1, 2),
   macs=macs.scattered(), product=Product(writes=1, reads=0, bias=2, kernel=True, transposed=True),
   unfit="it is a transposed convolution; its statistics are mended, its weight stays")
op("Gemm", LAYER, matrix(bias=2, turned="transB"), channels=1, learned=(1, 2))
op("MatMul", LAYER, matrix(), channels=-1, learned=(0, 1))
op("Einsum", LAYER, matrix(), macs=macs.einsum, channels=-1, learned=(0, 1), varies=by_equation)
op("LSTM", RECURRENT)
op("GRU", RECURRENT)
op("RNN", RECURRENT)
op("DeformConv", "sums", "windowed", kernel=1, macs=macs.gathered(), learned=(1, 3),
   unfit="its taps are moved by offsets")
op("FusedConv", "sums", "windowed", kernel=1, macs=macs.gathered(), learned=(1, 2), domain=MICROSOFT, unfit=FUSED)
op("FusedGemm", "sums", macs=macs.contracted, learned=(1, 2), domain=MICROSOFT, unfit=FUSED)
op("FusedMatMul", "sums", "takes_constants", macs=macs.contracted, learned=(0, 1), domain=MICROSOFT, unfit=FUSED)
op("TransposeMatMul", "sums", "takes_constants", macs=macs.contracted, learned=(0, 1), domain=MICROSOFT, unfit=FUSED)
op("ConvInteger", conv(floats=False), QUANTIZED, in_floats="Conv", zero_points={0: 2, 1: 3})
op("MatMulInteger", matrix(floats=False), QUANTIZED, "takes_constants", in_floats="MatMul", channels=-1,
   zero_points={0: 2, 1: 3})
op("QLinearConv", conv(3, bias=8, floats=False), QUANTIZED, zero_points={0: 2, 3: 5})
op("QLinearMatMul", matrix(3, floats=False), QUANTIZED, "takes_constants", channels=-1, zero_points={0: 2, 3: 5})
op("QGemm", matrix(3, bias=6, turned="transB", floats=False), QUANTIZED, channels=1, zero_points={0: 2, 3: 5},
   domain=MICROSOFT)
op("Attention", macs=macs.attention)
op("Attention", "sums", macs=macs.projecting(past=4), learned=(1, 2), domain=MICROSOFT,
   unfit="it mixes what its weight makes")
op("MultiHeadAttention", macs=macs.multi_head, domain=MICROSOFT)
op("CDist", macs=macs.contracted, domain=MICROSOFT)
op("RotaryEmbedding")
op("RotaryEmbedding", domain=MICROSOFT)

# what ONNX Runtime's optimiser writes; its channels are not followed
op("Conv", macs=macs.gathered(), domain=BLOCKED)
op("NhwcConv", macs=macs.gathered(), domain=MICROSOFT)
op("NhwcFusedConv", macs=macs.gathered(), domain=MICROSOFT)
op("QLinearConv", macs=macs.gathered(3), domain=MICROSOFT)
op("ConvTransposeWithDynamicPads", macs=macs.scattered(), domain=MICROSOFT)
op("GemmFastGelu", macs=macs.contracted, domain=MICROSOFT)
op("GemmFloat8", macs=macs.contracted, domain=MICROSOFT)
op("FusedMatMulActivation", macs=macs.contracted, domain=MICROSOFT)
op("DynamicQuantizeMatMul", macs=macs.contracted, domain=MICROSOFT)
op("MatMulIntegerToFloat", macs=macs.contracted, domain=MICROSOFT)
op("MatMulInteger16", macs=macs.contracted, domain=MICROSOFT)
op("MatMulNBits", macs=macs.contracted, domain=MICROSOFT)
op("MatMulBnb4", macs=macs.contracted, domain=MICROSOFT)
op("MatMulFpQ4", macs=macs.contracted, domain=MICROSOFT)
op("QOrderedMatMul", macs=macs.contracted, domain=MICROSOFT)
op("DynamicQuantizeLSTM", "recurrent", channels=2, macs=macs.stepwise(lengths=4), zero_points={1: 9, 2: 11},
   domain=MICROSOFT)
op("QAttention", macs=macs.projecting(past=8), domain=MICROSOFT)
op("GroupQueryAttention", macs=macs.grouped_query, domain=MICROSOFT)
op("DecoderMaskedMultiHeadAttention", macs=macs.one_step, domain=MICROSOFT)

# -- normalization, pooling, reduction ---------------------------------------------------------------------------

op("BatchNormalization", "keeps_size", "stored_statistics", "plain", channels=1, learned=(1, 2))
op("InstanceNormalization", "keeps_size", channels=1, learned=(1, 2))
op("GroupNormalization", "keeps_size", channels=1, learned=(1, 2))
op("LayerNormalization", MIXING, "aligned", "statistics", learned=(1, 2))
op("RMSNormalization", MIXING, "aligned", "statistics")
op("MeanVarianceNormalization", MIXING, "statistics")
op("LpNormalization", MIXING, skips_zeros="always")
op("SkipLayerNormalization", "statistics", domain=MICROSOFT)
op("SkipSimplifiedLayerNormalization", "statistics", domain=MICROSOFT)
op("LRN", "keeps_size")
op("Softmax", MIXING, POSITIVE_OUT, "probabilities")
op("LogSoftmax", MIXING, "probabilities")
op("Hardmax", MIXING, POSITIVE_OUT, "decides")
op("CumSum", MIXING)
op("CumProd", MIXING)

op("MaxPool", POOL, KEEPS_SIGN, "reads_maps", POSITIVE, KEEPS_CONSTANTS, "windowed")
op("AveragePool", POOL, KEEPS_SIGN, "reads_maps", LINEAR, "windowed", keeps_constants="inside")
op("LpPool", POOL, POSITIVE_OUT, "windowed")
op("GlobalMaxPool", POOL, KEEPS_SIGN, POSITIVE, KEEPS_CONSTANTS)
op("GlobalAveragePool", POOL, KEEPS_SIGN, "reads_maps", LINEAR, KEEPS_CONSTANTS)
op("GlobalLpPool", POOL, POSITIVE_OUT)
op("MaxUnpool", "counts", "windowed")
op("MaxRoiPool")
op("RoiAlign")

op("ReduceMean", REDUCTION, KEEPS_SIGN, "reads_maps", LINEAR, KEEPS_CONSTANTS, "statistics", skips_zeros="counted")
op("ReduceSum", REDUCTION, KEEPS_SIGN, LINEAR, skips_zeros="always")
op("ReduceMax", REDUCTION, KEEPS_SIGN, POSITIVE, KEEPS_CONSTANTS, skips_zeros="positive")
op("ReduceMin", REDUCTION, KEEPS_SIGN, skips_zeros="negative")
op("ReduceProd", REDUCTION)
op("ReduceL1", REDUCTION, POSITIVE_OUT, skips_zeros="always")
op("ReduceL2", REDUCTION, POSITIVE_OUT, skips_zeros="always")
op("ReduceSumSquare", REDUCTION, POSITIVE_OUT, skips_zeros="always")
op("ReduceLogSum", REDUCTION, skips_zeros="always")
op("ReduceLogSumExp", REDUCTION)
op("ArgMax", ORDERS)
op("ArgMin", ORDERS)
op("TopK", ORDERS, KEEPS_SIGN, sized_by=1)

# -- layout ------------------------------------------------------------------------------------------------------

op("Transpose", LAYOUT, "takes_constants")
op("Reshape", LAYOUT, "bounds", sized_by=1, spells=(1,))
op("Flatten", LAYOUT)
op("Squeeze", LAYOUT, "bounds", sized_by=1)
op("Unsqueeze", LAYOUT, "bounds", sized_by=1)
op("Concat", LAYOUT, "joins", "plain", "takes_constants", "bounds")
op("Split", LAYOUT, "spelled_axes", sized_by=1, spells=(1,))
op("Slice", LAYOUT, "cuts_out", "bounds", "spelled_axes", sized_by=1, spells=(1, 2, 3, 4))
op("Gather", LAYOUT, "takes_constants", "bounds", "spelled_axes", spells=(1,))
op("GatherElements", KEEPS_SIGN)
op("GatherND", KEEPS_SIGN)
op("Scatter", "bounds", "takes_constants")
op("ScatterElements", "bounds", "takes_constants")
op("ScatterND", "bounds", "takes_constants")
op("DepthToSpace", LAYOUT)
op("SpaceToDepth", LAYOUT)
op("Expand", LAYOUT, "takes_constants", "bounds", "spreads", sized_by=1, spells=(1,), grows="expand")
op("Tile", LAYOUT, "bounds", sized_by=1, spells=(1,), grows="tile")
op("Pad", LINEAR, KEEPS_SIGN, "fills", "bounds", sized_by=1, spells=(1, 3))
op("Resize", LINEAR, sized_by=1, spells=(3,))
op("Upsample", LINEAR, sized_by=1)
op("CenterCropPad", sized_by=1)
op("Trilu")
op("OneHot", sized_by=1)
op("Col2Im", sized_by=1)
op("GridSample", macs=macs.interpolated)
op("GridSample", macs=macs.interpolated, domain=MICROSOFT)
op("AffineGrid", sized_by=1)

# -- what makes tensors, and what counts -------------------------------------------------------------------------

op("Constant", "stores")
op("ConstantOfShape", "takes_constants", "bounds", "spreads", sized_by=0, spells=(0,), grows="fill")
op("Range", sized_by=0, grows="range")
op("Shape", "measures", "bounds")
op("Size", "measures")
op("RandomNormal", "random", sized_by=0)
op("RandomUniform", "random", sized_by=0)
op("RandomNormalLike", "random")
op("RandomUniformLike", "random")
op("Multinomial", "random")
op("Bernoulli", "random")
op("NonZero", COUNTS)
op("NonMaxSuppression", COUNTS)
op("Unique", COUNTS)
op("Unique", ORDERS, domain=MICROSOFT)
op("Compress", "counts")
op("BlackmanWindow", sized_by=0)
op("HammingWindow", sized_by=0)
op("HannWindow", sized_by=0)
op("MelWeightMatrix", sized_by=1)
op("DFT", sized_by=1, uncounted="it is a Fourier transform")
op("STFT", sized_by=1, uncounted="it is a Fourier transform")

# -- integers ----------------------------------------------------------------------------------------------------

op("QuantizeLinear", "quantizer", "takes_constants", "decides")
op("QuantizeLinear", "quantizer", "takes_constants", "decides", domain=MICROSOFT)
op("DequantizeLinear", "quantizer", "dequantizes", "takes_constants", zero_points={0: 2})
op("DequantizeLinear", "quantizer", "dequantizes", "takes_constants", domain=MICROSOFT, zero_points={0: 2})
op("DynamicQuantizeLinear", "decides", "chooses_scale")
op("QLinearAdd", "takes_constants", domain=MICROSOFT, zero_points={0: 2, 3: 5})
op("QLinearMul", "takes_constants", domain=MICROSOFT, zero_points={0: 2, 3: 5})
op("QLinearConcat", "takes_constants", domain=MICROSOFT)
op("QLinearSigmoid", domain=MICROSOFT)
op("QLinearLeakyRelu", domain=MICROSOFT)
op("QLinearAveragePool", domain=MICROSOFT)
op("QLinearGlobalAveragePool", domain=MICROSOFT)

# -- bodies and sequences ----------------------------------------------------------------------------------------

op("If", "bodies", "branches", "sequences", "bounds")
op("Loop", "bodies", "works", "sequences", "bounds")
op("Scan", "bodies", "works", "sequences")
op("SequenceMap", "bodies", "sequences")
op("SequenceConstruct", "sequences")
op("SequenceEmpty", "sequences")
op("SequenceInsert", "sequences")
op("SequenceErase", "sequences")
op("SplitToSequence", "sequences", sized_by=1)
op("Optional", "sequences")
op("OptionalGetElement", "sequences")
op("StringSplit", "sequences")

# -- no multiply-accumulates, and nothing else that we know ------------------------------------------------------

plain("""BitCast ConcatFromSequence EyeLike ImageDecoder NegativeLogLikelihoodLoss OptionalHasElement RegexFullMatch
   ReverseSequence SequenceAt SequenceLength SimplifiedLayerNormalization SoftmaxCrossEntropyLoss StringConcat
   StringNormalizer SwiGLU TensorScatter TfIdfVectorizer""")
plain("""BiasAdd BiasDropout BiasSoftmax BiasSplitGelu BitmaskBiasDropout BitmaskDropout ComplexMul
   ComplexMulConj CropAndResize DequantizeBFP EmbedLayerNormalization ExpandDims GatedAdd GatedRMSNorm
   GatherBlockQuantized GatherND GemmaRotaryEmbedding GroupNorm IsAllFinite MaxpoolWithMask MulInteger MurmurHash3
   NGramRepeatBlock NhwcMaxPool Pad QEmbedLayerNormalization QLinearReduceMean QLinearSoftmax QLinearWhere QuantizeBFP
   Range ReduceSumInteger RelativePositionBias RemovePadding RestorePadding ScaledSiLU SkipGroupNorm
   SwiGLU Tokenizer TorchEmbedding Trilu UnfoldTensor""",
   MICROSOFT)
plain("AveragePool GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput Upsample", BLOCKED)
plain("""ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer LabelEncoder
   Normalizer OneHotEncoder Scaler ZipMap""", "ai.onnx.ml")
