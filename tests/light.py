"""The classic topologies inside the onnx package, with random weights in place of the constants they ship with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
NARROW = {4096: 256}
"""Hidden layers of the old classifiers, narrowed: they hold nine tenths of the weights and add nothing to a test."""


def light(name: str, seed: int = 0, narrow: Mapping[int, int] = NARROW) -> onnx.ModelProto:
    """Return a topology with seeded weights that keep activations at the size they come in.

    The Softmax at the end is taken off: it would hide differences.
    """
    model = onnx.load(str(FOLDER / f"light_{name}.onnx"))
    graph = model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {t.name: list(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = stored[node.input[0]].tolist()
    kept = [node for node in graph.node if node.op_type not in ("ConstantOfShape", "Softmax")]
    last = next((node.input[0] for node in graph.node if node.op_type == "Softmax"), graph.output[0].name)
    random = np.random.default_rng(seed)
    roles = {name: role for node in kept for slot, name in enumerate(node.input) for role in [(node.op_type, slot)]}
    read = {name for node in kept for name in node.input}
    for tensor in [t for t in graph.initializer if t.name in shapes or t.name not in read]:
        graph.initializer.remove(tensor)
    for made, shape in shapes.items():
        if made in read:
            narrowed = [narrow.get(extent, extent) for extent in shape]
            graph.initializer.append(numpy_helper.from_array(_values(random, roles[made], narrowed), made))
    inputs = [value for value in graph.input if value.name in read and value.name not in {*stored, *shapes}]
    weights = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in graph.initializer]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    for field in (graph.node, graph.input, graph.output):
        del field[:]
    graph.node.extend(nodes)
    graph.input.extend([*inputs, *weights])
    graph.output.append(helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
    graph.output[0].CopyFrom(inferred)
    onnx.checker.check_model(model, full_check=True)
    return model


def _values(random: np.random.Generator, role: tuple[str, int], shape: list[int]) -> np.ndarray:
    op, slot = role
    if op in ("Conv", "Gemm") and slot == 1:
        values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif op in ("BatchNormalization", "Mul", "Unsqueeze") and slot in (0, 1, 4):
        values = random.uniform(0.5, 1.2, shape)
    else:
        values = random.uniform(-0.2, 0.2, shape)
    return values.astype(np.float32)
