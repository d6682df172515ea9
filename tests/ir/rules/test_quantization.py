"""Quantised operators: scales and zero points go with their positions, and zero points stand for what is masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.quantized import Quantized
from graphprune.ir.surgery import remove
from graphprune.verify.masking import masked
from graphprune.verify.saturation import unsaturated
from tests.nets import Net
from tests.oracles import (
    assert_close,
    assert_exact,
    check_removal,
    coupled,
    feeds,
    reasons,
    removal,
    run,
    units_on,
    values,
)

STEP = 2e-2
"""Relative L2 error of two models of float sums that are rounded to steps: one on the edge may fall to either."""


class QuantizedNet(Net):
    """A net with quantised weights and activations."""

    def stored(self, shape: tuple[int, ...], axis: int | None, *, kind: int = TensorProto.INT8) -> tuple[str, str, str]:
        """Add quantised weights, with scales and zero points along an axis or for all at once."""
        size = () if axis is None else (shape[axis],)
        low = 0 if kind in (TensorProto.UINT8, TensorProto.UINT4) else -6
        numbers, zeros = self.random.integers(low, low + 13, shape), self.random.integers(low + 5, low + 8, size)
        scale = self.initializer(self.random.uniform(0.05, 0.15, size), self.name("scale"))
        made = [self.initializer(numbers, self.name("w"), kind), self.initializer(zeros, self.name("zero"), kind)]
        return made[0], scale, made[1]

    def dequantised(self, shape: tuple[int, ...], axis: int | None = None, **attributes: Any) -> str:
        """Add quantised weights behind DequantizeLinear."""
        names = self.stored(shape, axis)
        given = {} if axis is None else {"axis": attributes.pop("said", axis)}
        return self.node("DequantizeLinear", names, shape, kind=TensorProto.FLOAT, **given, **attributes)

    def point(self, scale: float = 0.05, zero: int = 100, kind: int = TensorProto.UINT8) -> list[str]:
        """Add the scale and the zero point of an activation."""
        return [self.initializer(scale, self.name("s")), self.initializer(zero, self.name("z"), kind)]

    def quantise(self, data: str, **point: Any) -> list[str]:
        """Quantise an activation; with its scale and zero point."""
        names = self.point(**point)
        kind = point.get("kind", TensorProto.UINT8)
        return [self.node("QuantizeLinear", [data, *names], kind=kind), *names]

    def dequantise(self, names: list[str]) -> str:
        """Dequantise an activation."""
        return self.node("DequantizeLinear", names, kind=TensorProto.FLOAT)

    def step(self, data: str, **point: Any) -> str:
        """Round an activation to steps."""
        return self.dequantise(self.quantise(data, **point))

    def qlinear_conv(
        self, data: list[str], channels: int, kernel: int = 1, *, group: int = 1, axis: int | None = 0, **point: Any
    ) -> list[str]:
        """Add a quantised convolution with a bias of 32 bits."""
        batch, inputs, *spatial = self.shapes[data[0]]
        weight = self.stored((channels, int(inputs) // group, kernel, kernel), axis)
        bias = self.initializer(self.random.integers(-200, 200, channels), self.name("b"), TensorProto.INT32)
        out = self.point(**point)
        made = self.node(
            "QLinearConv",
            [*data, *weight, *out, bias],
            [batch, channels, *spatial],
            group=group,
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
        )
        return [made, *out]

    def runtime(self, op: str, inputs: list[str], shape: list[Any], kind: int = TensorProto.UINT8, **given: Any) -> str:
        """Add an operator of ONNX Runtime's own."""
        self.imports["com.microsoft"] = 1
        return self.node(op, inputs, shape, kind=kind, domain="com.microsoft", **given)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_weights_behind_dequantize_linear(axis: int | None, opset: int) -> None:
    net = QuantizedNet(opset)
    data = net.step(net.input(["N", 3, 4, 4]))
    first = net.conv(data, 6, 3, weight=net.dequantised((6, 3, 3, 3), axis))
    second = net.conv(net.step(net.relu(first)), 4, weight=net.dequantised((4, 6, 1, 1), axis))
    coupling = assert_exact(net.build(net.step(second)), tolerance=STEP)
    assert coupling.units == 6
    pruned = check_removal(
        coupling, removal(coupling, units_on(coupling, "w_0", 0)[:4]), feeds(coupling.graph.proto), STEP
    )
    left = values(pruned)
    assert left["w_0"].shape == (2, 3, 3, 3)
    assert left["w_1"].shape == (4, 2, 1, 1)
    cut = {None: (), 0: (2,), 1: (3,)}[axis]
    assert left["scale_0"].shape == left["zero_0"].shape == cut


