"""A small example of every operator in the table, for its outputs, its gradient and its device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto

RNG = np.random.default_rng(3)
KINKS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Where activations may have no slope."""


@dataclass(frozen=True)
class Case:
    """One node.

    Attributes
    ----------
    op : str
        As in the table of operators.
    inputs : list of ndarray or None
    options : dict
        Of `tests.finetune.conftest.one_node`.
    slopes : tuple of int
        Slots of the inputs that a gradient goes to.
    runs : bool
        Whether ONNX Runtime has a kernel for it.
    host : bool
        Whether it reads values of its inputs, which may lie on a device.
    """

    op: str
    inputs: list[np.ndarray | None]
    options: dict[str, Any] = field(default_factory=dict)
    slopes: tuple[int, ...] = ()
    runs: bool = True
    host: bool = False

    def __str__(self) -> str:
        return self.op


def normal(*shape: int) -> np.ndarray:
    """Return numbers none of which is near a kink."""
    values = RNG.standard_normal(shape)
    for kink in KINKS:
        values = np.where(np.abs(values - kink) < 0.05, kink + 0.1, values)
    return values.astype(np.float32)


def between(low: float, high: float, *shape: int) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


def whole(low: int, high: int, *shape: int, kind: type = np.int64) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(kind)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: float, kind: type = np.float32) -> np.ndarray:
    return np.array(value, kind)


def case(
    op: str,
    *inputs: np.ndarray | None,
    none: tuple[int, ...] = (),
    runs: bool = True,
    host: bool = False,
    **options: Any,
) -> Case:
    """Make a case: gradients go to all float inputs but those in the slots of ``none``; the others are stored."""
    floats = [slot for slot, value in enumerate(inputs) if value is not None and value.dtype.kind == "f"]
    slopes = tuple(slot for slot in floats if slot not in none)
    stored = [slot for slot, value in enumerate(inputs) if value is not None and slot not in slopes]
    options.setdefault("fixed", [slot for slot in stored if slot or len(inputs) == 1])
    return Case(op, list(inputs), options, slopes, runs, host)


def flat(op: str, *inputs: np.ndarray | None, **options: Any) -> Case:
    """Make a case without a gradient: what comes out is whole numbers, or does not change little by little."""
    made = case(op, *inputs, **options)
    stored = made.options["fixed"] if "fixed" in options else [k for k, x in enumerate(inputs) if k and x is not None]
    return Case(op, made.inputs, {**made.options, "fixed": stored}, (), made.runs, made.host)


def runtime(op: str, *inputs: np.ndarray | None, **options: Any) -> Case:
    """Make a case of an operator of ONNX Runtime."""
    return case(f"com.microsoft.{op}", *inputs, **options)


X, Y = normal(2, 3, 4), normal(3, 1)
IMAGE = normal(2, 4, 5, 6)
INSIDE, ABOVE = between(-0.9, 0.9, 3, 4), between(1.1, 3, 3, 4)
FLAGS, BITS = normal(3, 4) > 0, whole(0, 200, 3, 4, kind=np.uint8)
RANKED = RNG.permutation(24).reshape(2, 3, 4).astype(np.float32)
"""Numbers apart from each other: which is the largest does not change little by little."""
REDUCED = "L1 L2 Mean Min Max Prod Sum SumSquare LogSumExp".split()
SMOOTH = """Abs Atan Cos Elu Erf Exp HardSigmoid HardSwish Identity LeakyRelu Neg Relu Selu Celu Sigmoid Sin Softplus
Softsign Tanh ThresholdedRelu Shrink""".split()
STEPPED = "Ceil Floor Round Sign".split()

