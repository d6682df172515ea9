"""What stored integers mean, by what reads them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from graphprune.ir.cost import count_macs, count_nonzero, count_weights
from graphprune.ir.graph import Graph
from graphprune.ir.quantized import Quantized, spread
from graphprune.ir.rectified import rectified
from graphprune.ir.weights import constant_value, contracted_norms
from graphprune.passes import sparsify
from tests.nets import Net
from tests.oracles import coupled, values


def weights(net: Net, numbers: list[list[int]], name: str = "w") -> str:
    return net.initializer(np.array(numbers), name, TensorProto.INT8)


def dequantised(net: Net, stored: str, scale: object, zero: object, **attributes: int) -> str:
    names = [stored, net.initializer(np.array(scale, np.float64), net.name("scale"))]
    names.append(net.initializer(np.array(zero), net.name("zero"), TensorProto.INT8))
    return net.node("DequantizeLinear", names, kind=TensorProto.FLOAT, **attributes)


def product(net: Net, weight: str) -> str:
    rows, columns = net.shapes[weight]
    return net.node("MatMul", [net.input(["N", rows]), weight], ["N", columns])


@pytest.mark.parametrize(
    ("parameter", "axis", "block", "expected"),
    [
        (np.array(3), 1, 0, np.array(3)),
        (np.array([3]), 0, 0, np.array(3)),
        (np.array([1, 2, 3]), 1, 0, np.array([[1, 2, 3]])),
        (np.array([1, 2, 3]), -2, 0, np.array([[1], [2], [3]])),
        (np.array([[1, 2]]), 0, 2, np.array([[1, 2], [1, 2]])),
    ],
)
def test_parameters_are_laid_out_for_what_they_belong_to(
    parameter: np.ndarray, axis: int, block: int, expected: np.ndarray
) -> None:
    made = spread(parameter, 2, axis, block)
    assert made.shape == expected.shape
    np.testing.assert_array_equal(made, expected)


def test_parameters_of_gates_by_direction() -> None:
    assert spread(np.ones((2, 8)), 3, 0).shape == (2, 1, 8)


def test_numbers_and_zeros() -> None:
    stored = np.array([[5, 7], [1, 4]], np.int8)
    meaning = Quantized(np.array([[0.5], [2.0]]), np.array([[5], [4]], np.int8))
    np.testing.assert_array_equal(meaning.numbers(stored), [[0, 1], [-6, 0]])
    assert meaning.nonzero(stored) == 2
    np.testing.assert_array_equal(Quantized(None, np.array(1)).numbers(stored), [[4 / 6, 1], [0, 3 / 6]])


@pytest.mark.parametrize("constants", [False, True])
def test_quantised_weights_count_and_other_integers_do_not(constants: bool) -> None:
    net = Net(constants=constants)
    stored = net.constant(np.array([[1, 5], [6, 5], [5, 5]], np.int8), "w")
    scaled = dequantised(net, stored, [0.5, 0.25], [5, 5], axis=1)
    made = net.reshape(product(net, scaled), [0, 2, 1], ["N", 2, 1])
    model = net.build(made)
    assert count_weights(model) == 6 + 2
    assert count_nonzero(model) == 2 + 2
    assert list(Graph(model).quantized) == [stored]


@pytest.mark.parametrize(("kind", "op", "count"), [("INT8", "Mul", 6), ("INT8", "Sub", 0), ("INT64", "Mul", 0)])
def test_integers_that_are_cast_and_scaled_are_weights_of_few_bits(kind: str, op: str, count: int) -> None:
    net = Net()
    stored = net.initializer([[1, 0], [6, 5], [5, 5]], "w", getattr(TensorProto, kind))
    floats = net.node("Cast", [stored], kind=TensorProto.FLOAT, to=TensorProto.FLOAT)
    model = net.build(product(net, net.add(floats, net.initializer([0.5, 0.25], "other"), op=op)))
    assert count_weights(model) == count + 2
    assert count_nonzero(model) == max(count - 1, 0) + 2


def test_weights_read_with_different_zero_points_are_none() -> None:
    net = Net()
    stored = weights(net, [[1, 2], [3, 4]])
    first, second = (product(net, dequantised(net, stored, 0.5, zero)) for zero in (0, 1))
    assert Graph(net.build(first, second)).quantized == {}


def test_weights_moved_before_they_are_read() -> None:
    net = Net()
    stored = weights(net, [[1, 2, 3], [3, 4, 5]])
    turned = net.transpose(stored, [1, 0])
    model = net.build(product(net, dequantised(net, turned, [0.5, 1.0], [3, 3], axis=1)))
    (meaning,) = Graph(model).quantized.values()
    assert meaning.scale is None  # it lies along another axis here
    assert meaning.zero == 3
    assert count_nonzero(model) == 4 + 2


def test_the_value_of_dequantised_weights_in_older_operator_sets() -> None:
    net = Net(13)
    scaled = dequantised(net, weights(net, [[1, 2], [3, 4], [7, 9]]), [0.5, 2.0], [1, 2], axis=1)
    model = net.build(product(net, scaled))
    expected = np.array([[0, 0], [1, 4], [3, 14]], np.float32)
    value = constant_value(Graph(model), scaled)
    assert value is not None
    np.testing.assert_array_equal(value, expected)


def test_norms_are_of_what_stored_weights_mean() -> None:
    net = Net()
    point = [net.initializer(0.1, "s"), net.initializer(3, "z", TensorProto.UINT8)]
    data = net.node("QuantizeLinear", [net.input(["N", 2]), *point], kind=TensorProto.UINT8)
    stored = [
        weights(net, [[1, 3], [4, 1]]),
        net.initializer([0.5, 2.0], "ws"),
        net.initializer([1, 1], "wz", TensorProto.INT8),
    ]
    made = net.node("QLinearMatMul", [data, *point, *stored, *point], ["N", 2], kind=TensorProto.UINT8)
    model = net.build(net.node("DequantizeLinear", [made, *point], kind=TensorProto.FLOAT))
    coupling = coupled(model)
    (contraction,) = coupling.contractions
    np.testing.assert_allclose(contracted_norms(coupling.graph, contraction), [16, 1.5**2])
    assert count_macs(model, {"x_0": (5, 2)}) == 5 * 2 * 2


def test_the_smallest_of_all_weights_go_quantised_or_not() -> None:
    net = Net()
    stored = weights(net, [[4, 5, 8], [6, 25, 5]], "small")
    hidden = net.relu(product(net, dequantised(net, stored, 0.1, 5)))  # -0.1 0 0.3, 0.1 2 0
    dense = net.initializer([[0.05, -0.2], [0.15, 1.0], [3.0, -2.0]], "dense")
    model = net.build(net.node("MatMul", [hidden, dense], ["N", 2]))
    coupling = coupled(model)
    names = sparsify.zeroable(coupling.graph, coupling.contractions)
    assert sorted(names) == ["dense", "small"]
    total = count_weights(model)
    zeros = sparsify.plan(model, names, weights_before=total, target=1 - (count_nonzero(model) - 5) / total)
    sparsify.apply(model, zeros)
    after = values(model)
    np.testing.assert_array_equal(after["small"], [[5, 5, 8], [5, 25, 5]])
    np.testing.assert_array_equal(after["dense"], np.array([[0, 0], [0, 1], [3, -2]], np.float32))


@pytest.mark.parametrize(("kind", "zero", "expected"), [("UINT8", 0, True), ("UINT8", 1, False), ("INT8", -128, True)])
def test_numbers_that_start_from_zero_are_rectified(kind: str, zero: int, expected: bool) -> None:
    net = Net()
    code = TensorProto.DataType.Value(kind)
    point = [net.initializer(0.1, "s"), net.initializer(zero, "z", code)]
    stepped = net.node("QuantizeLinear", [net.input(["N", 2]), *point], kind=code)
    back = net.node("DequantizeLinear", [stepped, *point], kind=TensorProto.FLOAT)
    assert ({stepped, back} <= rectified(Graph(net.build(back)))) is expected


def test_the_axis_of_a_transposed_qgemm() -> None:
    net = Net()
    net.imports["com.microsoft"] = 1
    point = [net.initializer(0.1, "s"), net.initializer(3, "z", TensorProto.UINT8)]
    data = net.node("QuantizeLinear", [net.input(["N", 2]), *point], kind=TensorProto.UINT8)
    stored = [
        weights(net, [[1, 3], [4, 1], [2, 2]]),
        net.initializer([1.0, 2, 3], "ws"),
        net.initializer([1, 2, 3], "wz", TensorProto.INT8),
    ]
    names = [data, *point, *stored, "", *point]
    made = net.node("QGemm", names, ["N", 3], kind=TensorProto.UINT8, domain="com.microsoft", transB=1)
    meaning = Graph(net.build(made)).quantized["w"]
    np.testing.assert_array_equal(meaning.numbers(net.array("w")), [[0, 2], [4, -2], [-3, -3]])