def test_the_axis_may_be_counted_from_the_back() -> None:
    net = QuantizedNet()
    hidden = net.node("MatMul", [net.input(["N", 3]), net.dequantised((3, 6), 1, said=-1)], ["N", 6])
    made = net.node("MatMul", [net.relu(hidden), net.dequantised((6, 2), 1, said=-1)], ["N", 2])
    coupling = assert_exact(net.build(made))
    assert units_on(coupling, "scale_0", 0) == units_on(coupling, "w_0", 1) == units_on(coupling, "w_1", 0)


@pytest.mark.parametrize("group", [2, 6])
@pytest.mark.parametrize("axis", [None, 0])
def test_grouped_and_depthwise_weights_behind_dequantize_linear(group: int, axis: int | None) -> None:
    net = QuantizedNet()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    weight = net.dequantised((6, 6 // group, 3, 3), axis)
    grouped = net.conv(net.step(data), 6, 3, group=group, weight=weight)
    coupling = assert_exact(net.build(net.conv(net.step(net.relu(grouped)), 2)), tolerance=STEP)
    assert coupling.units == (12 if group == 2 else 6)


def test_columns_of_a_grouped_conv_transpose_that_share_scales_go_from_all_groups() -> None:
    net = QuantizedNet()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 4))
    weight = net.dequantised((4, 3, 1, 1), 1)
    made = net.node("ConvTranspose", [data, weight], ["N", 6, 4, 4], group=2)
    coupling = assert_exact(net.build(net.conv(net.relu(made), 2)))
    columns = units_on(coupling, "w_2", 1)
    assert columns[:3] == columns[3:]
    assert len(set(columns)) == 3


def test_a_bias_of_32_bits_goes_with_its_scales() -> None:
    net = QuantizedNet()
    bias = net.initializer(net.random.integers(-99, 99, 6), "bias", TensorProto.INT32)
    scale = net.initializer(net.random.uniform(0.01, 0.02, 6), "bias_scale")
    names = [net.input(["N", 3]), net.dequantised((6, 3), 0)]
    names.append(net.node("DequantizeLinear", [bias, scale], [6], kind=TensorProto.FLOAT, axis=0))
    hidden = net.node("Gemm", names, ["N", 6], transB=1)
    coupling = assert_exact(net.build(net.gemm(net.relu(hidden), 2)))
    assert units_on(coupling, "bias", 0) == units_on(coupling, "bias_scale", 0) == units_on(coupling, "w_0", 0)