ELEMENTWISE = [
    *(case(op, X) for op in SMOOTH),
    *(case(op, INSIDE) for op in "Acos Asin Asinh Atanh Cosh Sinh Tan".split()),
    *(case(op, ABOVE) for op in "Acosh Log Reciprocal Sqrt".split()),
    *(flat(op, X) for op in [*STEPPED, "IsNaN", "IsInf"]),
    *(case(op, X, Y) for op in ("Add", "Div", "Mul", "Sub")),
    *(case(op, X, Y) for op in ("Max", "Min", "Mean", "Sum")),
    *(flat(op, np.round(X), np.round(Y)) for op in "Equal Greater GreaterOrEqual Less LessOrEqual".split()),
    *(flat(op, FLAGS, FLAGS[:1]) for op in ("And", "Or", "Xor")),
    *(flat(op, BITS, BITS[:1], opset=18) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    flat("BitShift", BITS, BITS[:1] % 8, direction="LEFT"),
    flat("BitShift", BITS, BITS[:1] % 8, direction="RIGHT"),
    flat("BitwiseNot", BITS, opset=18),
    flat("Not", FLAGS),
    case("Cast", X, to=TensorProto.DOUBLE),
    flat("Cast", X, to=TensorProto.INT32),
    flat("CastLike", X, np.zeros(1, np.float16)),
    case("Clip", X, scalar(-0.75), scalar(0.75), none=(1, 2)),
    case("Gelu", X, opset=20, approximate="tanh"),
    case("Mish", X, opset=18),
    flat("Mod", whole(-9, 9, 4), ints(2, -2, 4, 3)),
    case("PRelu", X, between(0.1, 0.5, 3, 1)),
    case("Pow", ABOVE, between(1, 3, 4)),
    case("Shrink", X, lambd=0.75, bias=0.2),
    case("Swish", X, opset=24, alpha=1.5),
    case("Where", X > 0, X, Y),
]
PRODUCTS = [
    case("Conv", IMAGE, normal(6, 2, 3, 2), normal(6), group=2, strides=[2, 1], pads=[1, 0, 0, 1]),
    case("ConvTranspose", IMAGE, normal(4, 2, 3, 3), normal(2), strides=[2, 2]),
    flat("ConvInteger", whole(0, 9, 1, 2, 5, 5, kind=np.uint8), whole(0, 9, 3, 2, 3, 3, kind=np.uint8),
         scalar(3, np.uint8), scalar(2, np.uint8), pads=[1, 1, 1, 1]),
    flat("MatMulInteger", whole(0, 9, 3, 4, kind=np.uint8), whole(0, 9, 4, 5, kind=np.int8), scalar(3, np.uint8),
         whole(0, 5, 5, kind=np.int8)),
    case("Det", normal(2, 3, 3)),
    case("Einsum", normal(2, 3, 4), normal(2, 4, 5), equation="bij,bjk->bik"),
    case("Gemm", normal(4, 3), normal(5, 4), normal(5), transA=1, transB=1, alpha=0.5, beta=2.0),
    case("MatMul", normal(2, 3, 4), normal(4, 5)),
]  # fmt: skip
NORMALIZED = [
    case("BatchNormalization", IMAGE, normal(4), normal(4), normal(4), between(0.5, 2, 4), none=(3, 4)),
    case("Dropout", X),
    case("GroupNormalization", IMAGE, normal(4), normal(4), opset=21, num_groups=2, epsilon=1e-3),
    flat("Hardmax", RANKED),
    flat("Hardmax", RANKED, opset=11, axis=1),
    case("InstanceNormalization", IMAGE, normal(4), normal(4)),
    case("InstanceNormalization", normal(1, 3, 1, 1), normal(3), normal(3)),
    case("LRN", IMAGE, size=3, alpha=0.5),
    case("LayerNormalization", X, normal(4), normal(4)),
    case("LayerNormalization", X, normal(3, 4), axis=1, epsilon=1e-2),
    case("LayerNormalization", X, normal(1, 4), normal(3, 1), axis=1, outputs=3),
    case("LogSoftmax", X, axis=1),
    case("LpNormalization", X, axis=1),
    case("LpNormalization", X, axis=0, p=1),
    case("MeanVarianceNormalization", IMAGE),
    case("MeanVarianceNormalization", X, axes=[1]),
    case("RMSNormalization", X, normal(4), opset=23),
    case("RMSNormalization", X, normal(3, 4), opset=23, axis=1),
    case("Softmax", X, opset=11, axis=1),
    case("Softmax", X),
]
POOLED = [
    case("AveragePool", IMAGE, kernel_shape=[3, 2], pads=[1, 0, 0, 1]),
    case("GlobalAveragePool", IMAGE),
    case("GlobalLpPool", IMAGE),
    case("GlobalLpPool", IMAGE, p=3),
    case("GlobalMaxPool", IMAGE),
    case("LpPool", IMAGE, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1]),
    case("LpPool", IMAGE, opset=18, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, p=3),
    case("MaxPool", RANKED[None], kernel_shape=[3, 2], strides=[2, 2]),
    *(case(f"Reduce{op}", X, axes=[1]) for op in REDUCED if op != "Sum"),
    case("ReduceSum", X, ints(1)),
    case("ReduceLogSum", ABOVE, axes=[0]),
    flat("ArgMax", RANKED, axis=1),
    flat("ArgMin", RANKED, axis=2),
]
MOVED = [
    flat("Compress", X, np.array([True, False, True]), axis=1, host=True),
    case("Concat", X, X + 1, axis=1),
    flat("ConstantOfShape", ints(2, 3), host=True),
    case("CumProd", X, scalar(1, np.int64), opset=26, runs=False),
    case("CumProd", X, scalar(1, np.int64), opset=26, exclusive=1, reverse=1, runs=False),
    case("CumSum", X, scalar(1, np.int64)),
    case("CumSum", X, scalar(-1, np.int64), exclusive=1),
    case("CumSum", X, scalar(0, np.int64), reverse=1, exclusive=1),
    flat("CumSum", whole(0, 9, 4, kind=np.int32), scalar(0, np.int64)),
    case("DepthToSpace", IMAGE, blocksize=2),
    case("Expand", Y, ints(2, 3, 4)),
    flat("EyeLike", X[0], k=1),
    flat("EyeLike", X[0], dtype=TensorProto.INT64),
    case("Flatten", X),
    case("Gather", X, ints(0, -1), axis=1),
    case("GatherElements", X, whole(-3, 3, 2, 2, 4), axis=1),
    case("GatherND", X, whole(-2, 2, 3, 2)),
    case("GatherND", X, whole(0, 3, 2, 5, 1), batch_dims=1),
    case("GatherND", normal(2, 3, 4, 5), whole(-4, 4, 2, 3, 1), batch_dims=2),
    case("MaxUnpool", normal(1, 1, 2, 2), ints(0, 3, 8, 14).reshape(1, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxUnpool", normal(1, 1, 2, 2), ints(0, 3, 8, 14).reshape(1, 1, 2, 2), ints(1, 1, 5, 5), kernel_shape=[2, 2],
         strides=[2, 2], host=True),
    flat("NonZero", np.round(X), host=True),
    flat("OneHot", ints(0, -1, 7, 2), scalar(4, np.int64), np.array([0.5, 2.0], np.float32)),
    flat("OneHot", ints(0, -1, 7, 2, 1, 1).reshape(2, 3), ints(4), np.array([1, 5]), axis=1),
    case("Pad", X, ints(0, 1, 0, 0, 0, 2), mode="reflect"),
    case("Pad", X, ints(0, 1, 0, 0, 0, 2), scalar(3), none=(2,)),
    flat("Range", scalar(7, np.int64), scalar(-2, np.int64), scalar(-3, np.int64), host=True),
    flat("Range", scalar(0.5), scalar(2.5), scalar(0.3), host=True),
    case("Reshape", X, ints(4, 0, -1)),
    case("Resize", IMAGE, None, np.array([1, 1, 2, 0.5], np.float32), mode="linear", none=(2,)),
    case("Resize", IMAGE, None, None, ints(2, 4, 3, 8), mode="cubic"),
    case("ReverseSequence", X, ints(3, 1), batch_axis=0, time_axis=1),
    case("ReverseSequence", X, ints(2, 1, 0), batch_axis=1, time_axis=0),
    case("Scatter", X, whole(0, 3, 1, 1, 3), normal(1, 1, 3), opset=10, axis=1),
    case("ScatterElements", X, whole(-3, 3, 1, 1, 3), normal(1, 1, 3), axis=1),
    *(case("ScatterElements", X, whole(0, 3, 1, 2, 3), normal(1, 2, 3), opset=18, axis=1, reduction=op)
      for op in ("add", "mul", "max", "min")),
    case("ScatterND", X, ints(0, 2, -1, 1).reshape(2, 2), normal(2, 4)),
    case("ScatterND", X, ints(1, 0, 3, 0, 2, -1).reshape(2, 1, 3), normal(2, 1)),
    case("ScatterND", X, ints(-1).reshape(1, 1), normal(1, 3, 4)),
    *(case("ScatterND", X, ints(0, 0, 1).reshape(3, 1), normal(3, 3, 4), opset=18, reduction=op)
      for op in ("add", "mul", "max", "min")),
    flat("Shape", X),
    flat("Size", X),
    case("Slice", X, ints(1, 3), ints(3, 0), ints(1, 2), ints(1, -1)),
    case("SpaceToDepth", IMAGE[:, :, :4], blocksize=2),
    case("Split", X, ints(1, 3), axis=2, outputs=2),
    case("Squeeze", X[:, :1], ints(1)),
    case("Tile", X, ints(1, 2, 1)),
    case("TopK", RANKED, ints(2), axis=1, outputs=2),
    case("TopK", RANKED, ints(2), axis=2, largest=0, outputs=2),
    flat("TopK", np.round(X), ints(3), outputs=2),
    case("Transpose", X, perm=[2, 0, 1]),
    case("Trilu", X),
    case("Trilu", X, scalar(-1, np.int64), upper=0),
    case("Unsqueeze", X, ints(0, -1)),
    case("Upsample", IMAGE, np.array([1, 1, 2, 2], np.float32), opset=9, none=(1,)),
]  # fmt: skip
REGIONS = np.array([[0.3, 0.4, 4.1, 3.7], [1.2, -0.8, 5.6, 6.5], [2, 2, 2.2, 2.2]], np.float32)
SAMPLED = [
    case("GridSample", IMAGE, between(-1.3, 1.3, 2, 3, 4, 2), opset=16),
    case("GridSample", IMAGE, between(-0.9, 0.9, 2, 3, 4, 2), opset=16, mode="bicubic", align_corners=1),
    case("GridSample", IMAGE, between(-1.6, 1.6, 2, 3, 4, 2), opset=20, padding_mode="border"),
    case("GridSample", IMAGE, between(-0.9, 0.9, 2, 3, 4, 2), opset=20, mode="nearest", padding_mode="reflection",
         none=(1,)),
    case("GridSample", normal(1, 2, 3, 4, 3), between(-0.9, 0.9, 1, 2, 2, 3, 3), opset=20),
    case("RoiAlign", IMAGE, REGIONS, ints(0, 1, 0), opset=16, output_height=2, output_width=3, none=(1,), host=True),
    case("RoiAlign", IMAGE, REGIONS, ints(1, 1, 0), opset=10, output_height=2, output_width=2, sampling_ratio=2,
         spatial_scale=0.7, none=(1,), host=True),
    case("MaxRoiPool", IMAGE, np.array([[0, 0.4, 1, 3, 4], [1, 2, 2, 9, 3]], np.float32), pooled_shape=[2, 3],
         spatial_scale=0.8, none=(1,), host=True),
]  # fmt: skip
SCALES, ZEROS = between(0.05, 0.2, 3), whole(-9, 9, 3, kind=np.int8)
QUANTIZED = [
    case("DequantizeLinear", whole(-128, 128, 2, 3, 4, kind=np.int8), SCALES, ZEROS, axis=1),
    case("DequantizeLinear", whole(0, 255, 2, 3, kind=np.uint8), scalar(0.3)),
    case("DequantizeLinear", whole(-9, 9, 3, 6, kind=np.int8), between(0.1, 0.2, 3, 2), opset=21, block_size=3),
    flat("QuantizeLinear", X, SCALES, ZEROS, axis=1),
    flat("QuantizeLinear", X * 30, scalar(0.25)),
    flat("QuantizeLinear", X, scalar(0.01), opset=21, output_dtype=TensorProto.INT8),
    flat("DynamicQuantizeLinear", X, outputs=3),
]


def recurrent(op: str, gates: int, directions: int = 1, bias: bool = True, **options: Any) -> Case:
    """Make a recurrent node of 4 steps, 3 samples, 2 inputs and 3 hidden units, with initial states."""
    inputs = [normal(4, 3, 2), normal(directions, gates * 3, 2) * 0.7, normal(directions, gates * 3, 3) * 0.7]
    inputs += [normal(directions, 2 * gates * 3) * 0.5 if bias else None, options.pop("lengths", None)]
    inputs += [normal(directions, 3, 3) for _ in range(2 if op == "LSTM" else 1)]
    if options.pop("peepholes", False):
        inputs.append(normal(directions, 9))
    stored = [k for k in (1, 2, 3, 4, 7) if k < len(inputs) and inputs[k] is not None]
    outputs = 3 if op == "LSTM" else 2
    return Case(
        op, inputs, {"outputs": outputs, "hidden_size": 3, "fixed": stored, **options},
        tuple(k for k, value in enumerate(inputs) if value is not None and k != 4),
    )  # fmt: skip


RECURRENT = [
    *(recurrent(op, gates) for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))),
    recurrent("LSTM", 4, peepholes=True),
    recurrent("GRU", 3, linear_before_reset=1),
    recurrent("LSTM", 4, 2, direction="bidirectional"),
]

