"""Networks as torch exports them: whatever is removed, the rest is the same function."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from graphprune.ir.surgery import remove
from graphprune.verify.masking import masked
from tests.architectures.exporting import OPSETS, Exporter
from tests.architectures.networks import NETWORKS, OPSET, exported
from tests.oracles import assert_close, assert_exact, assert_reproduces, coupled, random_removal, run

EXPORTERS: list[Exporter] = ["script", "dynamo"]
VARIED: list[tuple[str, Exporter, int]] = [
    *(
        (name, "script", opset)
        for opset in OPSETS["script"]
        for name in ("groupnorm", "encoder", "vit", "lstm_tagger")
        if opset != OPSET["script"]
    ),
    ("encoder_function", "dynamo", 18),
    ("lstm_words", "dynamo", 18),
    ("groupnorm", "dynamo", 21),  # GroupNormalization of its own from here on
    ("encoder_function", "dynamo", 23),  # Attention
    ("llama", "dynamo", 24),
    ("vit", "dynamo", OPSETS["dynamo"][-1]),
]
"""What is exported to other operator sets, and to which."""
DYNAMIC: list[tuple[str, Exporter]] = [
    *((name, "script") for name in ("resnet_basic", "shufflenet_v2", "encoder", "vit", "llama", "lstm_tagger")),
    *((name, "dynamo") for name in ("shufflenet_v2", "encoder", "causal_function", "llama", "lstm_tagger")),
]
HALVES = {"float16": (torch.float16, TensorProto.FLOAT16), "bfloat16": (torch.bfloat16, TensorProto.BFLOAT16)}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_removal_is_exact(name: str, exporter: Exporter) -> None:
    model, inputs = exported(name, exporter), NETWORKS[name].feeds()
    for output in run(model, inputs).values():
        size = float(np.sqrt(np.mean(np.square(output))))
        assert 0.1 < size < 10, "differences would be hidden"
    assert_exact(model, inputs=inputs)


@pytest.mark.parametrize(("name", "exporter", "opset"), VARIED)
def test_every_operator_set(name: str, exporter: Exporter, opset: int) -> None:
    model = exported(name, exporter, opset)
    assert next(entry.version for entry in model.opset_import if not entry.domain) == opset
    assert_exact(model, inputs=NETWORKS[name].feeds())


@pytest.mark.parametrize(("name", "exporter"), DYNAMIC)
def test_a_batch_of_any_size(name: str, exporter: Exporter) -> None:
    model = exported(name, exporter, dynamic=True)
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input)
    for batch in (1, 3):
        assert_exact(model, inputs=NETWORKS[name].feeds(batch))


def widened(model: onnx.ModelProto, half: int) -> onnx.ModelProto:
    """Return a model with float32 instead of its half precision: what it computes, without the rounding."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.data_type == half:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == half:
                attribute.i = TensorProto.FLOAT
            assert not (attribute.HasField("t") and attribute.t.data_type == half), "a constant that is left behind"
    return result


@pytest.mark.parametrize(
    ("half", "name", "exporter", "opset"),
    [
        ("float16", "mobilenet_v3", "script", 17),
        ("float16", "mobilenet_v3", "dynamo", 20),
        ("float16", "encoder", "script", 17),
        ("float16", "encoder", "dynamo", 20),
        ("bfloat16", "super_resolution", "dynamo", 22),  # no convolution takes bfloat16 before
        ("bfloat16", "encoder", "script", 17),
        ("bfloat16", "encoder", "dynamo", 22),
    ],
)
def test_half_precision(half: str, name: str, exporter: Exporter, opset: int) -> None:
    kind, code = HALVES[half]
    coupling = coupled(exported(name, exporter, opset, kind=kind))
    original, inputs = coupling.graph.proto, NETWORKS[name].feeds()
    weights = [tensor for tensor in original.graph.initializer if len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in weights if tensor.data_type != TensorProto.BOOL} == {code}
    for seed in range(3):
        removed = random_removal(coupling, 0.5, seed)
        pruned, kept = remove(coupling, removed)
        onnx.checker.check_model(pruned, full_check=True)
        assert_reproduces(original, pruned, kept)
        expected = run(widened(masked(coupling, removed), code), inputs, optimised=False)
        assert_close(expected, run(widened(pruned, code), inputs))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_float16_runs_as_it_is(exporter: Exporter) -> None:
    inputs = {name: array.astype(np.float16) for name, array in NETWORKS["resnet_basic"].feeds().items()}
    assert_exact(exported("resnet_basic", exporter, kind=torch.float16), inputs=inputs, tolerance=2e-2)