def test_whole_blocks_of_a_blocked_axis_go_with_their_scales() -> None:
    net = QuantizedNet(21)
    hidden = net.relu(net.linear(net.input(["N", 3]), 10))
    weight = net.initializer(net.random.integers(-6, 7, (10, 5)), "blocked", TensorProto.INT8)
    scale = net.initializer(net.random.uniform(0.05, 0.15, (3, 5)), "scales")
    names = [weight, scale, net.initializer(np.ones((3, 5)), "zeros", TensorProto.INT8)]
    wide = net.node("DequantizeLinear", names, (10, 5), kind=TensorProto.FLOAT, axis=0, block_size=4)
    made = net.linear(net.relu(net.node("MatMul", [hidden, wide], ["N", 5])), 2)
    coupling = coupled(net.build(made))
    rows = units_on(coupling, "blocked", 0)
    assert [len(set(rows[start : start + 4])) for start in (0, 4, 8)] == [1, 1, 1]
    assert len(set(rows)) == 3
    assert units_on(coupling, "scales", 0) == rows[::4]
    assert units_on(coupling, "scales", 1) == units_on(coupling, "blocked", 1)
    inputs = feeds(coupling.graph.proto)
    for gone in (rows[:1], rows[4:5], [rows[8], *units_on(coupling, "scales", 1)[1:3]]):
        pruned, _ = remove(coupling, removal(coupling, gone))
        assert_close(
            run(_without_rows(net, made, rows, units_on(coupling, "scales", 1), gone), inputs), run(pruned, inputs)
        )


def _without_rows(net: QuantizedNet, made: str, rows: list[int], columns: list[int], gone: list[int]) -> Any:
    """The net with float weights instead of blocked ones, zero where units are gone."""
    model = net.build(made)
    meaning = Quantized(np.repeat(net.array("scales"), 4, 0), np.repeat(net.array("zeros"), 4, 0))
    weight = meaning.numbers(net.array("blocked")).astype(np.float32)
    weight[np.isin(rows, gone)] = 0
    for tensor in model.graph.initializer:
        if tensor.name == "w_1":  # what reads the columns
            read = np.array(net.array("w_1"))
            read[np.isin(columns, gone)] = 0
            tensor.CopyFrom(numpy_helper.from_array(read, "w_1"))
    (place,) = [i for i, node in enumerate(model.graph.node) if node.op_type == "DequantizeLinear"]
    output = model.graph.node[place].output[0]
    model.graph.node[place].CopyFrom(helper.make_node("Identity", ["as_float"], [output]))
    model.graph.initializer.append(numpy_helper.from_array(weight, "as_float"))
    return model


