"""Exported networks are the same function in torch again, and train; so are random ones."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given, settings

from tests.architectures.exporting import Exporter
from tests.architectures.interpreting import assert_same_in_torch
from tests.architectures.networks import NETWORKS, exported
from tests.oracles import feeds
from tests.strategies import graphs

BY_OPERATOR = ("causal_function", "decoder_function", "llama_function", "torch_encoder")
"""Networks whose attention, normalisation or rotation is one node in the newest operator sets."""


@pytest.mark.parametrize(
    ("name", "exporter", "opset"),
    [*((name, "script", 0) for name in NETWORKS), *((name, "dynamo", 24) for name in BY_OPERATOR)],
)
def test_exported(name: str, exporter: Exporter, opset: int) -> None:
    model = exported(name, exporter, opset)
    assert_same_in_torch(model, NETWORKS[name].feeds())
    if opset:
        assert {"Attention", "LayerNormalization", "RMSNormalization"} & {node.op_type for node in model.graph.node}


@given(graphs())
@settings(max_examples=60)
def test_random(model: onnx.ModelProto) -> None:
    assert_same_in_torch(model, feeds(model))
