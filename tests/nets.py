"""Small models, built operator by operator, in the form that each operator set asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Extent = int | str

IR_OF_OPSET = {8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
"""The IR version that was current when the operator set came out."""


class Net:
    """A model in the making; knows the shape of every tensor that it has made.

    Parameters
    ----------
    opset : int
        Operator set; attributes become inputs where it says so.
    seed : int
        Of the weights.
    ir_version : int, optional
        The one current with the operator set by default. Before 4, initializers are listed as inputs.
    listed : bool
        Whether initializers are listed as graph inputs in any case.
    constants : bool
        Whether shape constants are Constant nodes instead of initializers.
    kind : int
        Element type of inputs and weights, as in ``onnx.TensorProto``.
    """

    def __init__(
        self,
        opset: int = 17,
        seed: int = 0,
        *,
        ir_version: int | None = None,
        listed: bool = False,
        constants: bool = False,
        kind: int = TensorProto.FLOAT,
    ) -> None:
        self.opset = opset
        self.ir_version = ir_version or IR_OF_OPSET[opset]
        self.listed = listed or self.ir_version < 4
        self.constants = constants and opset >= 9  # before, Constant makes floats only
        self.kind = kind
        self.random = np.random.default_rng(seed)
        self.shapes: dict[str, list[Extent]] = {}
        self.kinds: dict[str, int] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.imports = {"": opset}

    # -- tensors -------------------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        """Return a name that no tensor has yet."""
        count = sum(1 for known in self.shapes if known.rsplit("_", 1)[0] == stem)
        return f"{stem}_{count}"

    def _made(self, name: str, shape: Sequence[Extent], kind: int | None = None) -> str:
        self.shapes[name] = list(shape)
        self.kinds[name] = self.kind if kind is None else kind
        return name

    def input(self, shape: Sequence[Extent], name: str = "") -> str:
        """Add a graph input."""
        made = self._made(name or self.name("x"), shape)
        self.inputs.append(made)
        return made

    def output(self, name: str) -> str:
        """Make a tensor a graph output."""
        if name not in self.outputs:
            self.outputs.append(name)
        return name

    def initializer(self, values: npt.ArrayLike, name: str = "c", kind: int | None = None) -> str:
        """Add an initializer of these values, of the net's element type unless they are integers."""
        array = np.asarray(values)
        if kind is None:
            kind = self.kind if array.dtype.kind == "f" else helper.np_dtype_to_tensor_dtype(array.dtype)
        array = array.astype(helper.tensor_dtype_to_np_dtype(kind))
        made = self._made(name if name not in self.shapes else self.name(name), array.shape, kind)
        self.initializers.append(numpy_helper.from_array(array, made))
        return made

    def weight(self, shape: Sequence[int], name: str = "w", fan_in: int | None = None) -> str:
        """Add random weights that keep the size of what runs through them."""
        fan_in = fan_in or int(np.prod(shape[1:])) or 1
        return self.initializer(self.random.normal(0, np.sqrt(2 / fan_in), tuple(shape)), self.name(name))

    def vector(self, size: int, name: str = "b", low: float = -0.5, high: float = 0.5) -> str:
        """Add a random vector."""
        return self.initializer(self.random.uniform(low, high, size), self.name(name))

    def constant(self, values: npt.ArrayLike, name: str = "shape") -> str:
        """Add a shape constant: an initializer, or a Constant node where the net asks for them."""
        if not self.constants:
            return self.initializer(values, name)
        array = np.asarray(values)
        kind = self.kind if array.dtype.kind == "f" else helper.np_dtype_to_tensor_dtype(array.dtype)
        made = self._made(self.name(name), array.shape, kind)
        tensor = numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind)))
        self.nodes.append(helper.make_node("Constant", [], [made], value=tensor))
        return made

    def array(self, name: str) -> Array:
        """Return the values of an initializer."""
        return np.asarray(numpy_helper.to_array(next(t for t in self.initializers if t.name == name)))

    # -- operators -----------------------------------------------------------------------------------------

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        shape: Sequence[Extent] | None = None,
        *,
        kind: int | None = None,
        name: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node of one output; its shape is that of the first input unless told."""
        (made,) = self.nodes_of(
            op,
            inputs,
            [self.shapes[inputs[0]] if shape is None else shape],
            kind=kind,
            name=name,
            domain=domain,
            **attributes,
        )
        return made

    def nodes_of(
        self,
        op: str,
        inputs: Sequence[str],
        shapes: Sequence[Sequence[Extent]],
        *,
        kind: int | None = None,
        name: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node of several outputs of these shapes."""
        known = self.kinds[inputs[0]] if kind is None else kind
        outputs = [self._made(self.name(op.lower()), shape, known) for shape in shapes]
        made = helper.make_node(op, inputs, outputs, name=name or f"{outputs[0]}_node", domain=domain, **attributes)
        self.nodes.append(made)
        return outputs

    def form(self, since: int, values: npt.ArrayLike, name: str) -> tuple[list[str], dict[str, Any]]:
        """Return integers as an input (since that operator set) or as an attribute of that name."""
        array = np.asarray(values, dtype=np.int64)
        if self.opset >= since:
            return [self.constant(array, name)], {}
        return [], {name: array.tolist()}

    def conv(
        self,
        data: str,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        group: int = 1,
        bias: bool = True,
        weight: str = "",
    ) -> str:
        """Add a convolution that pads so that stride 1 keeps the extents; of any rank."""
        batch, inputs, *spatial = self.shapes[data]
        weight = weight or self.weight([channels, int(inputs) // group, *[kernel] * len(spatial)])
        names = [data, weight, *([self.vector(channels)] if bias else [])]
        shape = [batch, channels, *[s if isinstance(s, str) else (s - 1) // stride + 1 for s in spatial]]
        rank = len(spatial)
        return self.node(
            "Conv",
            names,
            shape,
            group=group,
            kernel_shape=[kernel] * rank,
            strides=[stride] * rank,
            pads=[kernel // 2] * (2 * rank),
        )

    def depthwise(self, data: str, multiplier: int = 1, kernel: int = 3, *, stride: int = 1, bias: bool = True) -> str:
        """Add a depthwise convolution."""
        channels = int(self.shapes[data][1])
        return self.conv(data, channels * multiplier, kernel, stride=stride, group=channels, bias=bias)

    def batch_norm(self, data: str) -> str:
        """Add a BatchNormalization whose shift is not small."""
        channels = int(self.shapes[data][1])
        scale, variance = (self.vector(channels, name, 0.5, 1.5) for name in ("scale", "var"))
        shift, mean = self.vector(channels, "shift", -1, 1), self.vector(channels, "mean")
        return self.node("BatchNormalization", [data, scale, shift, mean, variance], epsilon=1e-2)

    def relu(self, data: str) -> str:
        """Add a Relu."""
        return self.node("Relu", [data])

    def block(self, data: str, channels: int, kernel: int = 3, *, stride: int = 1) -> str:
        """Add convolution, normalisation and Relu."""
        return self.relu(self.batch_norm(self.conv(data, channels, kernel, stride=stride, bias=False)))

    def clip(self, data: str, low: float = 0.0, high: float = 6.0) -> str:
        """Add a Clip."""
        if self.opset < 11:
            return self.node("Clip", [data], min=low, max=high)
        return self.node("Clip", [data, self.initializer(low, "low"), self.initializer(high, "high")])

    def dropout(self, data: str) -> str:
        """Add a Dropout, which does nothing at inference."""
        if self.opset < 12:
            return self.node("Dropout", [data], ratio=0.3)
        return self.node("Dropout", [data, self.initializer(0.3, "ratio")])

    def add(self, *names: str, op: str = "Add") -> str:
        """Add an elementwise operator with broadcasting."""
        rank = max(len(self.shapes[name]) for name in names)
        lifted: list[list[Extent]] = [[*[1] * (rank - len(self.shapes[n])), *self.shapes[n]] for n in names]
        shape = [next((e for e in extents if e != 1), 1) for extents in zip(*lifted, strict=True)]
        return self.node(op, names, shape)

    def concat(self, *names: str, axis: int = 1) -> str:
        """Add a Concat."""
        shape = list(self.shapes[names[0]])
        shape[axis] = sum(int(self.shapes[name][axis]) for name in names)
        return self.node("Concat", names, shape, axis=axis)

    def split(self, data: str, sizes: Sequence[int], axis: int = 1, *, told: bool = True) -> list[str]:
        """Add a Split; with ``told`` false into equal parts, without saying their sizes."""
        inputs, attributes = self.form(13, sizes, "split") if told else ([], {})
        if not told and self.opset >= 18:
            attributes = {"num_outputs": len(sizes)}
        shapes = [[*self.shapes[data][:axis], size, *self.shapes[data][axis + 1 :]] for size in sizes]
        return self.nodes_of("Split", [data, *inputs], shapes, axis=axis, **attributes)

    def slice(self, data: str, cuts: dict[int, tuple[int, int, int]]) -> str:
        """Add a Slice: (start, end, step) by axis."""
        shape = list(self.shapes[data])
        for axis, (start, end, step) in cuts.items():
            shape[axis] = len(range(int(shape[axis]))[start:end:step])
        starts, ends, steps = ([cut[place] for cut in cuts.values()] for place in range(3))
        if self.opset >= 10:
            given = [("starts", starts), ("ends", ends), ("axes", list(cuts)), ("steps", steps)]
            names = [self.constant(np.array(value, dtype=np.int64), name) for name, value in given]
            return self.node("Slice", [data, *names], shape)
        assert set(steps) == {1}, "Slice has no steps before operator set 10"
        return self.node("Slice", [data], shape, starts=starts, ends=ends, axes=list(cuts))

    def pad(self, data: str, pads: dict[int, tuple[int, int]], *, value: float = 0.0, axes: bool = False) -> str:
        """Add a Pad: (before, after) by axis; since operator set 18 with an axes input if asked for."""
        shape = list(self.shapes[data])
        for axis, (front, back) in pads.items():
            shape[axis] = int(shape[axis]) + front + back
        named = list(pads) if axes else list(range(len(shape)))
        flat = [pads.get(axis, (0, 0))[side] for side in (0, 1) for axis in named]
        if self.opset < 11:
            return self.node("Pad", [data], shape, pads=flat, value=value)
        names = [self.constant(np.array(flat, dtype=np.int64), "pads"), self.initializer(value, "value")]
        if axes:
            names.append(self.constant(np.array(named, dtype=np.int64), "axes"))
        return self.node("Pad", [data, *names], shape)

    def pool(self, data: str, op: str = "MaxPool") -> str:
        """Add a pooling of 2x2 with stride 2."""
        shape = [*self.shapes[data][:2], *(int(extent) // 2 for extent in self.shapes[data][2:])]
        return self.node(op, [data], shape, kernel_shape=[2, 2], strides=[2, 2])

    def global_pool(self, data: str, op: str = "GlobalAveragePool") -> str:
        """Add a global pooling."""
        return self.node(op, [data], [*self.shapes[data][:2], 1, 1])

    def flatten(self, data: str) -> str:
        """Add a Flatten behind the batch axis."""
        batch, *others = self.shapes[data]
        return self.node("Flatten", [data], [batch, int(np.prod([int(e) for e in others]))])

    def reshape(self, data: str, target: Sequence[int], shape: Sequence[Extent], constant: str = "") -> str:
        """Add a Reshape to ``target`` (0 and -1 as in ONNX), which makes ``shape``."""
        return self.node("Reshape", [data, constant or self.constant(np.array(target, dtype=np.int64))], shape)

    def transpose(self, data: str, order: Sequence[int]) -> str:
        """Add a Transpose."""
        return self.node("Transpose", [data], [self.shapes[data][axis] for axis in order], perm=list(order))

    def squeeze(self, data: str, axes: Sequence[int]) -> str:
        """Add a Squeeze."""
        inputs, attributes = self.form(13, axes, "axes")
        shape = [extent for axis, extent in enumerate(self.shapes[data]) if axis not in axes]
        return self.node("Squeeze", [data, *inputs], shape, **attributes)

    def unsqueeze(self, data: str, axes: Sequence[int]) -> str:
        """Add an Unsqueeze."""
        inputs, attributes = self.form(13, axes, "axes")
        shape = list(self.shapes[data])
        for axis in sorted(axes):
            shape.insert(axis, 1)
        return self.node("Unsqueeze", [data, *inputs], shape, **attributes)

    def reduce(self, data: str, axes: Sequence[int], op: str = "ReduceMean", *, keepdims: bool = True) -> str:
        """Add a reduction."""
        inputs, attributes = self.form(13 if op == "ReduceSum" else 18, axes, "axes")
        extents = [1 if axis in axes else extent for axis, extent in enumerate(self.shapes[data])]
        shape = extents if keepdims else [e for axis, e in enumerate(self.shapes[data]) if axis not in axes]
        return self.node(op, [data, *inputs], shape, keepdims=int(keepdims), **attributes)

    def linear(self, data: str, units: int, *, bias: bool = True) -> str:
        """Add MatMul on the last axis, and an Add."""
        inputs = int(self.shapes[data][-1])
        weight = self.weight([inputs, units], fan_in=inputs)
        made = self.node("MatMul", [data, weight], [*self.shapes[data][:-1], units])
        return self.add(made, self.vector(units)) if bias else made

    def gemm(self, data: str, units: int, *, bias: bool = True, transposed: bool = True, **attributes: Any) -> str:
        """Add a Gemm, its weight stored transposed or not."""
        inputs = int(self.shapes[data][1])
        shape = [units, inputs] if transposed else [inputs, units]
        bias = bias or self.opset < 11  # before, Gemm has a bias always
        names = [data, self.weight(shape, fan_in=inputs), *([self.vector(units)] if bias else [])]
        return self.node("Gemm", names, [self.shapes[data][0], units], transB=int(transposed), **attributes)

    def shuffle(self, data: str, groups: int) -> str:
        """Add a channel shuffle."""
        batch, channels, height, width = self.shapes[data]
        per_group = int(channels) // groups
        rows = [groups, per_group, height, width]
        apart = self.reshape(data, [0, groups, per_group, int(height), int(width)], [batch, *rows])
        turned = self.transpose(apart, [0, 2, 1, 3, 4])
        return self.reshape(turned, [0, int(channels), int(height), int(width)], [batch, channels, height, width])

    def gate(self, data: str, squeezed: int) -> str:
        """Add a squeeze-excite gate."""
        channels = int(self.shapes[data][1])
        inner = self.relu(self.conv(self.global_pool(data), squeezed))
        return self.add(data, self.node("Sigmoid", [self.conv(inner, channels)]), op="Mul")

    # -- the whole -----------------------------------------------------------------------------------------

    def build(self, *outputs: str) -> onnx.ModelProto:
        """Return the checked model."""
        for name in outputs:
            self.output(name)

        def value(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, self.kinds[name], self.shapes[name])

        listed = [t.name for t in self.initializers] if self.listed else []
        graph = helper.make_graph(
            self.nodes,
            "net",
            [value(name) for name in (*self.inputs, *listed)],
            [value(name) for name in self.outputs],
            self.initializers,
        )
        imports = [helper.make_opsetid(domain, version) for domain, version in self.imports.items()]
        model = helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version)
        onnx.checker.check_model(model, full_check=True)
        return model
