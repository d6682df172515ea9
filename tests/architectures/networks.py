"""All networks by name: how to build each, and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import onnx
import torch
from torch import Tensor, nn

from tests.architectures import attention, convolutional, recurrent
from tests.architectures.attention import by_function, by_hand
from tests.architectures.exporting import Exporter, export, randomise
from tests.architectures.recurrent import VOCABULARY
from tests.oracles import Feeds


@dataclass(frozen=True)
class Network:
    """A network and examples of its inputs, batch first.

    Attributes
    ----------
    build : callable
        Makes the module.
    inputs : tuple of tuple of int
        Shapes without the batch; one of a single axis is of words, all others are of floats.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]

    def examples(self, batch: int = 2) -> list[Tensor]:
        """Return seeded inputs."""
        random = torch.Generator().manual_seed(1)
        shapes = [(batch, *shape) for shape in self.inputs]
        return [
            torch.randint(0, VOCABULARY, shape, generator=random)
            if len(shape) == 2
            else torch.randn(shape, generator=random)
            for shape in shapes
        ]

    def feeds(self, batch: int = 2) -> Feeds:
        """Return the same inputs for ONNX Runtime."""
        return {f"input_{place}": tensor.numpy() for place, tensor in enumerate(self.examples(batch))}


IMAGE, WORDS, STEPS = (3, 16, 16), (6,), (6, 12)

CONVOLUTIONAL = {
    "plain": Network(convolutional.plain, (IMAGE,)),
    "resnet_basic": Network(convolutional.resnet_basic, (IMAGE,)),
    "resnet_bottleneck": Network(convolutional.resnet_bottleneck, (IMAGE,)),
    "densenet": Network(convolutional.densenet, (IMAGE,)),
    "inception": Network(convolutional.inception, (IMAGE,)),
    "mobilenet_v3": Network(convolutional.mobilenet_v3, (IMAGE,)),
    "efficientnet": Network(convolutional.efficientnet, (IMAGE,)),
    "multiplier": Network(convolutional.multiplier, (IMAGE,)),
    "shufflenet_v1": Network(convolutional.shufflenet_v1, (IMAGE,)),
    "shufflenet_v2": Network(convolutional.shufflenet_v2, (IMAGE,)),
    "unet": Network(convolutional.UNet, (IMAGE,)),
    "super_resolution": Network(convolutional.SuperResolution, ((3, 6, 6),)),
    "groupnorm": Network(convolutional.groupnorm, ((3, 8, 8),)),
    "wave": Network(convolutional.wave, ((2, 20),)),
    "volume": Network(convolutional.volume, ((2, 4, 8, 8),)),
}
TRANSFORMERS = {
    "encoder": Network(lambda: attention.Encoder(by_hand), (WORDS,)),
    "encoder_function": Network(lambda: attention.Encoder(by_function, size=5), (WORDS,)),
    "causal": Network(lambda: attention.Encoder(by_hand, causal=True), (WORDS,)),
    "causal_function": Network(lambda: attention.Encoder(by_function, causal=True), (WORDS,)),
    "decoder": Network(lambda: attention.Decoder(by_hand), (WORDS, (7, 12))),
    "decoder_function": Network(lambda: attention.Decoder(by_function), (WORDS, (7, 12))),
    "torch_encoder": Network(attention.TorchEncoder, (STEPS,)),
    "torch_decoder": Network(attention.TorchDecoder, (STEPS, (7, 12))),
    "multi_head": Network(attention.MultiHead, ((6, 5),)),
    "vit": Network(attention.ViT, ((3, 12, 12),)),
    "llama": Network(lambda: attention.Llama(by_hand), (WORDS,)),
    "llama_function": Network(lambda: attention.Llama(by_function), (WORDS,)),
}
RECURRENT = {
    "lstm_words": Network(lambda: recurrent.LanguageModel(nn.LSTM), (WORDS,)),
    "gru_words": Network(lambda: recurrent.LanguageModel(nn.GRU), (WORDS,)),
    "lstm_tied": Network(lambda: recurrent.LanguageModel(nn.LSTM, tied=True), (WORDS,)),
    "projected_tied": Network(recurrent.Projected, (WORDS,)),
    "lstm_tagger": Network(lambda: recurrent.Tagger(nn.LSTM), (WORDS, (6, 5))),
    "gru_classifier": Network(recurrent.Classifier, ((6, 5),)),
    "translator": Network(recurrent.Translator, (WORDS, (5,))),
    "unrolled": Network(recurrent.Unrolled, ((3, 5),)),
}
NETWORKS = {**CONVOLUTIONAL, **TRANSFORMERS, **RECURRENT}
OPSET: dict[Exporter, int] = {"script": 17, "dynamo": 20}
"""What most networks are exported to."""


@cache
def exported(
    name: str, exporter: Exporter, opset: int = 0, *, dynamic: bool = False, kind: torch.dtype = torch.float32
) -> onnx.ModelProto:
    """Return a network's model; do not change it.

    Parameters
    ----------
    name : str
        A key of `NETWORKS`.
    exporter : str
    opset : int, default 0
        0 for the usual one of the exporter.
    dynamic : bool, default False
        Whether the batch is symbolic.
    kind : torch.dtype, default torch.float32
        Element type of weights and inputs.
    """
    network = NETWORKS[name]
    module = randomise(network.build()).to(kind)
    inputs = [tensor.to(kind) if tensor.is_floating_point() else tensor for tensor in network.examples()]
    return export(module, inputs, exporter, opset or OPSET[exporter], dynamic=dynamic)
