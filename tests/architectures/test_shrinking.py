"""What of these networks must shrink: a freeze that need not be fails here."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from graphprune.ir.cost import count_weights, weights_left
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.surgery import remove
from graphprune.passes.choice import queues
from graphprune.passes.criteria import score
from graphprune.passes.trim import by_fraction
from tests.architectures.attention import HEADS, WIDTH
from tests.architectures.exporting import Exporter
from tests.architectures.networks import NETWORKS, exported
from tests.oracles import coupled, units_on, values

EXPORTERS: list[Exporter] = ["script", "dynamo"]
SHARES = {
    "plain": 0.72,
    "resnet_basic": 0.73,
    "resnet_bottleneck": 0.72,
    "densenet": 0.69,
    "inception": 0.71,
    "mobilenet_v3": 0.66,
    "efficientnet": 0.65,
    "multiplier": 0.57,
    "shufflenet_v1": 0.57,
    "shufflenet_v2": 0.62,
    "unet": 0.73,
    "super_resolution": 0.69,
    "groupnorm": 0.72,
    "wave": 0.71,
    "volume": 0.66,
    "encoder": 0.47,
    "encoder_function": 0.53,
    "causal": 0.47,
    "causal_function": 0.47,
    "decoder": 0.53,
    "decoder_function": 0.52,
    "torch_encoder": 0.52,
    "torch_decoder": 0.55,
    "multi_head": 0.60,
    "vit": 0.40,
    "llama": 0.59,
    "llama_function": 0.59,
    "lstm_words": 0.69,
    "gru_words": 0.69,
    "lstm_tied": 0.68,
    "projected_tied": 0.69,
    "lstm_tagger": 0.70,
    "gru_classifier": 0.61,
    "translator": 0.68,
    "unrolled": 0.62,
}
"""Share of the weights that goes with half of every group. Frozen are inputs, outputs and vocabularies; what
LayerNorm and RMSNorm normalise, which is most of a transformer's residual stream; and nothing else."""
OPSET_WITH_ATTENTION = 23


@cache
def found(name: str, exporter: Exporter) -> Coupling:
    """The coupling of a network."""
    return coupled(exported(name, exporter))


def half(coupling: Coupling) -> BoolArray:
    """Half of every group, by the weights alone."""
    return by_fraction(coupling, queues(coupling, score(coupling, {}, "activation")), 0.5)


def share(coupling: Coupling) -> float:
    """The share of the weights that goes with half of every group."""
    return 1 - weights_left(coupling, half(coupling)) / count_weights(coupling.graph.proto)


def sizes(coupling: Coupling, *tensors: str) -> list[int]:
    """How many units each group has that lives on axis 0 of all these tensors."""
    return [len(g.units) for g in coupling.groups if {(name, 0) for name in tensors} <= set(g.axes)]


def halved(coupling: Coupling, tensor: str) -> tuple[int, ...]:
    """The shape that a tensor has with half of every group."""
    return tuple(values(remove(coupling, half(coupling))[0])[tensor].shape)


def test_every_network_has_a_share() -> None:
    assert list(SHARES) == list(NETWORKS)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_group(name: str, exporter: Exporter) -> None:
    assert share(found(name, exporter)) >= SHARES[name]


@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        *((name, "script") for name in ("resnet_basic", "shufflenet_v2", "encoder", "vit", "llama", "lstm_tagger")),
        *((name, "dynamo") for name in ("shufflenet_v2", "encoder", "causal_function", "llama", "lstm_tagger")),
    ],
)
def test_half_of_every_group_with_a_batch_of_any_size(name: str, exporter: Exporter) -> None:
    assert share(coupled(exported(name, exporter, dynamic=True))) >= SHARES[name]


def test_half_of_every_group_with_the_attention_operator() -> None:
    model = exported("encoder_function", "dynamo", OPSET_WITH_ATTENTION)
    assert "Attention" in {node.op_type for node in model.graph.node}
    assert share(coupled(model)) >= SHARES["encoder_function"]