HEADS = [normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 3)]
MERGED = [normal(2, 3, 8), normal(2, 5, 4), normal(2, 5, 6)]
SAME = [normal(2, 5, 8), normal(2, 5, 8), normal(2, 5, 8)]
ANGLES = normal(6, 2)
TURNED = [np.cos(ANGLES), np.sin(ANGLES)]
KEPT = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], np.int32)
LAST, TOTAL, TURNS = whole(4, 5, 2, kind=np.int32), scalar(5, np.int32), normal(9, 8)
GROUPED = {"num_heads": 4, "kv_num_heads": 2}
ATTENTION = [
    case("Attention", *HEADS, opset=23),
    case("Attention", *HEADS, opset=23, is_causal=1, scale=0.3),
    case("Attention", *MERGED, normal(3, 5) > -0.5, opset=23, q_num_heads=4, kv_num_heads=2),
    case("Attention", *HEADS, normal(2, 1, 3, 5), opset=23, is_causal=1, softcap=2.0),
    case("Attention", *HEADS, normal(3, 8), normal(2, 2, 3, 4), normal(2, 2, 3, 3), opset=23, outputs=3, is_causal=1),
    case("Attention", *HEADS, None, None, None, ints(4, 3), opset=24),
    case("Attention", *HEADS, opset=25, left_window_size=1, right_window_size=1, runs=False),
    case("RotaryEmbedding", normal(2, 3, 4, 4), *TURNED, whole(0, 6, 2, 4), opset=23, none=(1, 2)),
    case("RotaryEmbedding", normal(2, 4, 12), normal(2, 4, 1), normal(2, 4, 1), opset=23, num_heads=3, interleaved=1,
         rotary_embedding_dim=2, none=(1, 2)),
    runtime("RotaryEmbedding", normal(2, 3, 4, 4), whole(0, 6, 2, 4), *TURNED, none=(2, 3)),
    runtime("RotaryEmbedding", normal(2, 4, 12), ints(1), *TURNED, none=(2, 3), interleaved=1),
    runtime("MultiHeadAttention", *SAME, num_heads=2),
    runtime("MultiHeadAttention", *SAME, normal(24), KEPT, normal(1, 2, 5, 5),
         num_heads=2, unidirectional=1),
    runtime("MultiHeadAttention", *SAME, None, whole(1, 6, 2, kind=np.int32), num_heads=2, scale=0.4),
    runtime("MultiHeadAttention", normal(2, 1, 8), normal(2, 1, 8), normal(2, 1, 8), None, None, None,
            normal(2, 2, 3, 4), normal(2, 2, 3, 4), num_heads=2, outputs=3, ranks=(3, 4, 4)),
    runtime("Attention", normal(2, 5, 6), normal(6, 24), normal(24), num_heads=2),
    runtime("Attention", normal(2, 5, 6), normal(6, 20), normal(20), KEPT, num_heads=2,
            qkv_hidden_sizes=[8, 8, 4], unidirectional=1),
    runtime("Attention", normal(2, 2, 6), normal(6, 24), normal(24), None, normal(2, 2, 2, 3, 4), num_heads=2,
            outputs=2, ranks=(3, 5)),
    runtime("GroupQueryAttention", normal(2, 5, 32), normal(2, 5, 16), normal(2, 5, 16), None, None, LAST, TOTAL,
            outputs=3, ranks=(3, 4, 4), **GROUPED),
    runtime("GroupQueryAttention", normal(2, 5, 128), None, None, None, None, LAST, TOTAL, np.cos(TURNS), np.sin(TURNS),
            none=(7, 8), outputs=3, ranks=(3, 4, 4), do_rotary=1, local_window_size=2, softcap=3.0, **GROUPED),
]  # fmt: skip
FUSED = [
    runtime("BiasGelu", X, normal(4)),
    runtime("FastGelu", X, normal(4)),
    runtime("Gelu", X),
    runtime("QuickGelu", X, alpha=1.5),
    runtime("FusedConv", IMAGE, normal(3, 4, 3, 3), normal(3), activation="LeakyRelu", activation_params=[0.2]),
    runtime("FusedConv", IMAGE, normal(3, 4, 1, 1), normal(3), normal(2, 3, 5, 6), activation="Relu"),
    runtime("FusedGemm", normal(3, 4), normal(4, 5), normal(5), activation="HardSigmoid", activation_alpha=0.3,
            activation_beta=0.4),
    runtime("FusedMatMul", normal(2, 4, 3), normal(2, 5, 4), transA=1, transB=1, alpha=0.5),
    runtime("SkipLayerNormalization", X, normal(2, 3, 4), normal(4), normal(4), normal(4), outputs=4,
            epsilon=1e-3, fixed=(2, 3, 4)),
    runtime("SkipLayerNormalization", X, normal(2, 3, 4), normal(4), fixed=(2,)),
    runtime("SkipSimplifiedLayerNormalization", X, normal(2, 3, 4), normal(4), epsilon=1e-3, fixed=(2,)),
    runtime("EmbedLayerNormalization", whole(0, 7, 2, 3, kind=np.int32), whole(0, 2, 2, 3, kind=np.int32),
         normal(7, 4), normal(5, 4), normal(2, 4), normal(4), normal(4), np.array([[1, 1, 0], [1, 1, 1]], np.int32),
         outputs=3, ranks=(3, 1, 3), epsilon=1e-3, fixed=(2, 3, 4, 5, 6)),
]  # fmt: skip
CASES = [
    *ELEMENTWISE, *PRODUCTS, *NORMALIZED, *POOLED, *MOVED, *SAMPLED, *QUANTIZED, *RECURRENT, *ATTENTION, *FUSED,
]  # fmt: skip
