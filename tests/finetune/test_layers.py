"""Convolution, pooling, linear and normalizing operators equal ONNX Runtime's."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

pytest.importorskip("torch")

from graphprune.finetune import to_torch

RNG = np.random.default_rng(1)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE = normal(2, 4, 9, 8)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 0]},
        {"strides": [2, 3], "dilations": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
    ],
)
def test_conv(check, attributes):
    check("Conv", [IMAGE, normal(6, 4, 3, 2), normal(6)], **attributes)
    check("Conv", [IMAGE, normal(6, 4, 3, 2)], **attributes)


@pytest.mark.parametrize(("group", "out"), [(2, 6), (4, 4), (4, 8)])
def test_grouped_conv(check, group, out):
    check("Conv", [IMAGE, normal(out, 4 // group, 3, 3), normal(out)], group=group, pads=[1, 1, 1, 1])


def test_conv_of_one_and_three_axes(check):
    check("Conv", [normal(2, 3, 11), normal(5, 3, 4), normal(5)], pads=[2, 1], strides=[2])
    check("Conv", [normal(2, 3, 5, 6, 7), normal(4, 3, 2, 3, 2), normal(4)], pads=[0, 1, 0, 1, 1, 0])


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 3], "pads": [0, 1, 1, 0], "output_padding": [1, 1]},
        {"strides": [2, 2], "output_shape": [18, 17]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"dilations": [2, 2]},
    ],
)
def test_conv_transpose(check, attributes):
    check("ConvTranspose", [IMAGE, normal(4, 3, 3, 3), normal(3)], **attributes)
    check("ConvTranspose", [IMAGE, normal(4, 2, 3, 3)], group=2, **attributes)


POOLS = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [1, 1], "strides": [2, 2]},
    {"kernel_shape": [3, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 2, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"},
]


@pytest.mark.parametrize("attributes", POOLS)
def test_max_pool(check, attributes):
    check("MaxPool", [IMAGE], **attributes)


def test_max_pool_dilated_and_of_other_ranks(check):
    check("MaxPool", [IMAGE], kernel_shape=[3, 3], dilations=[2, 2])
    check("MaxPool", [normal(2, 3, 11)], kernel_shape=[3], strides=[2], pads=[1, 0])
    check("MaxPool", [normal(1, 3, 5, 6, 7)], kernel_shape=[2, 2, 2], strides=[2, 2, 2])


@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_average_pool(check, attributes, count_include_pad):
    check("AveragePool", [IMAGE], opset=19, count_include_pad=count_include_pad, **attributes)


def test_average_pool_of_other_ranks(check):
    check("AveragePool", [normal(2, 3, 11)], kernel_shape=[3], strides=[2], pads=[1, 0])
    check("AveragePool", [normal(1, 3, 5, 6, 7)], kernel_shape=[2, 2, 2], pads=[1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_global_pool(check, op_type, shape):
    check(op_type, [normal(*shape)])


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("c", [None, (3,), (4, 1), (4, 3), ()])
def test_gemm(check, trans_a, trans_b, c):
    a = normal(5, 4) if trans_a else normal(4, 5)
    b = normal(3, 5) if trans_b else normal(5, 3)
    bias = None if c is None else np.asarray(normal(*c))
    options = {"transA": trans_a, "transB": trans_b, "alpha": 0.5, "beta": 2.0}
    check("Gemm", [a, b] if bias is None else [a, b, bias], **options)


@pytest.mark.parametrize(
    ("left", "right"),
    [((4, 5), (5, 3)), ((2, 4, 5), (5, 3)), ((2, 1, 4, 5), (3, 5, 2)), ((5,), (5, 3)), ((2, 4, 5), (5,))],
)
@pytest.mark.parametrize("fixed", [(), (1,)])
def test_matmul(check, left, right, fixed):
    check("MatMul", [normal(*left), normal(*right)], fixed=fixed)


def test_einsum(check):
    check("Einsum", [normal(2, 3, 4), normal(2, 4, 5)], equation="bij,bjk->bik", fixed=())


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (6, 4), (2, 4, 7)])
def test_batch_normalization(check, opset, shape):
    statistics = [normal(4), normal(4), normal(4), np.abs(normal(4)) + 0.1]
    check("BatchNormalization", [normal(*shape), *statistics], opset=opset, epsilon=1e-3)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn(check, size):
    check("LRN", [normal(2, 6, 4, 3) * 5], size=size, alpha=0.5, beta=0.6, bias=2.0)


@pytest.mark.parametrize("size", [2, 4])
def test_lrn_of_even_size_equals_the_reference(one_node, run_torch, relative_error, size):
    """ONNX Runtime refuses even sizes, so the specification's own implementation judges."""
    x = normal(6, 6, 4, 3) * 5  # as many samples as channels: the reference confuses the two
    model = one_node("LRN", [x], size=size, alpha=0.5, beta=0.6, bias=2.0)
    expected = ReferenceEvaluator(model).run(None, {"x0": x})
    assert relative_error(expected, run_torch(to_torch(model), {"x0": x})) < 1e-5


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("opset", "axis"), [(11, None), (11, 1), (11, 2), (11, 0), (13, None), (13, 1), (13, -2)])
def test_softmax(check, op_type, opset, axis):
    check(op_type, [normal(3, 4, 5)], opset=opset, **({} if axis is None else {"axis": axis}))


@pytest.mark.parametrize("op_type", ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, [1], [0, -1]])
def test_reduce(check, op_type, keepdims, axes):
    x = normal(3, 4, 5)
    check(f"Reduce{op_type}", [x], opset=11, keepdims=keepdims, **({} if axes is None else {"axes": axes}))
    given = [] if axes is None else [np.array(axes, np.int64)]
    check(f"Reduce{op_type}", [x, *given], opset=18, keepdims=keepdims)


def test_reduce_without_axes_as_no_operation(check):
    check("ReduceSum", [normal(3, 4)], noop_with_empty_axes=1)
    check("ReduceLogSum", [np.abs(normal(3, 4))])


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg(check, op_type, last, keepdims):
    ties = np.round(normal(3, 8, 2))
    check(op_type, [ties], axis=1, keepdims=keepdims, select_last_index=last)
    check(op_type, [ties], axis=-2, keepdims=keepdims, select_last_index=last)
