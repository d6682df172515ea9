"""Random graphs for hypothesis: valid models of the operators that have a rule, in the forms of many operator sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.nets import Net

OPSETS = (8, 9, 10, 11, 12, 13, 15, 17, 18, 21)

Stage = Callable[[Net, str, "Choices"], str]


class Choices:
    """Small random choices within a stage, all from one seed."""

    def __init__(self, seed: bytes) -> None:
        self._random = np.random.default_rng(list(seed))

    def below(self, count: int) -> int:
        """Return a number in [0, count)."""
        return int(self._random.integers(count))

    def flag(self) -> bool:
        """Return true or false."""
        return bool(self.below(2))

    def of(self, *options: int) -> int:
        """Return one of some numbers."""
        return options[self.below(len(options))]


def _channels(net: Net, data: str) -> int:
    return int(net.shapes[data][1])


def _activation(net: Net, data: str, choices: Choices) -> str:
    place = choices.below(8)
    if place == 0:
        return net.clip(data)
    if place == 1:
        return net.node("Sigmoid", [data])
    if place == 2:
        return net.node("LeakyRelu", [data], alpha=0.1)
    if place == 3:
        slope = net.initializer(net.random.uniform(0.1, 0.4, (_channels(net, data), 1, 1)), net.name("slope"))
        return net.node("PRelu", [data, slope])
    if place == 4:
        return net.node("HardSigmoid", [data])
    return net.relu(data)


def conv(net: Net, data: str, choices: Choices) -> str:
    """Convolution, perhaps normalised, activated."""
    stride = 2 if int(net.shapes[data][2]) >= 4 and choices.flag() else 1
    made = net.conv(data, choices.of(4, 6, 8), choices.of(1, 3), stride=stride, bias=choices.flag())
    if choices.flag():
        made = net.batch_norm(made)
    return _activation(net, made, choices)


def grouped(net: Net, data: str, choices: Choices) -> str:
    """A convolution in groups, between two plain ones, as in ResNeXt; or straight on what comes."""
    if choices.flag() or _channels(net, data) % 2 or _channels(net, data) < 4:
        data = net.relu(net.conv(data, 8, 1))
    group = 4 if _channels(net, data) == 8 and choices.flag() else 2
    return net.relu(net.conv(data, choices.of(4, 8, 12), choices.of(1, 3), group=group, bias=choices.flag()))


def depthwise(net: Net, data: str, choices: Choices) -> str:
    """A depthwise convolution, perhaps of two outputs a channel."""
    return _activation(net, net.depthwise(data, choices.of(1, 2), bias=choices.flag()), choices)


def residual(net: Net, data: str, choices: Choices) -> str:
    """An Add around one or two convolutions, perhaps with a projection."""
    inner = net.relu(net.conv(data, choices.of(4, 8), 3))
    channels = _channels(net, data)
    if choices.flag():
        channels = 8
        data = net.conv(data, channels, 1, bias=False)
    inner = net.conv(inner, channels, 3)
    third = [net.conv(inner, channels, 1)] if choices.below(3) == 0 else []
    op = ("Add", "Sum", "Max", "Mean")[choices.below(4)] if third else "Add"
    joined = [data, inner, *(third if op != "Add" else [])]
    return net.relu(net.add(*(joined if choices.flag() else joined[::-1]), op=op))


def option_a(net: Net, data: str, choices: Choices) -> str:
    """A residual whose shortcut pads the channels, in the middle of the new ones or to one side."""
    channels = _channels(net, data)
    front, back = choices.of(0, 2, 4), choices.of(0, 2)
    inner = net.conv(net.relu(net.conv(data, 6, 3)), channels + front + back, 3)
    shortcut = net.pad(
        data,
        {1: (front, back)},
        value=0.5 if choices.flag() else 0.0,
        axes=net.opset >= 18 and choices.flag(),
    )
    return net.relu(net.add(shortcut, inner))


def gate(net: Net, data: str, choices: Choices) -> str:
    """A squeeze-excite gate."""
    return net.gate(data, choices.of(2, 4))


def dense(net: Net, data: str, choices: Choices) -> str:
    """Concat of what came and of what is made of it."""
    made = net.relu(net.conv(data, choices.of(2, 4), 3))
    return net.concat(made, data) if choices.flag() else net.concat(data, made)


def split(net: Net, data: str, choices: Choices) -> str:
    """Parts that go different ways and meet again."""
    channels = _channels(net, data)
    if channels < 2:
        data, channels = net.conv(data, 4, 1), 4
    told = choices.flag() or channels % 2 == 1
    first = choices.of(1, channels // 2, channels - 1) if told else channels // 2
    left, right = net.split(data, [first, channels - first], told=told)
    right = net.relu(net.conv(right, choices.of(2, 4), 1))
    return net.concat(right, left) if choices.flag() else net.concat(left, right)


def cut(net: Net, data: str, choices: Choices) -> str:
    """A Slice of the channels, and perhaps of rows in steps."""
    channels = _channels(net, data)
    start = choices.below(max(channels // 2, 1))
    end = choices.of(channels, -1 if channels - start > 1 else channels, 2**31 - 1)
    cuts = {1: (start, end, 1)}
    if choices.flag() and int(net.shapes[data][2]) >= 2 and net.opset >= 10:
        cuts[2] = (0, 2**31 - 1, 2)
    return net.slice(data, cuts)


def pool(net: Net, data: str, choices: Choices) -> str:
    """A pooling."""
    if int(net.shapes[data][2]) < 2 or int(net.shapes[data][3]) < 2:
        return data
    return net.pool(data, "MaxPool" if choices.flag() else "AveragePool")


def shuffle(net: Net, data: str, choices: Choices) -> str:
    """A channel shuffle."""
    if _channels(net, data) % 2:
        data = net.relu(net.conv(data, 8, 1))
    return net.shuffle(data, 2)


def moves(net: Net, data: str, choices: Choices) -> str:
    """The channels laid out along two axes or three, moved, perhaps used apart or in parts, and merged again."""
    if _channels(net, data) % 4:
        data = net.relu(net.conv(data, choices.of(8, 12), 1))
    batch, channels, height, width = net.shapes[data]
    quarter, space = int(channels) // 4, [int(height), int(width)]
    factors = ([4, quarter], [quarter, 4], [2, 2, quarter], [2, quarter, 2])[choices.below(4)]
    made = net.reshape(data, [0, *factors, *space], [batch, *factors, *space])
    if choices.flag():  # the last of the channels' axes merged with the rows, and all apart again
        merged = [*factors[:-1], factors[-1] * space[0], space[1]]
        made = net.reshape(net.reshape(made, [0, *merged], [batch, *merged]), [0, *factors, *space], net.shapes[made])
    for _ in range(1 + choices.below(2)):
        axis = 1 + choices.below(len(factors))
        extent, place = int(net.shapes[made][axis]), choices.below(6)
        if place == 0:
            shape = [extent, *[1] * (len(net.shapes[made]) - axis - 1)]
            scale = net.initializer(net.random.uniform(0.5, 1.5, shape), net.name("k"))
            made = net.add(made, scale, op="Mul")
        elif place == 1 and extent > 1:
            first = 1 + choices.below(extent - 1)
            made = net.concat(*net.split(made, [first, extent - first], axis)[::-1], axis=axis)
        elif place == 2 and extent > 1:  # a cyclic shift
            first = 1 + choices.below(extent - 1)
            parts = [net.slice(made, {axis: cut}) for cut in ((first, 2**31 - 1, 1), (0, first, 1))]
            made = net.concat(*parts, axis=axis)
        else:
            order = [0, *(1 + net.random.permutation(len(factors))), len(factors) + 1, len(factors) + 2]
            made = net.transpose(made, [int(other) for other in order])
    return net.reshape(made, [0, int(channels), *space], [batch, channels, height, width])


def channels_last(net: Net, data: str, choices: Choices) -> str:
    """MatMul on the channels, brought to the last axis and back."""
    turned = net.transpose(data, [0, 2, 3, 1])
    made = net.relu(net.linear(turned, choices.of(4, 6), bias=choices.flag()))
    return net.transpose(made, [0, 3, 1, 2])


def tokens(net: Net, data: str, choices: Choices) -> str:
    """Spatial axes merged to one, a MatMul on the channels, and back."""
    batch, channels, height, width = net.shapes[data]
    size = int(height) * int(width)
    merged = net.reshape(data, [0, 0, -1] if choices.flag() else [0, int(channels), size], [batch, channels, size])
    made = net.relu(net.linear(net.transpose(merged, [0, 2, 1]), 6))
    back = net.transpose(made, [0, 2, 1])
    return net.reshape(back, [0, 6, int(height), int(width)], [batch, 6, height, width])


def _as_tokens(net: Net, data: str) -> str:
    """[N, C, H, W] as [N, H*W, C]."""
    batch, channels, height, width = net.shapes[data]
    size = int(height) * int(width)
    return net.transpose(net.reshape(data, [0, int(channels), size], [batch, channels, size]), [0, 2, 1])


def _as_map(net: Net, tokens: str, like: str) -> str:
    """[N, H*W, C] as [N, C, H, W]."""
    batch, _, height, width = net.shapes[like]
    channels = int(net.shapes[tokens][2])
    turned = net.transpose(tokens, [0, 2, 1])
    return net.reshape(turned, [0, channels, int(height), int(width)], [batch, channels, height, width])


def attention(net: Net, data: str, choices: Choices) -> str:
    """Multi-head attention between the positions: projections apart or in one, perhaps of fewer keys and values."""
    tokens = _as_tokens(net, data)
    batch, length, _ = net.shapes[tokens]
    heads, size, parts = choices.of(2, 3), choices.of(2, 4), choices.below(3)

    def apart(name: str, *extents: int) -> str:
        return net.reshape(name, [0, int(length), *extents], [batch, length, *extents])

    if parts == 0:  # [N, T, 3, heads, size] -> [3, N, heads, T, size]
        packed = net.transpose(apart(net.linear(tokens, 3 * heads * size), 3, heads, size), [2, 0, 3, 1, 4])
        query, key, value = (
            net.node("Gather", [packed, net.constant(np.array(place))], net.shapes[packed][1:], axis=0)
            for place in range(3)
        )
    else:
        query, key, value = (
            net.transpose(apart(net.linear(tokens, heads * size), heads, size), [0, 2, 1, 3]) for _ in range(3)
        )
    if parts == 1:
        query = net.add(query, net.initializer(net.random.uniform(0.5, 2, (heads, 1, 1)), net.name("t")), op="Mul")
    product = net.node("MatMul", [query, net.transpose(key, [0, 1, 3, 2])], [batch, heads, length, length])
    mixed = net.node("MatMul", [net.node("Softmax", [product], axis=3), value], [batch, heads, length, size])
    merged = net.reshape(
        net.transpose(mixed, [0, 2, 1, 3]), [0, int(length), heads * size], [batch, length, heads * size]
    )
    return _as_map(net, net.linear(merged, 6), data)


def recurrent(net: Net, data: str, choices: Choices) -> str:
    """An LSTM, GRU or RNN over the positions, in one or both directions."""
    tokens = net.transpose(_as_tokens(net, data), [1, 0, 2])
    length, batch, channels = net.shapes[tokens]
    op, gates = (("LSTM", 4), ("GRU", 3), ("RNN", 1))[choices.below(3)]
    directions, hidden = choices.of(1, 2), choices.of(3, 4)
    names = [tokens, net.weight([directions, gates * hidden, int(channels)], fan_in=int(channels))]
    names.append(net.weight([directions, gates * hidden, hidden], fan_in=hidden))
    names += [net.initializer(net.random.uniform(-0.5, 0.5, (directions, 2 * gates * hidden)), net.name("b"))]
    made = net.node(
        op,
        names,
        [length, directions, batch, hidden],
        hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
    )
    turned = net.transpose(made, [2, 0, 1, 3])
    width = directions * hidden
    return _as_map(net, net.reshape(turned, [0, int(length), width], [batch, length, width]), data)


def upsampled(net: Net, data: str, choices: Choices) -> str:
    """A transposed convolution, or channels laid out as pixels, and back to the extent by pooling."""
    batch, _, height, width = net.shapes[data]
    if choices.flag():
        weight = net.weight([_channels(net, data), 5, 2, 2])
        large = [batch, 5, 2 * int(height), 2 * int(width)]
        return net.pool(net.relu(net.node("ConvTranspose", [data, weight], large, strides=[2, 2])))
    made = net.relu(net.conv(data, 12, 1))
    rows, columns = int(height), int(width)
    apart = net.reshape(made, [0, 3, 2, 2, rows, columns], [batch, 3, 2, 2, rows, columns])
    turned = net.transpose(apart, [0, 1, 4, 2, 5, 3])
    return net.pool(net.reshape(turned, [0, 3, 2 * rows, 2 * columns], [batch, 3, 2 * rows, 2 * columns]))


def group_norm(net: Net, data: str, choices: Choices) -> str:
    """Group normalisation as exporters write it."""
    if _channels(net, data) % 2:
        data = net.relu(net.conv(data, 8, 1))
    batch, channels, height, width = net.shapes[data]
    rest = int(channels) * int(height) * int(width) // 2
    ones, zeros = (net.initializer(np.full(2, value), net.name("n")) for value in (1.0, 0.0))
    apart = net.reshape(data, [0, 2, -1], [batch, 2, rest])
    normal = net.node("InstanceNormalization", [apart, ones, zeros], epsilon=1e-2)
    back = net.reshape(normal, [0, int(channels), int(height), int(width)], net.shapes[data])
    return net.add(back, net.initializer(net.random.uniform(0.5, 1.5, (int(channels), 1, 1)), net.name("k")), op="Mul")


def over_channels(net: Net, data: str, choices: Choices) -> str:
    """An operator that reads all channels at once."""
    place = choices.below(4)
    if place == 0:
        return net.node("Softmax", [data], axis=1)
    if place == 1:
        return net.node("LRN", [data], size=3)
    if place == 2:
        return net.add(data, net.reduce(data, [1]), op="Sub")
    return net.node("LogSoftmax", [data], axis=1)


def over_space(net: Net, data: str, choices: Choices) -> str:
    """An operator that reads all rows and columns at once."""
    place = choices.below(3)
    if place == 0:
        return net.add(data, net.reduce(data, [2, 3], (choices.below(2) and "ReduceMax") or "ReduceMean"), op="Sub")
    if place == 1:
        return net.node("Softmax", [data], axis=3)
    pooled = net.reduce(data, [2, 3], "ReduceSum", keepdims=False)
    return net.add(data, net.unsqueeze(pooled, [2, 3]))


def constant(net: Net, data: str, choices: Choices) -> str:
    """A constant for each channel, for all, or for each position."""
    channels = _channels(net, data)
    shape = ((channels, 1, 1), (1, channels, 1, 1), (), (1,), (channels, *(int(e) for e in net.shapes[data][2:])))
    name = net.initializer(net.random.uniform(0.5, 1.5, shape[choices.below(5)]), net.name("k"))
    op = ("Div", "Add", "Mul", "Sub", "Max")[choices.below(5)]
    return net.add(data, name, op=op) if op == "Div" or choices.flag() else net.add(name, data, op=op)


def shared(net: Net, data: str, choices: Choices) -> str:
    """One weight, used twice: one after the other, or side by side."""
    channels = _channels(net, data)
    weight = net.weight([channels, channels, 1, 1])
    first = net.relu(net.conv(data, channels, 1, weight=weight))
    if choices.flag():
        return net.relu(net.conv(first, channels, 1, weight=weight))
    return net.add(first, net.conv(net.pad(data, {2: (0, 0)}), channels, 1, weight=weight))


def idle(net: Net, data: str, choices: Choices) -> str:
    """Something that does nothing, or comes back to where it was."""
    place = choices.below(4)
    if place == 0:
        return net.node("Identity", [data])
    if place == 1:
        return net.dropout(data)
    if place == 2:
        wide = net.node("Cast", [data], kind=onnx.TensorProto.DOUBLE, to=onnx.TensorProto.DOUBLE)
        return net.node("Cast", [wide], kind=onnx.TensorProto.FLOAT, to=onnx.TensorProto.FLOAT)
    return net.squeeze(net.unsqueeze(data, [2]), [2])


def second_input(net: Net, data: str, choices: Choices) -> str:
    """Another graph input joins, by Add or by Concat."""
    batch, channels, height, width = net.shapes[data]
    if choices.flag():
        return net.add(data, net.input([batch, channels, height, width]))
    return net.concat(data, net.input([batch, 3, height, width]))


def second_output(net: Net, data: str, choices: Choices) -> str:
    """What is there becomes a graph output, or what a convolution makes of it does."""
    net.output(data if choices.flag() and data not in net.inputs else net.conv(data, 3, 1))
    return data


STAGES: tuple[Stage, ...] = (
    conv,
    grouped,
    depthwise,
    residual,
    option_a,
    gate,
    dense,
    split,
    cut,
    pool,
    shuffle,
    moves,
    channels_last,
    tokens,
    attention,
    recurrent,
    upsampled,
    group_norm,
    over_channels,
    over_space,
    constant,
    shared,
    idle,
    second_input,
    second_output,
)


def _head(net: Net, data: str, choices: Choices) -> str:
    """From [N, C, H, W] to the last output."""
    place = choices.below(9)
    batch, channels, height, width = net.shapes[data]
    size = int(channels) * int(height) * int(width)
    if place == 0:
        return net.conv(data, 3, 1)
    if place == 1:
        return net.gemm(net.flatten(data), 5, transposed=choices.flag())
    if place == 2:
        flat = net.flatten(net.global_pool(data))
        return net.node("LogSoftmax" if choices.flag() else "Softmax", [net.gemm(flat, 5)], axis=1)
    if place == 3:
        flat = net.reshape(data, [-1, size] if choices.flag() else [0, -1], [batch, size])
        return net.linear(net.relu(net.gemm(flat, 6, alpha=0.5, beta=2.0)), 4)
    if place == 4:
        merged = net.reshape(data, [0, 0, -1], [batch, channels, int(height) * int(width)])
        return net.linear(net.reduce(merged, [2], keepdims=False), 4)
    if place == 5:
        return net.gemm(net.squeeze(net.global_pool(data, "GlobalMaxPool"), [2, 3]), 4, bias=False)
    if place == 6:
        return net.gemm(net.relu(net.gemm(net.flatten(net.transpose(data, [0, 2, 3, 1])), 6)), 4)
    if place == 7 and batch == 1:
        pooled = net.global_pool(data)
        kept = [extent for extent in net.shapes[pooled] if extent != 1]
        return net.gemm(net.reshape(net.node("Squeeze", [pooled], kept), [1, -1], [1, channels]), 4)
    return net.linear(net.relu(net.linear(net.transpose(data, [0, 2, 3, 1]), 6)), 3)


@st.composite
def graphs(draw: st.DrawFn, stage: Stage = conv) -> onnx.ModelProto:
    """Random convolutional networks: a stem, up to six stages of any kind and one of a given kind, a head.

    Hypothesis draws the stages, so that a failing network shrinks to the few that matter; what each looks like
    comes from a seed, so that no two examples are alike.
    """
    stages = draw(st.lists(st.sampled_from(STAGES), max_size=6))
    stages.insert(draw(st.integers(0, len(stages))), stage)
    choices = Choices(draw(st.binary(min_size=8, max_size=8)))
    net = Net(choices.of(*OPSETS), choices.below(2**16), listed=choices.below(4) == 0, constants=choices.flag())
    batch = "N" if choices.flag() else choices.of(1, 2)
    extent = choices.of(4, 6, 8)
    data = conv(net, net.input([batch, choices.of(1, 3), extent, extent]), choices)
    for made in stages:
        data = made(net, data, choices)
    return net.build(_head(net, data, choices))


def fractions() -> st.SearchStrategy[float | None]:
    """How much to remove: a share of the units, or None for all but one of each group."""
    return st.sampled_from([0.1, 0.5, 0.9, None])


def seeds() -> st.SearchStrategy[int]:
    """Seeds of numpy's generators."""
    return st.integers(0, int(np.iinfo(np.uint32).max))