def test_scales_of_several_axes_freeze() -> None:
    net = QuantizedNet()
    hidden = net.linear(net.input(["N", 3]), 6)
    scale, zero = net.input([6], "scale"), net.initializer(np.zeros(6), "zero", TensorProto.INT8)
    stepped = net.node("QuantizeLinear", [net.relu(hidden), scale, zero], kind=TensorProto.INT8, axis=-1)
    back = net.node("DequantizeLinear", [stepped, scale, zero], kind=TensorProto.FLOAT, axis=-1)
    coupling = coupled(net.build(net.linear(back, 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 1] == "graph input 'scale' keeps its shape"


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("group", [1, 2, 6])
def test_qlinear_conv_is_exact(axis: int | None, group: int) -> None:
    net = QuantizedNet()
    data = net.quantise(net.input(["N", 3, 4, 4]), zero=128)
    hidden = net.qlinear_conv(data, 6, 3, axis=axis)
    hidden = net.qlinear_conv(hidden, 6, 3, group=group, axis=axis)
    coupling = assert_exact(net.build(net.dequantise(net.qlinear_conv(hidden, 2, axis=axis))), tolerance=1e-9)
    assert coupling.units == (6 if group == 6 else 12)
    contraction = coupling.contractions[1]
    assert contraction.node.input(contraction.weight) == "w_1"


def test_signed_activations_and_no_zero_point() -> None:
    net = QuantizedNet()
    data = net.node("Cast", [net.input(["N", 3, 4, 4])], to=TensorProto.UINT8, kind=TensorProto.UINT8)
    weights = [
        net.initializer(net.random.integers(-5, 6, shape), net.name("w"), TensorProto.INT8)
        for shape in ((6, 3, 1, 1), (2, 6, 1, 1))
    ]
    sums = net.node("ConvInteger", [data, weights[0]], ["N", 6, 4, 4], kind=TensorProto.INT32)
    stepped = net.node(
        "Cast",
        [net.clip(net.node("Cast", [sums], kind=TensorProto.FLOAT, to=TensorProto.FLOAT), 0.0, 99.0)],
        to=TensorProto.UINT8,
        kind=TensorProto.UINT8,
    )
    made = net.node("ConvInteger", [stepped, weights[1]], ["N", 2, 4, 4], kind=TensorProto.INT32)
    coupling = assert_exact(net.build(net.node("Cast", [made], kind=TensorProto.FLOAT, to=TensorProto.FLOAT)))
    assert coupling.units == 6


@pytest.mark.parametrize("axis", [None, 1])
def test_qlinear_matmul_is_exact(axis: int | None) -> None:
    net = QuantizedNet()
    data = net.quantise(net.input(["N", 3]), zero=128)
    for inputs, columns in ((3, 6), (6, 5), (5, 2)):
        out = net.point()
        names = [*data, *net.stored((inputs, columns), axis), *out]
        data = [net.node("QLinearMatMul", names, ["N", columns], kind=TensorProto.UINT8), *out]
    coupling = assert_exact(net.build(net.dequantise(data)), tolerance=1e-9)
    assert coupling.units == 11


def test_rows_with_zero_points_of_their_own_freeze() -> None:
    net = QuantizedNet()
    hidden = net.relu(net.linear(net.input([4, 3]), 6))
    data = net.quantise(hidden)
    rows = [
        net.initializer(np.full(4, value), net.name("row"), kind)
        for value, kind in ((0.05, 1), (100, TensorProto.UINT8))
    ]
    out = net.point()
    made = net.node("QLinearMatMul", [data[0], *rows, *net.stored((6, 2), None), *out], [4, 2], kind=TensorProto.UINT8)
    coupling = coupled(net.build(net.dequantise([made, *out])))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 1] == "rows of the activation have zero points of their own"


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("per_channel", [False, True])
def test_qgemm(transposed: int, per_channel: bool) -> None:
    net = QuantizedNet()
    data = net.quantise(net.input(["N", 3]), zero=128)
    for inputs, columns in ((3, 6), (6, 2)):
        shape = (columns, inputs) if transposed else (inputs, columns)
        weight = net.stored(shape, 1 - transposed if per_channel else None)
        bias = net.initializer(net.random.integers(-99, 99, columns), net.name("b"), TensorProto.INT32)
        out = net.point()
        made = net.runtime("QGemm", [*data, *weight, bias, *out], ["N", columns], transB=transposed)
        data = [made, *out]
    coupling = assert_exact(net.build(net.dequantise(data)), tolerance=1e-9)
    assert coupling.units == 6


def test_quantised_arithmetic_pooling_and_concatenation() -> None:
    net = QuantizedNet()
    data = net.qlinear_conv(net.quantise(net.input(["N", 3, 4, 4])), 6)
    other = net.qlinear_conv(data, 6, 3)
    summed = net.point(0.1)
    data = [net.runtime("QLinearAdd", [*data, *other, *summed], net.shapes[data[0]]), *summed]
    for op, given in (("QLinearLeakyRelu", {"alpha": 0.1}), ("QLinearSigmoid", {})):
        out = net.point(0.02)
        data = [net.runtime(op, [*data, *out], net.shapes[data[0]], **given), *out]
    scaled = net.point(0.02)
    gate = [*net.quantise(net.conv(net.input(["N", 2, 4, 4]), 6), scale=0.1)]
    data = [net.runtime("QLinearMul", [*data, *gate, *scaled], net.shapes[data[0]]), *scaled]
    out = net.point(0.03)
    laid = net.runtime("QLinearConcat", [*out, *data, *other], ["N", 12, 4, 4], axis=1)
    halved = net.point(0.03)
    given = {"kernel_shape": [2, 2], "strides": [2, 2]}
    pooled = [net.runtime("QLinearAveragePool", [laid, *out, *halved], ["N", 12, 2, 2], **given), *halved]
    last = net.point(0.03)
    pooled = [net.runtime("QLinearGlobalAveragePool", [*pooled, *last], ["N", 12, 1, 1], channels_last=0), *last]
    coupling = assert_exact(net.build(net.dequantise(net.qlinear_conv(pooled, 3))), tolerance=STEP)
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0)
    assert coupling.units == 6