# -- attention --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(("name", "size"), [("encoder", 3), ("encoder_function", 5), ("causal", 3)])
def test_heads_and_their_dimensions(name: str, size: int, exporter: Exporter) -> None:
    coupling = found(name, exporter)
    for layer in (0, 1):
        query, key, value = (f"attention.{layer}.{role}.bias" for role in "qkv")
        assert sizes(coupling, query, key, value) == [HEADS]
        assert sorted(sizes(coupling, query, key)) == sorted([HEADS, size])
        assert sorted(sizes(coupling, value)) == sorted([HEADS, size])
        for name_of in (query, key, value):
            assert halved(coupling, name_of) == (HEADS // 2 * (size - size // 2),)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ["decoder", "decoder_function"])
def test_heads_of_cross_attention(name: str, exporter: Exporter) -> None:
    coupling = found(name, exporter)
    for prefix, size in (("own", 3), ("cross", 5)):
        assert sizes(coupling, *(f"{prefix}.{role}.bias" for role in "qkv")) == [HEADS]
        assert sorted(sizes(coupling, f"{prefix}.q.bias", f"{prefix}.k.bias")) == sorted([HEADS, size])
        assert halved(coupling, f"{prefix}.v.bias") == (HEADS // 2 * (size - size // 2),)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("vit", "qkv.{}.bias"),
        ("torch_encoder", "layers.layers.{}.self_attn.in_proj_bias"),
        ("torch_decoder", "layers.layers.{}.self_attn.in_proj_bias"),
    ],
)
def test_heads_of_fused_projections(name: str, fused: str, exporter: Exporter) -> None:
    coupling = found(name, exporter)
    for layer in (0, 1):
        assert sorted(sizes(coupling, fused.format(layer))) == [WIDTH // HEADS, WIDTH // HEADS, HEADS]
        assert halved(coupling, fused.format(layer)) == (3 * HEADS // 2 * 2,)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_averaged_heads_keep_their_number_but_lose_dimensions(exporter: Exporter) -> None:
    coupling = found("multi_head", exporter)
    assert sizes(coupling, "attention.in_proj_bias") == [WIDTH // HEADS, WIDTH // HEADS]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ["llama", "llama_function"])
def test_shared_key_heads_and_rotated_dimensions(name: str, exporter: Exporter) -> None:
    coupling = found(name, exporter)
    for layer in (0, 1):
        query, key, value = (f"{role}.{layer}.bias" for role in "qkv")
        assert sizes(coupling, key, value) == [2], "key heads"
        assert 3 in sizes(coupling, query, key), "dimensions that turn together"
        assert 6 in sizes(coupling, value), "dimensions of values"
        assert halved(coupling, key) == (1 * 4,)
        assert len(values(coupling.graph.proto)[query]) > halved(coupling, query)[0] >= 4


# -- recurrence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("name", "op", "hidden", "layers"),
    [
        ("lstm_words", "LSTM", 16, 2),
        ("gru_words", "GRU", 16, 2),
        ("lstm_tied", "LSTM", 12, 2),
        ("projected_tied", "LSTM", 16, 1),
        ("lstm_tagger", "LSTM", 10, 2),
        ("gru_classifier", "GRU", 10, 1),
    ],
)
def test_hidden_units(name: str, op: str, hidden: int, layers: int, exporter: Exporter) -> None:
    coupling = found(name, exporter)
    gates = {"LSTM": 4, "GRU": 3}[op]
    nodes = [node for node in coupling.graph.nodes if node.op == op]
    assert len(nodes) == layers
    units = np.array([units_on(coupling, node.input(2), 2) for node in nodes])
    assert units.min() >= 0
    assert len(np.unique(units)) == layers * hidden, "layers are tied"
    for node in nodes:
        weight, recurrence, bias = (node.input(slot) for slot in (1, 2, 3))
        places = {(weight, 1), (recurrence, 1), (recurrence, 2), (bias, 1)}
        (group,) = [group for group in coupling.groups if places <= set(group.axes)]
        assert len(group.units) == hidden
        directions = coupling.graph.shape(recurrence)[0]
        assert halved(coupling, recurrence) == (directions, gates * hidden // 2, hidden // 2)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_states_that_are_handed_on_tie_encoder_and_decoder(exporter: Exporter) -> None:
    coupling = found("translator", exporter)
    encoder, decoder = (node.input(2) for node in coupling.graph.nodes if node.op == "LSTM")
    assert units_on(coupling, encoder, 2) == units_on(coupling, decoder, 2)
    assert halved(coupling, decoder) == (1, 24, 6)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_hidden_units_of_cells_that_are_written_out(exporter: Exporter) -> None:
    coupling = found("unrolled", exporter)
    (group,) = [group for group in coupling.groups if ("last.weight", 1) in group.axes]
    assert len(group.units) == 12
    assert halved(coupling, "last.weight") == (4, 6)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_tied_embedding_loses_columns_in_both_places(exporter: Exporter) -> None:
    coupling = found("projected_tied", exporter)
    words = [name for name, array in values(coupling.graph.proto).items() if sorted(array.shape) == [11, 12]]
    columns = {
        tuple(units_on(coupling, name, int(values(coupling.graph.proto)[name].shape[1] == 12))) for name in words
    }
    assert len(columns) == len(words), "stored twice, each is free by itself"
    assert all(len(set(units)) == 12 for units in columns)