def test_channels_last_and_softmax_freeze() -> None:
    net = QuantizedNet()
    data = net.qlinear_conv(net.quantise(net.input(["N", 3, 4, 4])), 6)
    out = net.point(0.004, 0)
    made = net.runtime("QLinearSoftmax", [*data, *out], net.shapes[data[0]], axis=1, opset=13)
    coupling = coupled(net.build(net.dequantise(net.qlinear_conv([made, *out], 2))))
    assert "normalises over the axis" in reasons(coupling)["w_0", 0]
    net = QuantizedNet()
    data = net.qlinear_conv(net.quantise(net.input(["N", 3, 4, 4])), 6)
    turned = net.transpose(data[0], [0, 2, 3, 1])
    out = net.point()
    pooled = net.runtime("QLinearGlobalAveragePool", [turned, *data[1:], *out], ["N", 1, 1, 6], channels_last=1)
    model = net.build(net.dequantise([net.transpose(pooled, [0, 3, 1, 2]), *out]))
    assert reasons(coupled(model))["w_0", 0] == "com.microsoft.QLinearGlobalAveragePool with its channels last"


@pytest.mark.parametrize("op", ["MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantisation_is_exact(op: str, per_channel: bool) -> None:
    """What is removed counts as 0 before the range is taken, which includes 0 in any case."""

    def build(mask: Any) -> Any:
        net = QuantizedNet(seed=3)
        spatial = [4, 4] if op == "ConvInteger" else []
        data = net.input(["N", 3, *spatial])
        hidden = net.relu(net.conv(data, 6) if spatial else net.linear(data, 6))
        # A constant of 1 for every channel, to mask with; the largest channel's range is wider than the others'.
        hidden = net.add(
            hidden, net.initializer(np.reshape([9, 1, 1, 2, 1, 1], (6, *[1] * len(spatial))) * 1.0, "size"), op="Mul"
        )
        hidden = net.add(hidden, net.initializer(np.reshape(mask, (6, *[1] * len(spatial))) * 1.0, "mask"), op="Mul")
        return net, net.build(_dynamic_product(net, hidden, op, per_channel))

    _, model = build(np.ones(6))
    coupling = coupled(model)
    units = units_on(coupling, "mask", 0)
    assert sorted(units) == [0, 1, 2, 3, 4, 5]
    inputs = feeds(model)
    for gone in ([0], [1, 4], [0, 2, 3, 4, 5]):
        mask = np.ones(6)
        mask[gone] = 0
        pruned = check_dynamic(coupling, removal(coupling, [units[place] for place in gone]), inputs)
        assert_close(run(build(mask)[1], inputs), run(pruned, inputs), 1e-6)
        assert values(pruned)["mask"].size == 6 - len(gone)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("states", [False, True])
def test_a_dynamically_quantised_lstm_is_exact(directions: int, per_row: bool, states: bool) -> None:
    """A hidden unit whose gates read nothing stays 0, and is in no range: without it, all else is the same."""
    units, gates = 6, 24

    def build(mask: Any) -> Any:
        net, keep = QuantizedNet(seed=5), np.asarray(mask) != 0
        net.imports["com.microsoft"] = 1
        data = net.relu(net.linear(net.input([5, 2, 3]), 4))
        names, scales = [data], []
        for rows in (4, units):
            size = (directions, gates) if per_row else (directions,)
            zero = 0 if per_row else 3  # ONNX Runtime takes no others by row
            numbers = net.random.integers(-50, 50, (directions, rows, gates))
            stored = np.where(np.tile(keep, 4), numbers, zero)
            names.append(net.initializer(stored, net.name("w"), TensorProto.INT8))
            scales.append(net.initializer(net.random.uniform(0.01, 0.03, size), net.name("scale")))
            scales.append(net.initializer(np.full(size, zero), net.name("zero"), TensorProto.INT8))
        bias = net.random.uniform(-0.5, 0.5, (directions, 2 * gates)) * np.tile(keep, 8)
        first = [net.initializer(net.random.normal(size=(directions, 2, units)) * keep, name) for name in ("h", "c")]
        names += [net.initializer(bias, "bias"), "", *(first if states else ["", ""]), "", *scales]
        direction = "bidirectional" if directions == 2 else "forward"
        shapes = [[5, directions, 2, units], [directions, 2, units]]
        made, last = net.nodes_of(
            "DynamicQuantizeLSTM", names, shapes, domain="com.microsoft", hidden_size=units, direction=direction
        )
        turned = net.transpose(made, [0, 2, 1, 3])
        joined = net.reshape(turned, [5, 2, directions * units], [5, 2, directions * units])
        return net.build(net.linear(joined, 3), net.linear(last, 2))

    model = build(np.ones(units))
    coupling = coupled(model)
    assert sorted(len(group.units) for group in coupling.groups) == [4, 6]
    hidden, inputs = units_on(coupling, "bias", 1)[:units], feeds(model)
    assert unsaturated(model) is not model
    assert_close(run(model, inputs), run(unsaturated(model), inputs), 1e-6)
    for gone in ([0], [1, 4], [0, 2, 3, 4, 5]):
        mask = np.ones(units)
        mask[gone] = 0
        pruned = check_dynamic(coupling, removal(coupling, [hidden[place] for place in gone]), inputs)
        assert_close(run(build(mask), inputs, optimised=False), run(pruned, inputs, optimised=False), 1e-6)
        left = values(pruned)
        assert left["w_2"].shape == (directions, units - len(gone), 4 * (units - len(gone)))
        assert left["scale_1"].shape == ((directions, 4 * (units - len(gone))) if per_row else (directions,))
    inputs_too = removal(coupling, [*hidden[:2], *units_on(coupling, "w_0", 1)[:2]])
    assert values(check_dynamic(coupling, inputs_too, inputs))["w_1"].shape == (directions, 2, 16)


def check_dynamic(coupling: Any, removed: Any, inputs: Any) -> Any:
    """Cut units out, and demand that it equals the masked model of the proof."""
    pruned, _ = remove(coupling, removed)
    expected = run(unsaturated(masked(coupling, removed)), inputs, optimised=False)
    assert_close(expected, run(unsaturated(pruned), inputs), 1e-6)
    return pruned


def _dynamic_product(net: QuantizedNet, hidden: str, op: str, per_channel: bool) -> str:
    spatial = net.shapes[hidden][2:]
    if op == "ConvInteger":
        weight, scale, zero = net.stored((2, 6, 1, 1), None)
    else:
        weight, scale, zero = net.stored((6, 2), 1 if per_channel else None)
    if op == "DynamicQuantizeMatMul":
        return net.runtime(op, [hidden, weight, scale, zero, net.vector(2)], ["N", 2], TensorProto.FLOAT)
    kinds = [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8]
    made = net.nodes_of("DynamicQuantizeLinear", [hidden], [net.shapes[hidden], [], []])
    net.kinds.update(dict(zip(made, kinds, strict=True)))
    if op == "MatMulIntegerToFloat":
        names = [made[0], weight, made[1], scale, made[2], zero, net.vector(2)]
        return net.runtime(op, names, ["N", 2], TensorProto.FLOAT)
    sums = net.node(op, [made[0], weight, made[2], zero], ["N", 2, *spatial], kind=TensorProto.INT32)
    floats = net.node("Cast", [sums], to=TensorProto.FLOAT, kind=TensorProto.FLOAT)
    return net.add(floats, made[1], op="Mul")
